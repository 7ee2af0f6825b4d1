"""The placement groups of a trial's workers: written down when the workers start, removed when the trial has ended.

A trial that Tune stops dies together with the controller of its training run, and nobody removes its workers' group:
Ray Train's cleaner needs the dashboard. Without one, the resources would stay taken until the search ends.
"""

from __future__ import annotations

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
    file, states, busy = run_folder / GROUPS, placement_group_table(), False
    for group in file.read_text().split() if file.exists() else []:
        # A kill cut off shorter ones.
        if len(group) != 2 * PlacementGroupID.size() or states.get(group, {}).get("state", "REMOVED") == "REMOVED":
            continue
        if not now and _in_use(group):
            busy = True
        else:
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
    return not busy


def _in_use(group: str) -> bool:
    """Whether an actor holds a part of the group. Ray counts each group's bundles as a resource of this name."""
    resource = f"bundle_group_{group}"
    return ray.available_resources().get(resource, 0) != ray.cluster_resources().get(resource, 0)
