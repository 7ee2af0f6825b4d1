"""What a rank does while no batch comes: it says whether the data tasks find a free CPU, and follows SIGTERM."""

from __future__ import annotations

from typing import Any

import ray

from mrisr import cluster
from mrisr.training.outcome import TerminatedWithoutData
from mrisr.training.progress import Tell
from mrisr.training.run_folder import RunFolder

# Seconds without a batch. A step that still gets its batch ends with a checkpoint, so SIGTERM waits that long.
PATIENCE_S = 10.0


class DataWait:
    """Called with the seconds that a rank has waited. Raises TerminatedWithoutData.

    Only the workers' CPUs are reserved for a run. If other work takes the rest, Ray lets the data tasks wait without a
    word. A probe, a task that asks for as much and does nothing, shows whether any could start.
    """

    def __init__(self, folder: RunFolder, cpus_per_task: float, tell: Tell) -> None:
        self._folder, self._cpus, self._tell = folder, cpus_per_task, tell
        self._probe: Any = None
        self._reported = False

    def __call__(self, seconds: float) -> None:
        if seconds < PATIENCE_S:
            self._probe = None
            return
        if self._folder.stop_request.exists():
            raise TerminatedWithoutData(f"stopped by SIGTERM while no data came; {self._folder.last_checkpoint}")
        if self._probe is None:
            # Not in the workers' placement group, where no CPU is left.
            options = {"num_cpus": self._cpus, "scheduling_strategy": "DEFAULT", **cluster.task_options()}
            self._probe = ray.remote(**options)(cluster.nothing).remote()
        elif seconds > cluster.SILENT_S and not self._reported and not ray.wait([self._probe], timeout=0)[0]:
            self._reported = True
            self._tell(
                f"{cluster.no_free_cpu(self._cpus, seconds)}; end that work, add a node, or start again with a smaller "
                "stream.cpus_per_task or resources.cpus_per_worker"
            )
