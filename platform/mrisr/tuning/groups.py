"""The room that a trial's workers hold: written down when they start, given back once the trial has ended.

A trial that Tune stops dies with the controller of its training run. Ray Train has a watcher that gives the room back
then, but it asks the dashboard who is alive: in a cluster without one the room is lost until the search ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import PlacementGroupID
from ray._private.state import actors
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

GROUPS = "placement_groups.jsonl"


class GroupRecord(WorkerGroupCallback):
    """Writes every group of workers of a run into the run's folder; runs in the run's controller, which starts them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def after_worker_group_start(self, worker_group: Any) -> None:
        note(self.folder, worker_group.get_worker_group_state().placement_group_handle.placement_group)


def note(folder: Path, group: PlacementGroup) -> None:
    """Write down that this actor holds a placement group for the run of that folder."""
    entry = {"group": group.id.hex(), "controller": ray.get_runtime_context().get_actor_id()}
    with (folder / GROUPS).open("a") as file:
        file.write("\n" + json.dumps(entry))


def release(folder: Path, *, now: bool = False) -> bool:
    """Remove the groups of a run that has ended; whether all are gone for good.

    now: also those of a controller that is still alive. Before its death it would hold the loss of its workers for a
    failure, and ask for a new group, perhaps.
    """
    gone, table = True, placement_group_table()
    for group, controller in _entries(folder):
        alive = actors(controller).get("State", "DEAD") != "DEAD"
        if alive and not now:
            gone = False
        elif table.get(group, {}).get("state", "REMOVED") != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
    return gone


def _entries(folder: Path) -> Iterator[tuple[str, str]]:
    file = folder / GROUPS
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # Cut off by a kill, in a cluster that has ended with it.
        yield entry["group"], entry["controller"]
