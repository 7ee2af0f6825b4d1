"""The placement groups of a trial's workers. They are recorded when the workers start and removed after the trial.

When Tune stops a trial, the controller of its training run dies too, and nothing removes the workers' group: Ray
Train's cleaner needs the dashboard. Without this module, the resources would be reserved until the search ends.
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
    """In a worker: write the id of its placement group into the run's folder."""
    if (group := get_current_placement_group()) is not None:
        with (run_folder / GROUPS).open("a") as file:
            file.write(f"\n{group.id.hex()}\n")


def release_groups(run_folder: Path, *, now: bool = False) -> bool:
    """Remove the placement groups of a run that has ended. Returns whether all of them are removed.

    now: remove groups with living workers too. By default a later call removes them: a living controller would count
    the loss of its workers as a failure and might request a new group.
    """
    file, states, busy = run_folder / GROUPS, placement_group_table(), False
    for group in file.read_text().split() if file.exists() else []:
        # A kill truncates an id.
        if len(group) != 2 * PlacementGroupID.size() or states.get(group, {}).get("state", "REMOVED") == "REMOVED":
            continue
        if not now and _in_use(group):
            busy = True
        else:
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
    return not busy


def _in_use(group: str) -> bool:
    """Whether an actor uses a part of the group. Ray lists each group's bundles as a resource with this name."""
    resource = f"bundle_group_{group}"
    return ray.available_resources().get(resource, 0) != ray.cluster_resources().get(resource, 0)
