"""The peak memory of a step without running it: all tensors are fake, and only their bytes are counted."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mrisr.engine.networks import Networks, with_optimizers
from mrisr.engine.objectives import CriticObjective
from mrisr.engine.plane_by_plane import forward_by_planes, runs_by_planes
from mrisr.engine.schedule import Phase
from mrisr.engine.step import TERMS, MicroBatch, generate
from mrisr.engine.step_settings import StepConfig
from mrisr.models import build_critic, build_generator
from mrisr.models.critic import WIDTH
from mrisr.models.torch_private import TorchDispatchMode, fake_tensors


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all living storages, and their peak, while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in out if isinstance(out, tuple | list) else (out,):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is freed. Views share a storage, so they add nothing."""
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def peak_of(self, run: Callable[[], object]) -> int:
        self.peak = self.live
        run()
        return self.peak


@contextmanager
def counting() -> Iterator[LiveBytes]:
    """In the block, tensors are fake and their bytes are counted. Raises MemoryUnknownError."""
    with fake_tensors(), LiveBytes() as counter:
        yield counter


@dataclass(frozen=True)
class MemorySettings:
    """What the memory of a step depends on.

    generator: its configuration; critic: its kind, None for pretraining only. accumulates: a step has several
    micro-batches, so the gradients of the first exist during the others. validation_patch: edge of the validation cubes
    in voxels, None without validation. critic_width: channels of its first convolution.
    """

    generator: Mapping[str, Any]
    critic: str | None
    patch_size: int
    step: StepConfig
    accumulates: bool = False
    validation_patch: int | None = None
    critic_width: int = WIDTH


def peak_bytes(settings: MemorySettings) -> dict[str, int]:
    """Peak bytes per kind of step: `pretrain`, `inference`, `validation`; with a critic also `critic` and `generator`.

    Included are parameters, gradients, Adam's moments, the moving average and the generator's copy for evaluation.
    Kernel workspace and allocator slack are not. Inference is a forward pass of that copy; validation applies it to one
    cube. Raises MemoryUnknownError.
    """
    step, passes = settings.step, 2 if settings.accumulates else 1
    generator, evaluated = (build_generator(settings.generator) for _ in range(2))
    generator.channels_last = evaluated.channels_last = step.channels_last
    generator.recompute = step.recompute
    objective = None
    if settings.critic is not None:
        critic = build_critic(settings.critic, settings.patch_size, settings.critic_width)
        objective = CriticObjective(critic, step.gp_weight, step.critic_samples)
    with counting() as counter:
        for module in (generator, evaluated.eval(), objective):
            make_fake(module)
        networks = Networks(generator, objective, {}, torch.device("cpu"), "single", step.micro_batch)
        networks = with_optimizers(networks, step)

        def train(phase: Phase) -> None:
            lr, hr = (torch.empty(step.micro_batch, 1, *[settings.patch_size] * 3) for _ in range(2))
            for index in range(passes):
                TERMS[phase](networks, step, MicroBatch(0, index, passes, 0, lr, hr))["loss"].backward()

        def infer(patch_size: int, count: int) -> None:
            # As large as a training batch: a target and an input.
            lr, _ = (torch.empty(count, 1, *[patch_size] * 3) for _ in range(2))
            with torch.no_grad():
                generate(evaluated, lr, step.precision)

        peaks = {}
        for phase in Phase if settings.critic is not None else (Phase.PRETRAIN,):
            peaks[str(phase)] = counter.peak_of(lambda phase=phase: train(phase))  # type: ignore[misc]
            for optimizer in networks.optimizers.values():
                optimizer.zero_grad(set_to_none=True)
        peaks["inference"] = counter.peak_of(lambda: infer(settings.patch_size, step.micro_batch))
        if (cube := settings.validation_patch) is not None:
            peaks["validation"] = counter.peak_of(lambda: infer(cube, 1))
    return peaks


@torch.no_grad()
def whole_volume_bytes(generator: Mapping[str, Any], shape: Sequence[int], precision: str) -> int:
    """Peak bytes of the generator on a whole volume, plane by plane on a CPU, or in one piece if it cannot.

    The volume and its result are not counted, nor is kernel workspace. shape: of the volume, which counts by its planes
    only. Raises MemoryUnknownError.
    """
    network = build_generator(generator).eval()
    by_planes = runs_by_planes(network)
    network.channels_last = True
    depth, *plane = sorted(shape, reverse=True)
    with counting() as counter, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        make_fake(network)
        volume = torch.empty(plane)
        if by_planes:  # the layers keep the most before the second plane of the output
            return counter.peak_of(lambda: list(islice(forward_by_planes(network, volume.expand(depth, -1, -1)), 3)))
        return counter.peak_of(lambda: network(volume.expand(1, 1, depth, -1, -1)))


def make_fake(module: nn.Module | None) -> None:
    """Within `counting`: replace all parameters and buffers by fake ones of the same shapes."""
    for part in module.modules() if module is not None else ():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(torch.empty(parameter.shape)))
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype))
