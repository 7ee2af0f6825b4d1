"""Prints the progress of a search, and releases the resources of ended trials."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray import tune

from mrisr.training.outcome import TrainingStopped
from mrisr.training.placement_groups import release_groups
from mrisr.tuning.history import TrialHistory
from mrisr.tuning.plan import SearchPlan, short

# Seconds that the end of the search waits for the last trials' workers to end.
_LAST_RELEASE_S = 40.0


class Progress(tune.Callback):
    """Prints every validation and every trial's end, and releases the placement groups of ended trials.

    An interrupted trial, e.g. after a full disk, ends the search, because the next would fail too. stopped: the cause.
    """

    def __init__(self, plan: SearchPlan, done: int) -> None:
        # The plan itself is not kept: Tune pickles callbacks into its folder, and the plan may hold passwords.
        self.trials, self.metrics, self.steps = plan.trials_folder, plan.base.tuning.metrics, plan.trial_steps
        self.done, self.wanted = done, plan.trials
        self.ended: list[Path] = []
        self.stopped: TrainingStopped | None = None

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        values = ", ".join(f"{key}={short(value)}" for key, value in trial.config["values"].items())
        print(f"{trial.config['run']} starts: {values}", flush=True)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        figures = ", ".join(f"{metric} {result[metric]:.4f}" for metric in self.metrics)
        print(f"{trial.config['run']} step {result['step']:,}/{self.steps:,}: best {figures}", flush=True)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.done += 1
        self.ended.append(self._folder(trial))
        step = (trial.last_result or {}).get("step", 0)
        how = "finished" if step >= self.steps else f"stopped early at step {step:,}"
        print(f"{trial.config['run']} {how}; {self.done} of {self.wanted} trials done", flush=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended.append(self._folder(trial))
        if (why := TrialHistory(self._folder(trial)).interruption) is not None:
            run = trial.config["run"]
            self.stopped = TrainingStopped(
                f"{run} could not go on: {why or 'see above'}\nThe same command goes on with the search"
            )
            raise self.stopped
        self.done += 1
        print(f"{trial.config['run']} failed; {self.done} of {self.wanted} trials done", flush=True)

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
            print(f"{folder.name}: {said}", flush=True)
            release_groups(folder, now=True)

    def _folder(self, trial: Any) -> Path:
        return self.trials / str(trial.config["run"])
