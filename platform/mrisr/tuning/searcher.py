"""The searcher that Tune asks for trials. It takes them from the Optuna study and stores how each trial ended."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from mrisr.tuning.history import TrialHistory
from mrisr.tuning.plan import SearchPlan
from mrisr.tuning.study import RUN, build_sampler, open_storage, running_trial, started_trials


class StudySearcher(Searcher):
    """Runs the trials of a stored study, so that a search continues after its driver was killed.

    Trials that the study lists as running come first and resume in their runs' folders. Figures are stored under the
    training step. A trial that was stopped early is stored as pruned, which TPE expects.
    """

    def __init__(self, plan: SearchPlan, study: optuna.Study) -> None:
        super().__init__()
        self._plan, self._study = plan, study
        self._trials: dict[str, optuna.Trial] = {}  # by Tune's id
        study.sampler = build_sampler(plan, len(started_trials(study)))
        # These include a trial that was killed while its parameters were drawn. Missing parameters are drawn now.
        self._unfinished = [t.number for t in study.get_trials(deepcopy=False) if t.state is TrialState.RUNNING]

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune pickles the searcher into its folder, which must not contain the password of `tuning.storage`."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: a search resumes from its study, not from Tune's snapshots."""

    def suggest(self, trial_id: str) -> dict[str, Any]:
        if self._unfinished:
            trial = running_trial(self._study, open_storage(self._plan), self._unfinished.pop(0))
        else:
            trial = self._study.ask()
        self._trials[trial_id] = trial
        config = {RUN: f"trial-{trial.number:04d}", "values": self._plan.draw(trial)}
        trial.set_user_attr(RUN, config[RUN])
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        trial, metrics = self._trials[trial_id], self._plan.base.tuning.metrics
        known = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
        # Optuna has no intermediate values for two metrics. A resumed trial repeats reports that the study knows.
        if len(metrics) == 1 and result["step"] not in known:
            trial.report(result[metrics[0]], result["step"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial, metrics = self._trials[trial_id], self._plan.base.tuning.metrics
        run_folder = self._plan.trials_folder / f"trial-{trial.number:04d}"
        if error and TrialHistory(run_folder).interruption is not None:
            return  # It stays running: the next start of the search resumes it.
        if error or not result or any(result.get(metric) is None for metric in metrics):
            self._study.tell(trial, state=TrialState.FAIL)
        elif result["step"] < self._plan.trial_steps and len(metrics) == 1:
            # Tune does not give a searcher the result at which it stops a trial. The study needs it: samplers take a
            # pruned trial without a figure for the worst of all.
            self.on_trial_result(trial_id, result)
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, [result[metric] for metric in metrics])
