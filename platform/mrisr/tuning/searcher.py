"""The searcher that Tune asks for trials: it asks the stored Optuna study, and tells it how each trial ended."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from mrisr.tuning.history import TrialHistory
from mrisr.tuning.plan import SearchPlan
from mrisr.tuning.study import RUN, begun, build_sampler, open_storage, running_trial


class StudySearcher(Searcher):
    """Runs the trials of a study, so that a search goes on after its driver was killed.

    The trials that the study holds as running are handed out first, and resume in their runs' folders. Figures are
    stored under the training step. A trial that was stopped early is stored as pruned, which TPE expects.
    """

    def __init__(self, plan: SearchPlan, study: optuna.Study) -> None:
        super().__init__()
        self._plan, self._study = plan, study
        self._trials: dict[str, optuna.Trial] = {}  # by Tune's id
        study.sampler = build_sampler(plan, len(begun(study)))
        # A trial that was killed while its parameters were drawn is among them; the rest of them is drawn now.
        self._unfinished = [t.number for t in study.get_trials(deepcopy=False) if t.state is TrialState.RUNNING]

    def __getstate__(self) -> dict[str, Any]:
        """Nothing. Tune pickles the searcher into its folder, where the password of `tuning.storage` may not be."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search goes on from its study, not from Tune's snapshots."""

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
        # Optuna keeps no intermediate values of two figures. A resumed trial reports again what the study knows.
        if len(metrics) == 1 and result["step"] not in known:
            trial.report(result[metrics[0]], result["step"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial, metrics = self._trials[trial_id], self._plan.base.tuning.metrics
        run_folder = self._plan.trials_folder / f"trial-{trial.number:04d}"
        if error and TrialHistory(run_folder).interruption is not None:
            return  # It stays as running: the next start of the search goes on with it.
        if error or not result or any(result.get(metric) is None for metric in metrics):
            self._study.tell(trial, state=TrialState.FAIL)
        elif result["step"] < self._plan.trial_steps and len(metrics) == 1:
            # Tune does not tell a searcher the result at which it stops a trial. The study needs it: samplers take a
            # pruned trial without a figure for the worst of all.
            self.on_trial_result(trial_id, result)
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, [result[metric] for metric in metrics])
