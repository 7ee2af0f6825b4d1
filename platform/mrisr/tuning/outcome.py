"""What a search has found, read from its study and its trials' records alone; no Tune state is needed for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import TrialState

from mrisr.metrics import METRICS
from mrisr.training.run_folder import RunFolder
from mrisr.tuning.plan import SearchPlan
from mrisr.tuning.record import Record
from mrisr.tuning.study import RUN, begun, open_storage, open_study

_STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


class TrialOutcome(NamedTuple):
    """One trial. values: of the searched keys; results: what Tune was told; figures: the last of them; step: run."""

    number: int
    run: str
    state: str
    values: dict[str, Any]
    results: list[dict[str, Any]]
    figures: dict[str, float]
    step: int
    failure: str | None
    mlflow_run_id: str | None
    folder: Path
    frozen: optuna.trial.FrozenTrial


class Outcome(NamedTuple):
    """All trials, and the best ones: one, or a Pareto front ordered by the first metric. missing: trials to come."""

    trials: list[TrialOutcome]
    best: list[TrialOutcome]
    missing: int

    @property
    def steps(self) -> int:
        """Steps run by all trials, up to the last validation of each."""
        return sum(trial.step for trial in self.trials)


def collect(plan: SearchPlan, study: optuna.Study | None = None) -> Outcome:
    """Read the study and the trials' folders."""
    if study is None:
        study = open_study(plan, open_storage(plan))
    t = plan.base.tuning
    trials = []
    for frozen in begun(study):
        run = frozen.user_attrs[RUN]
        folder = plan.folder / "trials" / run
        record = Record(folder)
        results = record.results(t.metrics)
        state = _STATES[frozen.state]
        if state == "stopped early" and record.step >= plan.trial_steps:
            state = "finished"
        if state == "finished" and record.step < plan.trial_steps:
            state = "stopped early"  # A search for two figures has no pruned trials in Optuna.
        # A trial that was killed while it was drawn has some of its parameters only.
        values = {} if state == "running" else plan.draw(optuna.trial.FixedTrial(frozen.params))
        trials.append(
            TrialOutcome(
                frozen.number, run, state, values, results,
                {metric: results[-1][metric] for metric in t.metrics} if results else {}, record.step,
                (record.failure or "its process ended") if state == "failed" else None,
                RunFolder(folder).mlflow_run_id, folder, frozen,
            )
        )  # fmt: skip
    ended = [trial for trial in trials if trial.state != "running"]
    return Outcome(trials, _best(ended, t.metrics), max(0, wanted_trials(plan) - len(ended)))


def wanted_trials(plan: SearchPlan) -> int:
    """How many trials the search has in the end: a grid may hold fewer than were asked for."""
    t = plan.base.tuning
    return min(t.trials, plan.grid_size) if t.sampler == "grid" else t.trials


def _best(trials: list[TrialOutcome], metrics: tuple[str, ...]) -> list[TrialOutcome]:
    """Trials that no other beats in one metric without losing in another; failed ones do not count."""
    rank = [
        (tuple(METRICS[m].improvement(trial.figures[m], 0.0) for m in metrics), trial)
        for trial in trials
        if trial.figures and trial.state != "failed"
    ]
    front = [
        (figures, trial)
        for figures, trial in rank
        if not any(other != figures and all(o >= f for o, f in zip(other, figures, strict=True)) for other, _ in rank)
    ]
    front.sort(key=lambda pair: (pair[0], -pair[1].number), reverse=True)
    return [trial for _, trial in front][: 1 if len(metrics) == 1 else None]
