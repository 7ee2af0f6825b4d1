"""The placement groups of a run's workers. They are recorded when the workers start and removed after the run.

When Ray Train's controller dies, or Tune stops a trial and its controller with it, nothing else removes the workers'
group: Ray Train's own cleaner needs a process and the dashboard. The resources would be reserved until the driver ends.
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
    """In a worker: append the id of its placement group to a file of the run's folder."""
    if (group := get_current_placement_group()) is not None:
        with (run_folder / GROUPS).open("a") as file:
            file.write(f"\n{group.id.hex()}\n")


def release_groups(run_folder: Path, *, now: bool = False) -> bool:
    """Remove the placement groups of a run that has ended. Returns whether all of them are removed.

    now: remove groups with living workers too. By default a later call removes them: a living controller would count
    the loss of its workers as a failure and might request a new group.
    """
    file, busy = run_folder / GROUPS, False
    if not file.exists():
        return True
    states = placement_group_table()
    for group in dict.fromkeys(file.read_text().split()):
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
