"""Connecting to Ray, and dividing what a cluster has among workers and data tasks."""

from __future__ import annotations

import logging
import math
import os
import sys
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
    # Ray's processes inherit these two. glibc would hand the memory of every step's tensors back to the kernel, and
    # take it again, page by page, in the next: on a CPU that is a tenth of a step.
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),  # the largest that glibc takes
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


def divide(experiment: Experiment, cpus: float, gpus: float) -> Share:
    """Divide a cluster's logical CPUs and GPUs. Raises ResourceError if the workers can never be placed.

    Workers that took every CPU would leave none to the data tasks that feed them, which hangs without an error; so at
    least one data task must fit beside them. With resources.min_workers, for as many workers as fit now.
    """
    *larger, fewest = experiment.worker_counts
    for workers in larger:
        try:
            return _divide(experiment, workers, fewest, cpus, gpus)
        except ResourceError:
            continue
    return _divide(experiment, fewest, fewest, cpus, gpus)


def _divide(experiment: Experiment, workers: int, fewest: int, cpus: float, gpus: float) -> Share:
    want, task = experiment.resources, experiment.stream.cpus_per_task
    gpu = gpus >= fewest if want.gpus is None else want.gpus
    if gpu and gpus < workers:
        raise ResourceError(
            f"resources.workers = {workers} with resources.gpus = true needs {workers} GPUs; the cluster has "
            f"{gpus:g}. Set resources.workers={int(gpus)} or resources.gpus=false"
        )
    room = (cpus - task) / workers
    share = want.cpus_per_worker
    if share is None:
        share = min(1.0, math.floor(room * 100) / 100)
    if share <= 0 or share > room + 1e-9:
        raise ResourceError(
            f"{workers} workers of {max(share, 0.01):g} CPUs and a data task of {task:g} do not fit into "
            f"{cpus:g} logical CPUs; what fits: resources.cpus_per_worker={max(room, 0.0):.2f} at most, fewer "
            "resources.workers, or a smaller stream.cpus_per_task (0.5, say)"
        )
    return Share(share, gpu, data_share(cpus, share, workers, task))


def data_share(cpus: float, cpus_per_worker: float, workers: int, task: float) -> float:
    """Logical CPUs for the data tasks of each of `workers`, out of a cluster's `cpus`; at least one task's."""
    return max(task, (cpus - cpus_per_worker * workers) / workers)


def available() -> tuple[float, float]:
    """(logical CPUs, GPUs) of the connected cluster."""
    import ray

    total = ray.cluster_resources()
    return float(total.get("CPU", 0)), float(total.get("GPU", 0))
