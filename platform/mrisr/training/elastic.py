"""Groups of workers that shrink when nodes are lost and grow when they come back: the trainer behind min_workers.

Ray Train restarts the group from the last checkpoint at a size of its own choice between two bounds. Not every size
will do here: the global batch must divide among the workers, and a data task must find a CPU beside them, or the run
would hang. So the choice is narrowed in the one place where Ray makes it, its scaling policy, which has no public hook
(ray 2.60; the project pins that release).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

from mrisr import cluster


class BatchSharingPolicy(ElasticScalingPolicy):
    """Ray's elastic policy, but for sizes that can share the batch and from a fresh look at the cluster."""

    def __init__(self, scaling_config: ScalingConfig, counts: Sequence[int], task_cpus: float) -> None:
        super().__init__(scaling_config)
        self._counts, self._task_cpus = tuple(counts), task_cpus
        self._waiting = False

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        need = {name: amount for name, amount in self.scaling_config._resources_per_worker_not_none.items() if amount}
        places = sum(
            int(min(has.get(name, 0.0) / amount for name, amount in need.items()) + 1e-6)
            for has in reserved_resources.values()
        )
        nodes, share, gpu = cluster.nodes(), need["CPU"], "GPU" in need
        possible = (n for n in self._counts if n <= places and cluster.fits(nodes, n, share, gpu, self._task_cpus))
        count = max(possible, default=0)
        if not count and not self._waiting:
            print(f"waiting for nodes: no room for {min(self._counts)} workers and a data task", flush=True)
        self._waiting = not count
        return count

    def _get_reserved_resources(self) -> Any:
        # What is reserved is renewed every 20 s only, and a node that is gone would be waited for in vain for a minute.
        if time.monotonic() - self._latest_reserved_resources_query_time >= self.GET_RESERVED_RESOURCES_INTERVAL_S:
            with suppress(ray.exceptions.RayError):
                reserved = self._autoscaling_coordinator.get_reserved_resources
                ray.get(reserved.remote(self._requester_id, recompute=True), timeout=5)
        return super()._get_reserved_resources()


class ElasticTrainer(TorchTrainer):
    """A TorchTrainer whose group has one of `counts` workers, as many as the cluster holds at the time.

    scaling_config, among the options of TorchTrainer, must have num_workers=(min(counts), max(counts)).
    """

    def __init__(self, *args: Any, counts: Sequence[int], task_cpus: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._policy = BatchSharingPolicy(options["scaling_config"], counts, task_cpus)

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        return super()._initialize_and_run_controller(**(options | {"scaling_policy": self._policy}))
