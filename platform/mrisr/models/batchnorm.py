"""Updates of BatchNorm's running statistics: once a step for the whole batch, and not in a repeated forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import nn

BatchNorm = nn.BatchNorm3d | nn.SyncBatchNorm


def batchnorms(module: nn.Module) -> list[BatchNorm]:
    """Every BatchNorm (SyncBatchNorm too) within `module`, in order."""
    return [part for part in module.modules() if isinstance(part, BatchNorm)]


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """In the block, a training forward normalises by its batch and does not change the running statistics."""
    kept = [(norm, dict(norm.named_buffers(recurse=False))) for norm in batchnorms(module)]
    for norm, buffers in kept:
        # Scratch copies instead of momentum 0: 0 * inf would still turn the statistics into NaN.
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in kept:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


@contextmanager
def shared_update(module: nn.Module, index: int, count: int) -> Iterator[None]:
    """Around micro-batch `index` of `count`; the micro-batches together make ONE update of the running statistics.

    With the usual momentum m, the final statistics are (1 - m) * old + m * mean of the micro-batches' statistics. That
    is linear, so averaging over ranks gives the same result for any split of the batch. With share s = m / count,
    micro-batch i has momentum s / (1 - s * (count - 1 - i)), which the later ones reduce to s.
    """
    norms = batchnorms(module)
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        share = (0.1 if norm.momentum is None else norm.momentum) / count
        norm.momentum = share / (1.0 - share * (count - 1 - index))
        if index < count - 1 and norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()  # one update, one count
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter


def recomputation_contexts(
    module: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For checkpoint's context_fn: nothing around the forward, frozen statistics around its repetition."""
    return nullcontext(), frozen_statistics(module)
