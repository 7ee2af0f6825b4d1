"""What a run will do, in words and numbers, before anything starts: `mrisr train --dry-run`."""

from __future__ import annotations

from typing import NamedTuple

import torch

from mrisr.config import Experiment
from mrisr.config.loading import dump_experiment
from mrisr.models import MDCSRN, build_critic
from mrisr.precision import Computed, chosen
from mrisr.split_rule import settle_splits
from mrisr.stream import AHEAD, group_bytes, object_store_bytes
from mrisr.training.assembly import generator_config, patch_maker, schedule_of, step_config
from mrisr.training.claim import goes_on
from mrisr.training.fitting import USABLE, largest_batch, parse_bytes
from mrisr.training.memory import peak_bytes
from mrisr.training.schedule import updates_before
from mrisr.training.settled import recorded_precision
from mrisr.training.trainer import open_store

FEW = 4


class Assumed(NamedTuple):
    """In which precision a run is planned, and if that is not what its configuration says, why."""

    precision: Computed
    why: str = ""

    def __str__(self) -> str:
        return f"{self.precision}{self.why and ', '}{self.why}"


def assumed_precision(experiment: Experiment) -> Assumed:
    """What training.precision is: as it is given, as in the run that a start would go on with, or `precision_here`."""
    if experiment.training.precision == "auto" and goes_on(experiment):
        known = recorded_precision(experiment.run_folder)
        if known is not None:
            return Assumed(known, "as the run began")
    return precision_here(experiment)


def precision_here(experiment: Experiment) -> Assumed:
    """What training.precision is as it is given, or will be if the workers are like this machine."""
    precision, gpus = experiment.training.precision, experiment.resources.gpus
    if precision != "auto":
        return Assumed(precision)
    has_gpu = torch.cuda.is_available()
    if gpus and not has_gpu:
        return Assumed("fp32", "which needs more than bf16, since there is no GPU here to ask")
    device = torch.device("cuda" if has_gpu and gpus is not False else "cpu")
    return Assumed(chosen("auto", device), "if the workers are like this machine")


def estimated_peaks(experiment: Experiment, micro_batch: int) -> dict[str, int]:
    """Peak bytes per kind of step of this experiment with that many patches per forward pass, and of a validation; see
    `peak_bytes`. Of a worker of the smallest group that the run may go on with, which accumulates the most.

    Beyond FEW patches by a straight line: activations grow with the patches, and counting hundreds would take minutes.
    """
    accumulates = experiment.training.batch_size > experiment.worker_counts[-1] * experiment.micro_batch

    def peaks(patches: int) -> dict[str, int]:
        return peak_bytes(
            generator_config(experiment),
            experiment.critic.kind if schedule_of(experiment).needs_critic else None,
            experiment.stream.patch_size,
            patches,
            assumed_precision(experiment).precision,
            experiment.generator.recompute,
            experiment.critic.samples_at_once,
            validation_patch=experiment.validation.patch_size,
            ema=experiment.generator.ema_decay is not None,
            accumulates=accumulates,
        )

    if micro_batch <= FEW:
        return peaks(micro_batch)
    before, last = peaks(FEW - 1), peaks(FEW)
    return {name: last[name] + (micro_batch - FEW) * (last[name] - before[name]) for name in last}


def fitting_overrides(experiment: Experiment, memory: str) -> list[str]:
    """The overrides that make `experiment` use the largest batch whose estimate fits into `memory` on each worker.

    memory: such as 8GiB; USABLE of it is filled. Raises ValueError for text that is no amount, or too small a one.
    """
    workers = experiment.resources.workers
    # As what comes out of this: as many patches in a forward pass as a worker of the full group has.
    whole = experiment.training.model_copy(update={"batch_size": workers, "micro_batch": None})
    chosen = experiment.model_copy(update={"training": whole})
    known: dict[int, dict[str, int]] = {n: estimated_peaks(chosen, n) for n in range(1, FEW + 1)}

    def peak(patches: int) -> int:
        if patches <= FEW:
            return max(known[patches].values())
        last, before = known[FEW], known[FEW - 1]
        return max(last[name] + (patches - FEW) * (last[name] - before[name]) for name in last)

    fits = largest_batch(peak, int(USABLE * parse_bytes(memory)))
    return [f"training.batch_size={fits * workers}", "training.micro_batch=null"]


def describe_plan(experiment: Experiment) -> str:
    """The resolved configuration and the plan; needs the store, starts nothing. Raises ConfigError like `train`."""
    store = open_store(experiment)
    experiment = settle_splits(experiment, store)
    schedule, steps = schedule_of(experiment), step_config(experiment)
    stream, workers = experiment.stream, experiment.resources.workers
    splits = store.splits()
    subjects = len(splits["train"])
    patches = schedule.total_steps * steps.batch_size
    rows = -(-patches // stream.patches_per_row)
    updates = updates_before(schedule, schedule.total_steps)
    config = generator_config(experiment)
    networks = {"generator MDCSRN": MDCSRN(**config)}
    if schedule.needs_critic:
        kind = experiment.critic.kind
        networks[f"critic {kind}"] = build_critic(kind, stream.patch_size)  # type: ignore[assignment]
    peaks = estimated_peaks(experiment, steps.micro_batch)
    parameters = ", ".join(
        f"{name} {sum(p.numel() for p in network.parameters()):,}" for name, network in networks.items()
    )
    degradation = experiment.degradation.range()
    maker = patch_maker(experiment, splits["train"])
    on_cpus, on_gpus = (steps.batchnorm_over(workers, cuda) for cuda in (False, True))
    batchnorm = f"{on_cpus}" if on_cpus == on_gpus else f"{on_cpus}, on GPUs over all {on_gpus}"
    fewer = " or ".join(map(str, experiment.worker_counts[1:]))
    elastic = f", {fewer} while nodes are away" if fewer else ""
    lines = [
        f"volumes     {', '.join(f'{name} {len(names)}' for name, names in splits.items())}  in {store.path}",
        f"rows        {rows:,}: one volume degraded once ({degradation.describe()}), "
        f"{stream.patches_per_row} patches of {stream.patch_size}^3 each; "
        f"{rows / subjects:,.1f} epochs",
        f"steps       {schedule.total_steps:,} of {steps.batch_size} patches on {workers} workers{elastic} "
        f"({steps.micro_batch} per forward pass, BatchNorm over {batchnorm}): {updates.pretrain:,} L1, "
        f"{updates.critic:,} critic, {updates.generator:,} adversarial",
        f"parameters  {parameters}",
        f"memory      {', '.join(f'{name} {peak / 2**30:.2f} GiB' for name, peak in peaks.items())} per worker "
        f"({assumed_precision(experiment)}; live tensors, without kernel workspace), before sharding",
        f"stream      {object_store_bytes(maker, stream.rounds) / 2**30:.2f} GiB of Ray's object store at most: "
        f"{(1 + AHEAD) * stream.rounds} groups for each of {maker.plan.lanes} lanes, "
        f"{group_bytes(maker) / 2**20:.1f} MiB a group",
        f"validation  {experiment.validation.protocol} every {experiment.validation.every:,} steps on split "
        f"{experiment.validation.split!r}",
        f"run         {experiment.run_folder}",
    ]
    return f"{dump_experiment(experiment)}\n" + "\n".join(lines)
