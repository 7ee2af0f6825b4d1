"""The number of trials that a cluster runs at the same time."""

from __future__ import annotations

from collections.abc import Sequence

from mrisr import cluster
from mrisr.config import Experiment
from mrisr.tuning.trial import DRIVER_CPUS


def trials_at_once(experiment: Experiment, cpus: float, gpus: float, nodes: Sequence[tuple[float, float]] = ()) -> int:
    """How many trials of this size a cluster can run at the same time.

    nodes: (logical CPUs, GPUs) of each machine, by default a single one. Raises cluster.ResourceError if
    `tuning.concurrent` trials can never be placed, or would move to CPUs although resources.gpus does not say so.
    """
    t, workers, task = experiment.tuning, experiment.resources.workers, experiment.stream.cpus_per_task
    (most_cpus, its_gpus), *others = sorted(nodes or [(cpus, gpus)], reverse=True)

    def beside_drivers(count: int) -> list[tuple[float, float]]:
        """The machines without the CPUs of `count` drivers, which are on the largest machine."""
        return [(most_cpus - count * DRIVER_CPUS, its_gpus), *others]

    single = cluster.divide(experiment, cpus - DRIVER_CPUS, gpus, beside_drivers(1))

    def share_of(count: int) -> cluster.Share | None:
        try:
            share = cluster.divide(experiment, cpus / count - DRIVER_CPUS, gpus // count)
        except cluster.ResourceError:
            return None
        # Trials that fit into the sum of all machines may not fit onto each single machine.
        placed = count == 1 or cluster.fits(beside_drivers(count), workers * count, share.cpus, share.gpu, task)
        return share if placed else None

    def allowed(count: int) -> bool:
        share = share_of(count)
        return share is not None and (experiment.resources.gpus is not None or share.gpu == single.gpu)

    if t.concurrent is None:
        for count in range(2, t.trials + 1):
            share = share_of(count)
            if share is None or share.gpu != single.gpu or share.cpus < 0.9 * single.cpus:
                return count - 1
        return t.trials
    if allowed(t.concurrent):
        return t.concurrent
    most = max((count for count in range(1, t.concurrent) if allowed(count)), default=1)
    what = f"tuning.concurrent = {t.concurrent} trials of {workers} workers"
    if share_of(t.concurrent) is not None:
        raise cluster.ResourceError(
            f"{what} would leave the {gpus:g} GPUs of the cluster idle and train on CPUs; use tuning.concurrent="
            f"{most} at most, or say resources.gpus=false"
        )
    raise cluster.ResourceError(
        f"{what} do not fit into {cpus:g} logical CPUs and {gpus:g} GPUs; what fits: tuning.concurrent={most} at "
        "most, or a smaller stream.cpus_per_task (0.5, say)"
    )
