"""Schedulers that stop bad trials early, and still know what they saw before their driver was killed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from mrisr.tuning.plan import SearchPlan
from mrisr.tuning.study import MODES, RUN

Histories = dict[str, list[dict[str, Any]]]  # run -> what Tune was told of it, in order


class RefilledASHA(ASHAScheduler):
    """ASHA whose rungs hold the figures of earlier trials: Tuner.restore would start it with empty ones.

    Rungs know a trial by its run, which a trial that resumes keeps, and not by Tune's id, which is a new one: at a rung
    that it passed before the kill it is not judged again, against trials that came later.
    """

    def __init__(self, histories: Histories, **settings: Any) -> None:
        super().__init__(**settings)
        for bracket in self._brackets:
            # A rung at the last step saves nothing: it would only cut a finished trial's farewell short.
            bracket._rungs = [rung for rung in bracket._rungs if rung[0] < self._max_t]
        for run, results in histories.items():
            for result in results:
                self._brackets[0].on_result(
                    SimpleNamespace(trial_id=run), result[self._time_attr], self._metric_op * result[self._metric]
                )

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, _by_run(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return str(super().on_trial_result(tune_controller, _by_run(trial), result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, _by_run(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, _by_run(trial))


def _by_run(trial: Any) -> Any:
    return SimpleNamespace(trial_id=trial.config[RUN])


def judged(ended: bool, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of a trial that were acted upon. A running one wrote its last down before it was judged, perhaps."""
    return results if ended else results[:-1]


def grace_steps(plan: SearchPlan) -> int:
    """`tuning.grace_steps`, or a trial's steps / reduction^2 rounded up to a validation."""
    t, total_steps, every = plan.base.tuning, plan.trial_steps, plan.base.validation.every
    if t.grace_steps is not None:
        return min(t.grace_steps, total_steps)
    return min(total_steps, every * max(1, -(-int(total_steps / t.reduction**2) // every)))


def rungs(plan: SearchPlan) -> list[int]:
    """The steps at which ASHA decides; none for another scheduler."""
    t, step, found = plan.base.tuning, float(grace_steps(plan)), []
    while t.scheduler == "asha" and step < plan.trial_steps:
        found.append(round(step))
        step *= t.reduction
    return found


def build_scheduler(plan: SearchPlan, histories: Histories) -> TrialScheduler:
    """The scheduler of `tuning.scheduler`, by the first metric. histories: of trials that an earlier start ran."""
    t = plan.base.tuning
    metric, grace = t.metrics[0], grace_steps(plan)
    if t.scheduler == "none":
        return FIFOScheduler()
    if t.scheduler == "median":
        return MedianStoppingRule(time_attr="step", metric=metric, mode=MODES[metric], grace_period=grace)
    return RefilledASHA(
        histories, time_attr="step", metric=metric, mode=MODES[metric], max_t=plan.trial_steps, grace_period=grace,
        reduction_factor=t.reduction, stop_last_trials=False,
    )  # fmt: skip
