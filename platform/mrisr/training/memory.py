"""The memory of a worker: the estimate for an experiment, the largest batch that fits, and advice after an OOM
error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

import torch

from mrisr.config import Experiment
from mrisr.engine.memory import MemorySettings, peak_bytes, whole_volume_bytes
from mrisr.models.torch_private import MemoryUnknownError
from mrisr.training.build import step_config
from mrisr.training.precision import assumed_precision

# Messages of RuntimeErrors for failed allocations of torch's CPU allocator, asynchronous CUDA, cuBLAS, cuDNN and NCCL.
_SAYS_SO = ("DefaultCPUAllocator: can't allocate memory", "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Whether a memory allocation failed, on a GPU or on the CPU. Repeating the same step would fail again."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAYS_SO)


def memory_advice(experiment: Experiment, error: BaseException) -> str:
    """What failed, the estimate that `--dry-run` prints, and the keys that reduce it."""
    micro_batch = experiment.micro_batch
    try:
        name, peak = max(estimated_peaks(experiment, micro_batch).items(), key=lambda item: item[1])
        estimate = (
            f"The estimate for its largest kind of step, {name}, is {peak / 2**30:.2f} GiB with {micro_batch} patches "
            "per forward pass, without kernel workspace"
        )
    except MemoryUnknownError as unknown:
        estimate = f"What it needs is unknown: {unknown}"
    same_run = []
    if not experiment.generator.recompute:
        same_run.append("generator.recompute=true")
    if experiment.schedule.total_steps > experiment.schedule.pretrain_steps and experiment.critic.samples_at_once != 1:
        same_run.append("critic.samples_at_once=1")
    other_run = ["training.micro_batch=1"] if micro_batch > 1 else []
    other_run += ["a smaller stream.patch_size", "mrisr train --fit-memory AMOUNT, which chooses the batch"]
    helps = f"{' or '.join(same_run)} for this run; " if same_run else ""
    return (
        f"a worker ran out of memory ({str(error).splitlines()[0][:300]}). {estimate}. "
        f"What helps: {helps}as a new run (name=...) {', or '.join(other_run)}"
    )


# The share of the memory that estimates may fill: they leave out kernel workspace, rounding and the CUDA context.
USABLE = 0.85
_UNITS = {"": 1, "B": 1, **{f"{p}iB": 2 ** (10 * i) for i, p in enumerate("KMGT", 1)},
          **{f"{p}B": 10 ** (3 * i) for i, p in enumerate("KMGT", 1)}}  # fmt: skip


def parse_bytes(text: str) -> int:
    """Bytes of `8GiB`, `7.5 GB`, `900MiB` or a plain number. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B)?\s*", text)
    if match is None or (match[2] or "") not in _UNITS or float(match[1]) <= 0:
        raise ValueError(f"--fit-memory {text!r} is not an amount of memory; write 8GiB, 7.5GB or 900MiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def largest_batch(peak: Callable[[int], int], budget: int) -> int:
    """The largest n >= 1 with peak(n) <= budget; peak never decreases. Raises ValueError if n = 1 does not fit."""
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
    """Peak bytes per kind of step with `micro_batch` patches per forward pass; see `peak_bytes`.

    The estimate is for a worker of the smallest permitted group, which accumulates the most micro-batches.
    """
    return _peaks_by_patches(experiment)(micro_batch)


def peaks_text(experiment: Experiment, micro_batch: int) -> str:
    """`estimated_peaks` as text, or why there is no estimate."""
    try:
        peaks = estimated_peaks(experiment, micro_batch)
    except MemoryUnknownError as error:
        return f"unknown: {error}"
    return ", ".join(f"{name} {peak / 2**30:.2f} GiB" for name, peak in peaks.items()) + " per worker"


def whole_volume_text(experiment: Experiment, shapes: Iterable[tuple[int, ...]]) -> str:
    """What the generator's layers keep on the volume with the largest planes, as text, or why that is unknown."""
    largest = max(shapes, key=lambda shape: math.prod(sorted(shape)[:2]))
    try:
        precision = assumed_precision(experiment).precision
        layers = whole_volume_bytes(experiment.generator.architecture, largest, precision)
    except MemoryUnknownError as error:
        return f"unknown: {error}"
    return f"{layers / 2**30:.2f} GiB beside the volume, for one of {'x'.join(map(str, largest))}"


def _peaks_by_patches(experiment: Experiment) -> Callable[[int], dict[str, int]]:
    """Peak bytes by the number of patches; beyond FEW patches by linear extrapolation, since counting takes minutes."""
    settings = MemorySettings(
        experiment.generator.architecture,
        experiment.critic.kind if experiment.schedule.needs_critic else None,
        experiment.stream.patch_size,
        replace(step_config(experiment), precision=assumed_precision(experiment).precision),
        accumulates=experiment.training.batch_size > experiment.worker_counts[-1] * experiment.micro_batch,
        validation_patch=experiment.validation.patch_size,
        critic_width=experiment.critic.width,
    )

    @cache
    def counted(patches: int) -> dict[str, int]:
        return peak_bytes(replace(settings, step=replace(settings.step, micro_batch=patches)))

    def peaks(patches: int) -> dict[str, int]:
        if patches <= FEW:
            return counted(patches)
        before, last = counted(FEW - 1), counted(FEW)
        return {name: last[name] + (patches - FEW) * (last[name] - before[name]) for name in last}

    return peaks


def fitting_overrides(experiment: Experiment, memory: str) -> list[str]:
    """The overrides with which `experiment` uses the largest batch whose estimate fits into `memory` on each worker.

    memory: such as 8GiB; USABLE of it is filled. Raises ValueError for invalid text, or if one patch does not fit.
    """
    workers = experiment.resources.workers
    # The resulting run has as many patches in a forward pass as a worker of the full group.
    peaks = _peaks_by_patches(experiment.changed({"training.batch_size": workers, "training.micro_batch": None}))
    budget = int(USABLE * parse_bytes(memory))
    try:
        fits = largest_batch(lambda patches: max(peaks(patches).values()), budget)
    except MemoryUnknownError as error:
        raise ValueError(f"--fit-memory: {error}; give training.batch_size instead") from None
    return [f"training.batch_size={fits * workers}", "training.micro_batch=null"]
