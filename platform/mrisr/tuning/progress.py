"""Follows the trials of a search for its display, and releases the resources of ended trials."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray import tune

from mrisr.training.outcome import TrainingStopped
from mrisr.training.placement_groups import release_groups
from mrisr.tuning.display import SearchDisplay
from mrisr.tuning.history import TrialHistory
from mrisr.tuning.plan import SearchPlan

# Seconds that the end of the search waits for the last trials' workers to end.
_LAST_RELEASE_S = 40.0


class Progress(tune.Callback):
    """Tells a display what happens to trials, and releases the placement groups of ended trials.

    An interrupted trial, e.g. after a full disk, ends the search, because the next would fail too. stopped: the cause.
    """

    def __init__(self, plan: SearchPlan, display: SearchDisplay | None = None) -> None:
        # The plan itself is not kept: Tune pickles callbacks into its folder, and the plan may hold passwords.
        self.trials, self.metrics, self.steps = plan.trials_folder, plan.base.tuning.metrics, plan.trial_steps
        self.display = display
        self.ended: list[Path] = []
        self.stopped: TrainingStopped | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"display": None}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.display is not None:
            self.display.started(trial.config["run"], trial.config["values"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if self.display is not None:
            figures = {metric: result[metric] for metric in self.metrics}
            self.display.validated(trial.config["run"], result["step"], figures)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended.append(self._folder(trial))
        step = (trial.last_result or {}).get("step", 0)
        if self.display is not None:
            self.display.ended(trial.config["run"], "finished" if step >= self.steps else "stopped early")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended.append(self._folder(trial))
        if (why := TrialHistory(self._folder(trial)).interruption) is not None:
            run = trial.config["run"]
            self.stopped = TrainingStopped(
                f"{run} could not go on: {why or 'see above'}\nThe same command goes on with the search"
            )
            raise self.stopped
        if self.display is not None:
            why = TrialHistory(self._folder(trial)).failure or "its process ended"
            self.display.ended(trial.config["run"], "failed", why)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        # Tune calls on_trial_complete before it stops the trial's process.
        self.ended = [folder for folder in self.ended if not release_groups(folder)]

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        # Also trials that an interruption stopped, which get no on_trial_complete.
        held, deadline = [self._folder(trial) for trial in trials], time.monotonic() + _LAST_RELEASE_S
        while (held := [folder for folder in held if not release_groups(folder)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        for folder in held:
            said = f"its processes are still there after {_LAST_RELEASE_S:g} s; their room is taken"
            if self.display is not None:
                self.display.screen.say(f"{folder.name}: {said}")
            release_groups(folder, now=True)

    def _folder(self, trial: Any) -> Path:
        return self.trials / str(trial.config["run"])
