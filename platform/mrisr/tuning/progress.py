"""What a search shows while it runs, and how the room of a trial that ended is taken back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray import tune

from mrisr.training.outcome import TrainingStopped
from mrisr.tuning.groups import release
from mrisr.tuning.plan import SearchPlan, short
from mrisr.tuning.record import Record
from mrisr.tuning.trial import trials_folder

# How long the end of the search waits for the last trials' processes.
_LAST_RELEASE_S = 20.0


class Progress(tune.Callback):
    """A line for every validation and for every trial's end, whose workers' room is given back.

    A trial that its surroundings stopped ends the search: the next trials would meet the same. stopped: why, then.
    """

    def __init__(self, plan: SearchPlan, done: int, wanted: int) -> None:
        # Tune pickles its callbacks into its folder, where no address with a password of the plan's shall be.
        self.trials, self.metrics, self.steps = trials_folder(plan), plan.base.tuning.metrics, plan.trial_steps
        self.done, self.wanted = done, wanted
        self.ended: list[Path] = []
        self.stopped: TrainingStopped | None = None

    def _say(self, text: str) -> None:
        print(text, flush=True)  # Tune pickles its callbacks, which a console would not survive.

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        values = ", ".join(f"{key}={short(value)}" for key, value in trial.config["values"].items())
        self._say(f"{trial.config['run']} starts: {values}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        figures = ", ".join(f"{metric} {result[metric]:.4f}" for metric in self.metrics)
        self._say(f"{trial.config['run']} step {result['step']:,}/{self.steps:,}: best {figures}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.done += 1
        self.ended.append(self._folder(trial))
        step = (trial.last_result or {}).get("step", 0)
        how = "finished" if step >= self.steps else f"stopped early at step {step:,}"
        self._say(f"{trial.config['run']} {how}; {self.done} of {self.wanted} trials done")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended.append(self._folder(trial))
        if (why := Record(self._folder(trial)).interruption) is not None:
            run = trial.config["run"]
            self.stopped = TrainingStopped(
                f"{run} could not go on: {why or 'see above'}\nThe same command goes on with the search"
            )
            raise self.stopped
        self.done += 1
        self._say(f"{trial.config['run']} failed; {self.done} of {self.wanted} trials done")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        # Tune tells of a trial's end before it stops the trial's process.
        self.ended = [folder for folder in self.ended if not release(folder)]

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        # Also of trials that an interruption stopped, of whose end Tune does not tell.
        held, deadline = [self._folder(trial) for trial in trials], time.monotonic() + _LAST_RELEASE_S
        while (held := [folder for folder in held if not release(folder)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        for folder in held:
            self._say(f"{folder.name}: its processes are still there after {_LAST_RELEASE_S:g} s; their room is taken")
            release(folder, now=True)

    def _folder(self, trial: Any) -> Path:
        return self.trials / str(trial.config["run"])
