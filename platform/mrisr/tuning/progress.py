"""What a search shows while it runs, and how the room of a trial that ended is taken back."""

from __future__ import annotations

from typing import Any

from ray import PlacementGroupID, tune
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from mrisr.tuning.plan import SearchPlan, short
from mrisr.tuning.trial import GROUP


class Progress(tune.Callback):
    """A line for every validation and for every trial's end."""

    def __init__(self, plan: SearchPlan, done: int, wanted: int) -> None:
        self.plan, self.done, self.wanted = plan, done, wanted

    def _say(self, text: str) -> None:
        print(text, flush=True)  # Tune pickles its callbacks, which a console would not survive.

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        values = ", ".join(f"{key}={short(value)}" for key, value in trial.config["values"].items())
        self._say(f"{trial.config['run']} starts: {values}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        figures = ", ".join(f"{metric} {result[metric]:.4f}" for metric in self.plan.base.tuning.metrics)
        self._say(f"{trial.config['run']} step {result['step']:,}/{self.plan.trial_steps:,}: best {figures}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.done += 1
        release_workers((trial.last_result or {}).get(GROUP))
        step = (trial.last_result or {}).get("step", 0)
        how = "finished" if step >= self.plan.trial_steps else f"stopped early at step {step:,}"
        self._say(f"{trial.config['run']} {how}; {self.done} of {self.wanted} trials done")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.done += 1
        release_workers((trial.last_result or {}).get(GROUP))
        self._say(f"{trial.config['run']} failed; {self.done} of {self.wanted} trials done")


def release_workers(group: str | None) -> None:
    """Take back the room of a trial's workers, by the id of their placement group, if they still hold it.

    A trial that Tune stops dies with the controller of its training run. Ray Train has a watcher that gives the room
    back then, but it asks the dashboard who is alive: in a cluster without one the room is lost until the search ends.
    """
    if group is None or placement_group_table().get(group, {}).get("state") in (None, "REMOVED"):
        return
    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
