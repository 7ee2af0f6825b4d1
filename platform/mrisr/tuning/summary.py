"""The results of a search, read from its study and its trials' folders, without Tune's own state."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import TrialState

from mrisr.metrics import METRICS
from mrisr.training.run_folder import RunFolder
from mrisr.tuning.history import TrialHistory
from mrisr.tuning.plan import SearchPlan
from mrisr.tuning.study import RUN, open_study, started_trials

_STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


class TrialSummary(NamedTuple):
    """results: the reports to Tune; figures: of the last report; step: of the last validation."""

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

    @property
    def ended(self) -> bool:
        return self.state != "running"


class SearchSummary(NamedTuple):
    """best: one trial, or a Pareto front ordered by the first metric; missing: number of trials not yet started."""

    trials: list[TrialSummary]
    best: list[TrialSummary]
    missing: int

    @property
    def steps(self) -> int:
        """Steps of all trials, each counted up to its last validation."""
        return sum(trial.step for trial in self.trials)


def summarize(plan: SearchPlan, study: optuna.Study | None = None) -> SearchSummary:
    trials = [_summarize_trial(plan, frozen) for frozen in started_trials(study or open_study(plan))]
    ended = [trial for trial in trials if trial.ended]
    return SearchSummary(trials, _best(ended, plan.base.tuning.metrics), max(0, plan.trials - len(ended)))


def _summarize_trial(plan: SearchPlan, frozen: optuna.trial.FrozenTrial) -> TrialSummary:
    run, metrics = frozen.user_attrs[RUN], plan.base.tuning.metrics
    folder = plan.trials_folder / run
    history = TrialHistory(folder)
    results, state = history.results(metrics), _STATES[frozen.state]
    if state in ("finished", "stopped early"):
        # The study cannot say this: with two metrics, Optuna has no pruned trials.
        state = "finished" if history.step >= plan.trial_steps else "stopped early"
    return TrialSummary(
        number=frozen.number,
        run=run,
        state=state,
        # A running trial may lack parameters: the search was killed while they were drawn.
        values={} if state == "running" else plan.draw(optuna.trial.FixedTrial(frozen.params)),
        results=results,
        figures={metric: results[-1][metric] for metric in metrics} if results else {},
        step=history.step,
        failure=(history.failure or "its process ended") if state == "failed" else None,
        mlflow_run_id=RunFolder(folder).mlflow_run_id,
        folder=folder,
        frozen=frozen,
    )


def _best(trials: list[TrialSummary], metrics: tuple[str, ...]) -> list[TrialSummary]:
    """Trials that no other trial beats in one metric without being worse in another. Failed trials do not count."""

    def gains(trial: TrialSummary) -> tuple[float, ...]:
        return tuple(METRICS[metric].improvement(trial.figures[metric], 0.0) for metric in metrics)

    def beats(one: TrialSummary, other: TrialSummary) -> bool:
        return gains(one) != gains(other) and all(a >= b for a, b in zip(gains(one), gains(other), strict=True))

    scored = [trial for trial in trials if trial.figures and trial.state != "failed"]
    front = [trial for trial in scored if not any(beats(other, trial) for other in scored)]
    front.sort(key=lambda trial: (gains(trial), -trial.number), reverse=True)
    return front[: 1 if len(metrics) == 1 else None]
