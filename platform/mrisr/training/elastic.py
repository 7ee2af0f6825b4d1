"""Groups of workers that shrink when nodes are lost and grow when they come back: the policy behind min_workers.

Ray Train restarts the group from the last checkpoint at a size of its own choice between two bounds. Not every size
will do here: the global batch must divide among the workers, and a data task must find a CPU beside them, or the run
would hang. Nor does Ray ask for a checkpoint before it shuts a group down to start a larger one. So its choice is
narrowed in the one place where it is made, its scaling policy (see mrisr.training.groups).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState

from mrisr import cluster
from mrisr.training.groups import Waiting
from mrisr.training.run_folder import RunFolder
from mrisr.training.stopping import CHECKPOINT_FILE


class BatchSharingPolicy(ElasticScalingPolicy):
    """Ray's elastic policy, but for sizes that can share the batch and from a fresh look at the cluster.

    scaling_config: with num_workers=(min(counts), max(counts)). counts: the sizes that will do, largest first.
    """

    def __init__(
        self, scaling_config: ScalingConfig, counts: Sequence[int], task_cpus: float, run_folder: Path
    ) -> None:
        super().__init__(scaling_config)
        self._counts, self._task_cpus, self._run_folder = tuple(counts), task_cpus, run_folder
        self._waiting = Waiting(run_folder)
        # Before a change of size: the newest checkpoint when another was asked for; () while nothing is asked.
        self._asked_after: tuple[Path | None, ...] = ()

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        self._asked_after = ()
        self._waiting.look()
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, ResizeDecision):
            self._waiting.over()
        else:
            self._waiting.go_on(f"{min(self._counts)} workers and a data task")
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        if not self._asked_after:
            decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
            if isinstance(decision, ResizeDecision):
                # Ray would shut the group down now; a step of patience saves what it did since its last checkpoint.
                newest = RunFolder(self._run_folder).newest()
                with suppress(OSError):  # a full disk; the group then stays as it is
                    (self._run_folder / CHECKPOINT_FILE).touch()
                    self._asked_after = (newest,)
            return NoopDecision()
        if RunFolder(self._run_folder).newest() in self._asked_after:
            return NoopDecision()
        self._asked_after = ()
        reserved = self._get_reserved_resources()
        count = 0 if reserved is None else self._count_possible_workers(reserved)
        return NoopDecision() if count in (0, worker_group_state.num_workers) else self._get_resize_decision(count)

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        need = {name: amount for name, amount in self.scaling_config._resources_per_worker_not_none.items() if amount}
        places = sum(
            int(min(has.get(name, 0.0) / amount for name, amount in need.items()) + 1e-6)
            for has in reserved_resources.values()
        )
        nodes, share, gpu = cluster.nodes(), need["CPU"], "GPU" in need
        possible = (n for n in self._counts if n <= places and cluster.fits(nodes, n, share, gpu, self._task_cpus))
        return max(possible, default=0)

    def _get_reserved_resources(self) -> Any:
        # What is reserved is renewed every 20 s only, and a node that is gone would be waited for in vain for a minute.
        if time.monotonic() - self._latest_reserved_resources_query_time >= self.GET_RESERVED_RESOURCES_INTERVAL_S:
            with suppress(ray.exceptions.RayError):
                reserved = self._autoscaling_coordinator.get_reserved_resources
                ray.get(reserved.remote(self._requester_id, recompute=True), timeout=5)
        return super()._get_reserved_resources()
