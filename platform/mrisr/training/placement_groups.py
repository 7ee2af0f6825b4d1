"""The placement groups of a trial's workers: written down when the workers start, removed when the trial has ended.

A trial that Tune stops dies together with the controller of its training run, and nobody removes the group of its
workers. Ray Train has a cleaner for that, but it needs the dashboard. In a cluster without one, the resources would
stay taken until the search ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ray
from ray import PlacementGroupID
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group_table,
    remove_placement_group,
)

GROUPS = "placement_groups.txt"


def note_group(run_folder: Path) -> None:
    """In a worker: write its placement group's id into the run's folder."""
    if (group := get_current_placement_group()) is not None:
        with (run_folder / GROUPS).open("a") as file:
            file.write(f"\n{group.id.hex()}\n")


def release_groups(run_folder: Path, *, now: bool = False) -> bool:
    """Remove the groups of a run that has ended; whether none is left.

    now: also groups whose workers are still alive. Otherwise they are left for a later call: a controller that is still
    alive would take the loss of its workers for a failure and might ask for a new group.
    """
    states = placement_group_table()
    left = [group for group in _noted(run_folder) if states.get(group, {}).get("state", "REMOVED") != "REMOVED"]
    busy = set() if now else {group for group in left if _in_use(group)}
    for group in left:
        if group not in busy:
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
    return not busy


def _in_use(group: str) -> bool:
    """Whether an actor holds a part of the group. Ray counts each group's bundles as a resource of this name."""
    resource = f"bundle_group_{group}"
    return ray.available_resources().get(resource, 0) != ray.cluster_resources().get(resource, 0)


def _noted(run_folder: Path) -> Iterator[str]:
    file = run_folder / GROUPS
    for line in file.read_text().split() if file.exists() else []:
        if len(line) == 2 * PlacementGroupID.size():  # a shorter one was cut off when its process was killed
            yield line
