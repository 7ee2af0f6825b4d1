"""Connecting to Ray, and dividing what a cluster has among workers and data tasks."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mrisr.config import Experiment

# Authentication is explicit because a token file left by an earlier local session turns
# it on in `ray start` but not in `ray job submit`; export RAY_AUTH_MODE=token to use tokens.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # Ray's processes inherit these. glibc would hand the memory of every step's tensors back to the kernel, and take it
    # again, page by page, in the next: on a CPU that is a quarter of a critic step at 2 x 64^3. Blocks of 32 MiB and
    # more it maps anew each time, unless it may not, and in every arena but the main one whatever it may.
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_ARENA_MAX": "1",
}


class ResourceError(RuntimeError):
    """A request that this cluster can never place. The message says what would fit."""


class Share(NamedTuple):
    """What each training worker gets. cpus: logical CPUs; gpu: whether it has one; data_cpus: for its data tasks."""

    cpus: float
    gpu: bool
    data_cpus: float


def connect() -> None:
    """Join the cluster of $RAY_ADDRESS or a running local one; otherwise start one in this process' name."""
    prepare_environment()
    import ray

    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    quiet()


def prepare_environment() -> None:
    """Settings that Ray and MLflow read when they are imported; what the user has set stays."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def quiet() -> None:
    """Keep the libraries' progress notes out of the log, in drivers and workers; warnings and errors stay.

    Ray Data's warning that no task can run yet is one of these notes here: `divide` has made room for the tasks, and
    two ranks' executors that share it wait for each other now and then.
    """
    reporting = sys.modules.get("ray.train.v2._internal.execution.context")
    # Ray names that module's logger after its file, so that `ray.train` does not reach it.
    names = ["ray.train", "ray.tune", "mlflow", "alembic", *([str(reporting.__file__)] if reporting else [])]
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # It prints a traceback of whatever it raises, and a locked database is told in a line by the one who meets it.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def divide(experiment: Experiment, cpus: float, gpus: float, nodes: Sequence[tuple[float, float]] = ()) -> Share:
    """Divide a cluster's logical CPUs and GPUs. Raises ResourceError if the workers can never be placed.

    nodes: (logical CPUs, GPUs) of each machine; by default one machine has them all. Workers that took every CPU would
    leave none to the data tasks that feed them, which hangs without an error; so at least one data task must fit beside
    them, and on one machine: what several machines have left does not add up. With resources.min_workers, for as many
    workers as fit now.
    """
    *larger, fewest = experiment.worker_counts
    for workers in larger:
        try:
            return _divide(experiment, workers, fewest, cpus, gpus, nodes or [(cpus, gpus)])
        except ResourceError:
            continue
    return _divide(experiment, fewest, fewest, cpus, gpus, nodes or [(cpus, gpus)])


def _divide(
    experiment: Experiment, workers: int, fewest: int, cpus: float, gpus: float, nodes: Sequence[tuple[float, float]]
) -> Share:
    want, task = experiment.resources, experiment.stream.cpus_per_task
    gpu = gpus >= fewest if want.gpus is None else want.gpus
    if gpu and gpus < workers:
        fewer = f"resources.workers={int(gpus)} or " if gpus >= 1 else ""
        raise ResourceError(
            f"resources.workers = {workers} with resources.gpus = true needs {workers} GPUs; the cluster has "
            f"{gpus:g}. Set {fewer}resources.gpus=false"
        )

    def placed(cents: int) -> bool:
        return fits(nodes, workers, cents / 100, gpu, task)

    room = (cpus - task) / workers
    share = want.cpus_per_worker
    if share is None:
        share = next((cents / 100 for cents in range(min(100, math.floor(room * 100)), 0, -1) if placed(cents)), 0.0)
    if share <= 0 or not fits(nodes, workers, share, gpu, task):
        most = next((cents / 100 for cents in range(math.floor(room * 100 + 1e-9), 0, -1) if placed(cents)), 0.0)
        on = f" on {len(nodes)} machines" if len(nodes) > 1 else ""
        raise ResourceError(
            f"{workers} workers of {max(share, 0.01):g} CPUs and a data task of {task:g} do not fit into "
            f"{cpus:g} logical CPUs{on}; what fits: resources.cpus_per_worker={most:.2f} at most, fewer "
            "resources.workers, or a smaller stream.cpus_per_task (0.5, say)"
        )
    return Share(share, gpu, data_share(cpus, share, workers, task))


def data_share(cpus: float, cpus_per_worker: float, workers: int, task: float) -> float:
    """Logical CPUs for the data tasks of each of `workers`, out of a cluster's `cpus`; at least one task's."""
    return max(task, (cpus - cpus_per_worker * workers) / workers)


def fits(nodes: Iterable[tuple[float, float]], workers: int, share: float, gpu: bool, task: float) -> bool:
    """Whether workers of `share` CPUs, packed onto machines as Ray packs them, leave a machine with room for a task."""
    room_for_task, unplaced = False, workers
    for cpus, gpus in sorted(nodes, reverse=True):
        here = min(unplaced, math.floor(cpus / share + 1e-9), int(gpus) if gpu else unplaced)
        unplaced -= here
        room_for_task = room_for_task or cpus - here * share >= task - 1e-9
    return unplaced == 0 and room_for_task


def nodes() -> list[tuple[float, float]]:
    """(logical CPUs, GPUs) of each living machine of the connected cluster that has CPUs."""
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(float(node["CPU"]), float(node.get("GPU", 0))) for node in found if node.get("CPU")]


def available() -> tuple[float, float]:
    """(logical CPUs, GPUs) of the connected cluster."""
    import ray

    total = ray.cluster_resources()
    return float(total.get("CPU", 0)), float(total.get("GPU", 0))
