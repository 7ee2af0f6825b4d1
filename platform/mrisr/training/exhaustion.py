"""Memory that did not suffice: told from other errors, and what helps against it."""

from __future__ import annotations

import torch

from mrisr.config import Experiment

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
    from mrisr.planning import estimated_peaks

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
