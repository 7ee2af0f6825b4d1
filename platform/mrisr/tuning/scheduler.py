"""Early stopping: the median rule, or ASHA with the results of earlier starts of the search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler, MedianStoppingRule, TrialScheduler

from mrisr.metrics import METRICS
from mrisr.tuning.plan import SearchPlan
from mrisr.tuning.study import RUN

Histories = dict[str, list[dict[str, Any]]]  # run -> the results that Tune was told, in order


class ASHA(FIFOScheduler):
    """Asynchronous successive halving: a trial stops at a rung if it is not among the best 1/reduction so far.

    The decisions are those of `ray.tune.schedulers.ASHAScheduler` with one bracket and stop_last_trials=False, which
    cannot be given earlier results. A rung knows a trial by its run, so a rung judges a resumed trial only once.
    """

    def __init__(self, rungs: Sequence[float], metric: str, reduction: float, histories: Histories) -> None:
        super().__init__()
        self.rungs: dict[float, dict[str, float]] = {step: {} for step in rungs}
        self._key, self._sign = metric, 1 if METRICS[metric].higher_is_better else -1
        self._percentile = (1 - 1 / reduction) * 100
        for run, results in histories.items():
            for result in results:
                self._passes(run, result)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self.CONTINUE if self._passes(trial.config[RUN], result) else self.STOP

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._passes(trial.config[RUN], result)

    def _passes(self, run: str, result: dict[str, Any]) -> bool:
        reached = [step for step in self.rungs if step <= result.get("step", 0)]
        if not reached or run in (figures := self.rungs[max(reached)]):
            return True
        figure = self._sign * result[self._key]
        stops = bool(figures) and figure < np.nanpercentile(list(figures.values()), self._percentile)
        figures[run] = figure
        return not stops


def judged_results(ended: bool, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results that the scheduler has surely judged. A running trial may have been killed before that."""
    return results if ended else results[:-1]


def grace_steps(plan: SearchPlan) -> int:
    """`tuning.grace_steps`, or a trial's steps / reduction^2 rounded up to a validation."""
    t, total_steps, every = plan.base.tuning, plan.trial_steps, plan.base.validation.every
    if t.grace_steps is not None:
        return min(t.grace_steps, total_steps)
    return min(total_steps, every * max(1, -(-int(total_steps / t.reduction**2) // every)))


def rungs(plan: SearchPlan) -> list[float]:
    """The steps at which ASHA decides, [] without ASHA. The last step is excluded: stopping there saves nothing."""
    step, found = float(grace_steps(plan)), []
    while plan.base.tuning.scheduler == "asha" and step < plan.trial_steps:
        found.append(step)
        step *= plan.base.tuning.reduction
    return found


def build_scheduler(plan: SearchPlan, histories: Histories) -> TrialScheduler:
    """The scheduler of `tuning.scheduler`, by the first metric. histories: of the trials of earlier starts."""
    t, metric = plan.base.tuning, plan.base.tuning.metrics[0]
    if t.scheduler == "asha":
        return ASHA(rungs(plan), metric, t.reduction, histories)
    if t.scheduler == "median":
        # A finite min_time_slice would pause a trial after each validation, and its workers would have to restart.
        return MedianStoppingRule(
            time_attr="step", metric=metric, mode="max" if METRICS[metric].higher_is_better else "min",
            grace_period=grace_steps(plan), min_time_slice=math.inf,
        )  # fmt: skip
    return FIFOScheduler()
