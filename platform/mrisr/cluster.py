"""Connecting to Ray, and dividing a cluster among workers and data tasks."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mrisr.config import Experiment

# Ray's authentication is explicit: a token file of an earlier local session turns it on in `ray start` but not in
# `ray job submit`. To use tokens, export RAY_AUTH_MODE=token.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
# For training workers on CPUs: without it, glibc gives the memory of every step's tensors back to the kernel and takes
# it again, page by page, in the next step. It does so with blocks of 32 MiB and more (mmap_max), and in every arena but
# the main one (arena_max). glibc reads this when a process starts; `mallopt` in a worker comes too late for its arenas.
KEEP_MEMORY = {
    "GLIBC_TUNABLES": f"glibc.malloc.trim_threshold={2**32}:glibc.malloc.mmap_max=0:glibc.malloc.arena_max=1"
}


# A machine: logical CPUs, GPUs.
Node = tuple[float, float]


class ResourceError(RuntimeError):
    """Workers that this cluster can never hold. The message says what would fit."""


class Share(NamedTuple):
    """What each training worker gets. cpus: logical CPUs; gpu: whether it has one; data_cpus: for its data tasks."""

    cpus: float
    gpu: bool
    data_cpus: float

    @property
    def bundle(self) -> dict[str, float]:
        """A worker's resources by Ray's names."""
        return {"CPU": self.cpus, "GPU": 1} if self.gpu else {"CPU": self.cpus}


def connect() -> None:
    """Join the cluster of $RAY_ADDRESS or a running local one; otherwise start one that ends with this process."""
    prepare_environment()
    import ray

    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    quiet()


def prepare_environment() -> None:
    """Set what Ray and MLflow read when they are imported. What the user has set stays."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def worker_environment(gpu: bool) -> dict[str, str]:
    """What training workers have in their environment besides: KEEP_MEMORY on CPUs, unless the user has chosen."""
    chosen = any(key == "GLIBC_TUNABLES" or key.startswith("MALLOC_") for key in os.environ)
    return {} if gpu or chosen else KEEP_MEMORY


def task_options() -> dict[str, Any]:
    """Ray's options that keep KEEP_MEMORY from the tasks of a worker, which inherit its environment."""
    without = {key: "" for key, value in KEEP_MEMORY.items() if os.environ.get(key) == value}
    return {"runtime_env": {"env_vars": without}} if without else {}


def quiet() -> None:
    """Keep the libraries' progress notes out of the log, in drivers and workers; warnings and errors stay."""
    # Ray names some loggers after their files, so that they are not below `ray.train`.
    by_file = [name for name in logging.root.manager.loggerDict if "/ray/train/" in name]
    for name in ("ray.train", "ray.tune", "mlflow", "alembic", *by_file):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns that no task can run yet. `divide` has made room for the tasks, but two ranks that share it may wait.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # It prints a traceback of whatever it raises. A locked database is reported in one line elsewhere.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def divide(experiment: Experiment, cpus: float, gpus: float, nodes: Sequence[Node] = ()) -> Share:
    """Divide a cluster's logical CPUs and GPUs among the largest number of workers that fits.

    nodes: (logical CPUs, GPUs) of each machine; by default one machine has them all. At least one data task must fit
    beside the workers, on one machine: if the workers took every CPU, the run would hang without an error. Raises
    ResourceError if not even the smallest number of workers fits.
    """
    *larger, fewest = experiment.worker_counts
    for workers in larger:
        with suppress(ResourceError):
            return _divide_among(workers, experiment, cpus, gpus, nodes or [(cpus, gpus)])
    return _divide_among(fewest, experiment, cpus, gpus, nodes or [(cpus, gpus)])


def _divide_among(workers: int, experiment: Experiment, cpus: float, gpus: float, nodes: Sequence[Node]) -> Share:
    want, task = experiment.resources, experiment.stream.cpus_per_task
    gpu = gpus >= experiment.worker_counts[-1] if want.gpus is None else want.gpus
    if gpu and gpus < workers:
        fewer = f"resources.workers={int(gpus)} or " if gpus >= 1 else ""
        raise ResourceError(
            f"resources.workers = {workers} with resources.gpus = true needs {workers} GPUs; the cluster has "
            f"{gpus:g}. Set {fewer}resources.gpus=false"
        )

    def largest(limit: float) -> float:
        """The largest share up to a limit that fits, in hundredths of a CPU; 0 if none does."""
        hundredths = range(math.floor(limit * 100 + 1e-9), 0, -1)
        return next((n / 100 for n in hundredths if fits(nodes, workers, n / 100, gpu, task)), 0.0)

    room = (cpus - task) / workers
    share = want.cpus_per_worker or largest(min(1.0, room))
    if share > 0 and fits(nodes, workers, share, gpu, task):
        return Share(share, gpu, data_share(cpus, share, workers, task))
    on = f" on {len(nodes)} machines" if len(nodes) > 1 else ""
    raise ResourceError(
        f"{workers} workers of {max(share, 0.01):g} CPUs and a data task of {task:g} do not fit into {cpus:g} logical "
        f"CPUs{on}; what fits: resources.cpus_per_worker={largest(room):.2f} at most, fewer resources.workers, or a "
        "smaller stream.cpus_per_task (0.5, say)"
    )


def data_share(cpus: float, cpus_per_worker: float, workers: int, task: float) -> float:
    """Logical CPUs for the data tasks of each worker; at least one task's."""
    return max(task, (cpus - cpus_per_worker * workers) / workers)


def fits(nodes: Iterable[Node], workers: int, share: float, gpu: bool, task: float) -> bool:
    """Whether one machine has room for a data task beside workers of `share` CPUs, packed as Ray packs them."""
    room_for_task, unplaced = False, workers
    for cpus, gpus in sorted(nodes, reverse=True):
        here = min(unplaced, math.floor(cpus / share + 1e-9), int(gpus) if gpu else unplaced)
        unplaced -= here
        room_for_task = room_for_task or cpus - here * share >= task - 1e-9
    return unplaced == 0 and room_for_task


def nodes() -> list[Node]:
    """The living machines of the connected cluster that have CPUs."""
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(float(node["CPU"]), float(node.get("GPU", 0))) for node in found if node.get("CPU")]


def available() -> Node:
    """(logical CPUs, GPUs) of the connected cluster."""
    import ray

    total = ray.cluster_resources()
    return float(total.get("CPU", 0)), float(total.get("GPU", 0))
