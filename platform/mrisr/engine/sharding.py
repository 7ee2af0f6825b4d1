"""Shards networks over ranks, with the same code for CPU (gloo) and CUDA (nccl), one rank or many."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mrisr.engine.step_settings import STRATEGIES
from mrisr.models.batchnorm import batchnorms


def world_size() -> int:
    """The number of ranks; 1 without an initialised process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without an initialised process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def float32_convolutions(tf32: bool) -> None:
    """Set whether this process's GPU computes float32 convolutions in TF32 (10 bits of mantissa) or with 23 bits.

    torch's default for convolutions is TF32. That gives three digits for the critic and its penalty, which must be
    float32. Without a GPU this function changes nothing.
    """
    cudnn: Any = torch.backends.cudnn  # torch makes its attributes at run time
    # The old switch too: cudnn.flags, which other libraries use, raises if the switches differ.
    cudnn.allow_tf32 = tf32
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32" if tf32 else "ieee"


def device_for_worker(gpu: bool, tf32: bool = False) -> torch.device:
    """This worker's GPU by LOCAL_RANK (set by Ray Train and torchrun), made current; else the CPU.

    gpu: whether a GPU was reserved for this worker; Ray shows GPUs also to a process that reserved none. tf32: passed
    to float32_convolutions. Raises RuntimeError for a reserved GPU that torch cannot use.
    """
    float32_convolutions(tf32)
    if not gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"a GPU is reserved for this worker, but torch {torch.__version__} cannot use it; install torch for the "
            "driver, or set resources.gpus=false"
        )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def shard(module: nn.Module, strategy: str, device: torch.device | None = None) -> nn.Module:
    """Move `module` to `device` and shard it over the ranks, as ONE unit.

    `fsdp`: FSDP2, which changes the module in place and makes its parameters DTensors; `ddp`: DistributedDataParallel;
    `single`: one process. Without a process group `fsdp` and `ddp` mean `single`. Every rank must pass the same
    weights. Raises ValueError for an unknown strategy, and for `single` with several ranks.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"training.strategy is {strategy!r}; choose one of {', '.join(STRATEGIES)}")
    if strategy == "single" and world_size() > 1:
        raise ValueError(
            f"training.strategy is 'single' with {world_size()} workers; choose fsdp or ddp, or one worker"
        )
    device = device or torch.device("cpu")
    module.to(device)
    if strategy == "single" or not dist.is_initialized():
        return module
    if strategy == "fsdp":
        fully_shard(module, mesh=init_device_mesh(device.type, (world_size(),)))
        return module
    # Each rank keeps its own BatchNorm statistics until average_batchnorm: no broadcast of rank 0's in every forward.
    parameters = inspect.signature(DistributedDataParallel).parameters
    # renamed in 2.13
    keep_own = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    options: dict[str, Any] = {keep_own: False, "device_ids": [device] if device.type == "cuda" else None}
    return DistributedDataParallel(module, **options)


def plain(module: nn.Module) -> nn.Module:
    """The module without DistributedDataParallel's wrapper, so its names are the same under every strategy."""
    return module.module if isinstance(module, DistributedDataParallel) else module


@contextmanager
def accumulating(module: nn.Module, last: bool) -> Iterator[None]:
    """Around a micro-batch's forward and backward: ranks exchange gradients only for the last micro-batch."""
    if isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
        return
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    yield


def release(module: nn.Module) -> None:
    """Free an FSDP module's gathered parameters: this copy would be outdated after the next update."""
    if isinstance(module, FSDPModule):
        module.reshard()


def gather_rows(values: list[float], device: torch.device) -> list[list[float]]:
    """Every rank's `values` in rank order, on every rank, as float64. The length must be equal on every rank."""
    row = torch.tensor(values, dtype=torch.float64, device=device)
    if world_size() == 1:
        return [row.tolist()]
    rows = [torch.empty_like(row) for _ in range(world_size())]
    dist.all_gather(rows, row)
    return torch.stack(rows).tolist()


def largest(value: float, device: torch.device) -> float:
    """The largest of all ranks' values. Every rank must call it and gets the result."""
    return max(row[0] for row in gather_rows([value], device))


def on_every_rank(own: bool, device: torch.device) -> bool:
    """Whether `own` is true on every rank. Every rank must call it."""
    return all(value for (value,) in gather_rows([float(own)], device))


def gather_texts(own: str) -> list[str]:
    """Every rank's text in rank order, on every rank. Every rank must call it."""
    texts = [own]
    if world_size() > 1:
        texts = [""] * world_size()
        dist.all_gather_object(texts, own)
    return texts


def average_batchnorm(generator: nn.Module) -> None:
    """Average BatchNorm's running statistics over the ranks, in place. Every rank must call it.

    They are linear in the micro-batches' statistics (see models.batchnorm.shared_update). So averaging now gives the
    same result as averaging after every step.
    """
    buffers = [
        buffer
        for norm in batchnorms(generator)
        for buffer in (norm.running_mean, norm.running_var)
        if buffer is not None
    ]
    if world_size() == 1 or not buffers:
        return
    flat = torch.cat([buffer.detach().flatten() for buffer in buffers])
    dist.all_reduce(flat)
    flat /= world_size()
    for buffer, value in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(value.view_as(buffer))


def averaged_tensors(generator: nn.Module) -> dict[str, Tensor]:
    """Parameters and BatchNorm's running statistics by name: averaged parameters do not fit the latest statistics."""
    tensors = [*plain(generator).named_parameters(), *plain(generator).named_buffers()]
    return {name: tensor for name, tensor in tensors if tensor.is_floating_point()}


def whole(tensor: Tensor) -> Tensor:
    """A plain CPU copy of a tensor that may be sharded. Every rank must call it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().to("cpu", copy=True)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, sharing its memory; any other tensor unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_state(generator: nn.Module) -> dict[str, Tensor]:
    """The whole state_dict as plain CPU copies on every rank. Every rank must call average_batchnorm, then this."""
    release(generator)
    return {name: whole(value) for name, value in plain(generator).state_dict().items()}
