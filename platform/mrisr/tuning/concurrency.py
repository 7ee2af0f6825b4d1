"""How many trials a cluster runs at a time."""

from __future__ import annotations

from mrisr import cluster
from mrisr.config import Experiment
from mrisr.tuning.trial import DRIVER_CPUS


def trials_at_once(experiment: Experiment, cpus: float, gpus: float) -> int:
    """How many trials of this size a cluster runs at a time without taking the data tasks' room.

    Each has its workers, a data task and its own driver. Raises cluster.ResourceError, which says what would fit, for a
    trial or a `tuning.concurrent` that can never be placed.
    """
    t = experiment.tuning
    alone = cluster.divide(experiment, cpus - DRIVER_CPUS, gpus)

    def fits(count: int) -> cluster.Share | None:
        try:
            return cluster.divide(experiment, cpus / count - DRIVER_CPUS, gpus // count)
        except cluster.ResourceError:
            return None

    if t.concurrent is not None:
        if fits(t.concurrent) is None:
            most = max(count for count in range(1, t.concurrent) if fits(count) is not None)
            raise cluster.ResourceError(
                f"tuning.concurrent = {t.concurrent} trials of {experiment.resources.workers} workers do not fit into "
                f"{cpus:g} logical CPUs and {gpus:g} GPUs; what fits: tuning.concurrent={most} at most, or a smaller "
                "stream.cpus_per_task (0.5, say)"
            )
        return t.concurrent
    best = 1
    for count in range(2, t.trials + 1):
        share = fits(count)
        if share is None or share.gpu != alone.gpu or share.cpus < 0.9 * alone.cpus:
            break
        best = count
    return best
