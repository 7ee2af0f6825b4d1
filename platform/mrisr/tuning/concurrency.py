"""How many trials a cluster runs at a time."""

from __future__ import annotations

from collections.abc import Sequence

from mrisr import cluster
from mrisr.config import Experiment
from mrisr.tuning.trial import DRIVER_CPUS


def trials_at_once(experiment: Experiment, cpus: float, gpus: float, nodes: Sequence[tuple[float, float]] = ()) -> int:
    """How many trials of this size a cluster can run at a time.

    nodes: (logical CPUs, GPUs) of each machine; by default one machine has them all. A trial needs its workers, a data
    task and its driver. Raises cluster.ResourceError, which says what would fit, if a trial or `tuning.concurrent`
    trials can never be placed, or if sharing would move trials from GPUs to CPUs unasked.
    """
    t = experiment.tuning
    (most_cpus, its_gpus), *others = sorted(nodes or [(cpus, gpus)], reverse=True)

    def beside_drivers(count: int) -> list[tuple[float, float]]:
        """The machines, without the CPUs of `count` drivers on the largest."""
        return [(most_cpus - count * DRIVER_CPUS, its_gpus), *others]

    single = cluster.divide(experiment, cpus - DRIVER_CPUS, gpus, beside_drivers(1))

    def fits(count: int) -> cluster.Share | None:
        try:
            share = cluster.divide(experiment, cpus / count - DRIVER_CPUS, gpus // count)
            if count > 1:
                cluster.divide(
                    _as_one(experiment, count, share), cpus - count * DRIVER_CPUS, gpus, beside_drivers(count)
                )
            return share
        except cluster.ResourceError:
            return None

    def fits_unmoved(count: int) -> bool:
        share = fits(count)
        return share is not None and (experiment.resources.gpus is not None or share.gpu == single.gpu)

    if t.concurrent is not None:
        if fits_unmoved(t.concurrent):
            return t.concurrent
        most = max((count for count in range(1, t.concurrent) if fits_unmoved(count)), default=1)
        what = f"tuning.concurrent = {t.concurrent} trials of {experiment.resources.workers} workers"
        if fits(t.concurrent) is not None:
            raise cluster.ResourceError(
                f"{what} would leave the {gpus:g} GPUs of the cluster idle and train on CPUs; use tuning.concurrent="
                f"{most} at most, or say resources.gpus=false"
            )
        raise cluster.ResourceError(
            f"{what} do not fit into {cpus:g} logical CPUs and {gpus:g} GPUs; what fits: tuning.concurrent={most} at "
            "most, or a smaller stream.cpus_per_task (0.5, say)"
        )
    best = 1
    for count in range(2, t.trials + 1):
        share = fits(count)
        if share is None or share.gpu != single.gpu or share.cpus < 0.9 * single.cpus:
            break
        best = count
    return best


def _as_one(experiment: Experiment, count: int, share: cluster.Share) -> Experiment:
    """One experiment with the workers of `count` trials, to see if they fit onto the single machines too."""
    return experiment.changed({
        "resources.workers": experiment.resources.workers * count,
        "resources.min_workers": None,
        "resources.cpus_per_worker": share.cpus,
        "resources.gpus": share.gpu,
        "training.batch_size": experiment.training.batch_size * count,
        "training.strategy": "fsdp",  # the one worker of `single` is no longer alone
    })  # fmt: skip
