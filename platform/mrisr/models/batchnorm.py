"""How BatchNorm's running statistics move: once a step for the whole batch, never in a repeated forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batchnorms(module: nn.Module) -> list[_BatchNorm]:
    """Every BatchNorm (SyncBatchNorm too) within `module`, in order."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Within it a training forward normalises by its batch and leaves the running statistics alone."""
    norms = batchnorms(module)
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        # Scratch copies instead of momentum 0: 0 * inf would still turn the statistics into NaN.
        norm._buffers.update(
            {name: None if buffer is None else buffer.clone() for name, buffer in norm._buffers.items()}
        )
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)


@contextmanager
def shared_update(module: nn.Module, index: int, count: int) -> Iterator[None]:
    """Micro-batch `index` of `count` that together make ONE update of the running statistics with the usual
    momentum m.

    After all of them the statistics are (1 - m) * old + m * mean of the micro-batches' statistics. That mean
    is linear, so averaging the statistics over ranks gives the same for any split of the batch over ranks.
    With share s = m / count, micro-batch i weighs s / (1 - s * (count - 1 - i)): the later ones then shrink
    it to s.
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
    """For checkpoint's context_fn: the forward as it is, its repetition with statistics frozen."""
    return nullcontext(), frozen_statistics(module)
