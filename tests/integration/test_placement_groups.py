"""The resources of a trial's workers are given back once its workers are gone: by real actors and groups."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from mrisr.training.placement_groups import GROUPS, release_groups

pytestmark = pytest.mark.integration


def test_all_groups_of_a_trial_are_released_once_its_controller_is_dead(local_ray: None, tmp_path: Path) -> None:
    import ray
    from ray.util.placement_group import placement_group, placement_group_table
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    @ray.remote(num_cpus=0.1)
    class Worker:
        def start(self, folder: Path) -> None:
            from mrisr.training.placement_groups import note_group

            note_group(folder)

    @ray.remote(num_cpus=0)
    class Controller:
        def __init__(self) -> None:
            self.workers: list[Any] = []

        def start_workers(self, folder: Path) -> str:
            group = placement_group([{"CPU": 0.1}])
            placed: Any = Worker.options(  # type: ignore[attr-defined]
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=group)
            )
            self.workers.append(placed.remote())
            ray.get(self.workers[-1].start.remote(folder))
            return str(group.id.hex())

    def states(groups: list[str]) -> set[str]:
        return {placement_group_table()[group]["state"] for group in groups}

    (tmp_path / GROUPS).write_text("\n" + "ab" * 18 + "\n\nabab")
    assert release_groups(tmp_path), "of a cluster that is gone: nothing is held"
    assert release_groups(tmp_path / "a trial without workers")
    controller: Any = Controller.remote()  # type: ignore[attr-defined]
    # Two groups: the first one's workers were lost and started again.
    groups = [ray.get(controller.start_workers.remote(tmp_path)) for _ in range(2)]
    assert not release_groups(tmp_path)
    assert "REMOVED" not in states(groups)
    ray.kill(controller)
    deadline = time.monotonic() + 20
    while not release_groups(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    while states(groups) != {"REMOVED"}:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert release_groups(tmp_path)
