"""The room of a trial's workers is given back when nobody can ask for it again: by real actors and groups."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from mrisr.tuning.groups import GROUPS, release

pytestmark = pytest.mark.integration


def test_all_groups_of_a_trial_are_released_once_its_controller_is_dead(local_ray: None, tmp_path: Path) -> None:
    import ray
    from ray.util.placement_group import placement_group, placement_group_table

    @ray.remote(num_cpus=0)
    class Controller:
        def start_workers(self, folder: Path) -> str:
            from mrisr.tuning.groups import note

            group = placement_group([{"CPU": 0.1}])
            note(folder, group)
            return str(group.id.hex())

    def states(groups: list[str]) -> set[str]:
        return {placement_group_table()[group]["state"] for group in groups}

    (tmp_path / GROUPS).write_text('\n{"group": "' + "ab" * 18 + '", "controller": "' + "cd" * 16 + '"}\n{"gro')
    assert release(tmp_path), "of a cluster that is gone: nothing is held"
    assert release(tmp_path / "a trial without workers")
    controller: Any = Controller.remote()  # type: ignore[attr-defined]
    # Two groups: the first one's workers were lost and started again.
    groups = [ray.get(controller.start_workers.remote(tmp_path)) for _ in range(2)]
    assert not release(tmp_path)
    assert "REMOVED" not in states(groups)
    ray.kill(controller)
    deadline = time.monotonic() + 20
    while not release(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    while states(groups) != {"REMOVED"}:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert release(tmp_path)
