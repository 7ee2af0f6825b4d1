"""What a run will do, in words and numbers, before anything starts: `mrisr train --dry-run`."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

from mrisr.config import Experiment
from mrisr.config.loading import dump_experiment
from mrisr.data.checks import open_store
from mrisr.data.splits import settle_splits
from mrisr.data.stream import AHEAD, group_bytes, object_store_bytes
from mrisr.engine.memory import peak_bytes
from mrisr.engine.schedule import updates_before
from mrisr.models import MDCSRN, build_critic
from mrisr.training.build import generator_config, patch_maker, step_config
from mrisr.training.precision import assumed_precision

# What libraries say who raise a plain RuntimeError: torch's CPU allocator and its asynchronous CUDA errors, cuBLAS and
# cuDNN, which allocate their workspace themselves, and NCCL, which buffers outside of torch's allocator.
_SAYS_SO = ("DefaultCPUAllocator: can't allocate memory", "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a device or on the CPU; the same step would fail again."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAYS_SO)


def memory_advice(experiment: Experiment, error: BaseException) -> str:
    """One message: what failed, the estimate of `--dry-run`, and the keys that lower it and are not set so yet."""
    micro_batch = experiment.micro_batch
    name, peak = max(estimated_peaks(experiment, micro_batch).items(), key=lambda item: item[1])
    same_run = []
    if not experiment.generator.recompute:
        same_run.append("generator.recompute=true")
    if experiment.schedule.total_steps > experiment.schedule.pretrain_steps and experiment.critic.samples_at_once != 1:
        same_run.append("critic.samples_at_once=1")
    other_run = ["training.micro_batch=1"] if micro_batch > 1 else []
    other_run += ["a smaller stream.patch_size", "mrisr train --fit-memory AMOUNT, which chooses the batch"]
    helps = f"{' or '.join(same_run)} for this run; " if same_run else ""
    return (
        f"a worker ran out of memory ({str(error).splitlines()[0][:300]}). The estimate for its largest kind of step, "
        f"{name}, is {peak / 2**30:.2f} GiB with {micro_batch} patches per forward pass, without kernel workspace. "
        f"What helps: {helps}as a new run (name=...) {', or '.join(other_run)}"
    )


# Estimates count live tensors; kernels' workspace, the allocator's rounding and the CUDA context come on top.
USABLE = 0.85
_UNITS = {"": 1, "B": 1, **{f"{p}iB": 2 ** (10 * i) for i, p in enumerate("KMGT", 1)},
          **{f"{p}B": 10 ** (3 * i) for i, p in enumerate("KMGT", 1)}}  # fmt: skip


def parse_bytes(text: str) -> int:
    """Bytes of `8GiB`, `7.5 GB`, `900MiB` or a plain number. Raises ValueError that says what the option takes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B)?\s*", text)
    if match is None or (match[2] or "") not in _UNITS or float(match[1]) <= 0:
        raise ValueError(f"--fit-memory {text!r} is no amount of memory; write 8GiB, 7.5GB or 900MiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def largest_batch(peak: Callable[[int], int], budget: int) -> int:
    """The largest n >= 1 with peak(n) <= budget; peak must not fall with n, and must grow in the end.

    It may be level at first, where something other than the batch needs most. Raises ValueError if not even 1 fits.
    """
    first = peak(1)
    if first > budget:
        raise ValueError(
            f"--fit-memory: a single patch needs {first / 2**30:.2f} GiB and {budget / 2**30:.2f} GiB are usable; set "
            "generator.recompute=true, training.precision=bf16, critic.kind=separable or a smaller stream.patch_size "
            "and validation.patch_size"
        )
    fits, too_many = 1, 2
    while peak(too_many) <= budget:
        fits, too_many = too_many, 2 * too_many
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if peak(middle) <= budget else (fits, middle)
    return fits


FEW = 4


def estimated_peaks(experiment: Experiment, micro_batch: int) -> dict[str, int]:
    """Peak bytes per kind of step of this experiment with that many patches per forward pass, and of a validation; see
    `peak_bytes`. Of a worker of the smallest group that the run may go on with, which accumulates the most.

    Beyond FEW patches by a straight line: activations grow with the patches, and counting hundreds would take minutes.
    """
    accumulates = experiment.training.batch_size > experiment.worker_counts[-1] * experiment.micro_batch

    def peaks(patches: int) -> dict[str, int]:
        return peak_bytes(
            generator_config(experiment),
            experiment.critic.kind if experiment.schedule.needs_critic else None,
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
    chosen = experiment.changed({"training.batch_size": workers, "training.micro_batch": None})
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
    schedule, steps = experiment.schedule, step_config(experiment)
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
    maker = patch_maker(experiment, splits["train"])
    on_cpus, on_gpus = (steps.batchnorm_over(workers, cuda) for cuda in (False, True))
    batchnorm = f"{on_cpus}" if on_cpus == on_gpus else f"{on_cpus}, on GPUs over all {on_gpus}"
    fewer = " or ".join(map(str, experiment.worker_counts[1:]))
    elastic = f", {fewer} while nodes are away" if fewer else ""
    lines = [
        f"volumes     {', '.join(f'{name} {len(names)}' for name, names in splits.items())}  in {store.path}",
        f"rows        {rows:,}: one volume degraded once ({experiment.degradation.describe()}), "
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
