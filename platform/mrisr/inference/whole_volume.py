"""Super-resolution of whole volumes: one pass of the network, plane by plane."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mrisr.engine.plane_by_plane import forward_by_planes, longest_axis, runs_by_planes
from mrisr.engine.precision import precision_on

Progress = Callable[[int, int], None]  # (planes done, planes in total)

#: Planes in a call of the network. On a CPU one plane stays in the cache; a GPU is busy with more.
PLANES = {"cpu": 1, "cuda": 8}


@dataclass(frozen=True)
class InferenceOptions:
    """How whole volumes are super-resolved.

    device: where the generator is moved and stays; None: where it is. precision: `bf16` is autocast, `auto` chooses
    bf16 on devices with native bf16; float32 never uses TF32. channels_last: memory layout of a generator that has such
    a switch, faster on CPUs and for bf16.
    """

    device: str | None = None
    precision: str = "fp32"
    channels_last: bool = True


def superresolve_array(
    generator: nn.Module,
    volume: np.ndarray,
    options: InferenceOptions = InferenceOptions(),
    progress: Progress | None = None,
) -> np.ndarray:
    """Super-resolve one volume of any size: the generator's output for the whole volume, in a memory of a few planes.

    generator: (1, 1, D, H, W) -> (1, 1, D, H, W); runs in eval mode without gradients, then its modes are restored. One
    whose layers cannot run plane by plane (see `forward_by_planes`) gets the volume in one piece. volume: (D, H, W),
    normalised, on the full grid (zero-filled). progress: called after every piece. Returns (D, H, W) float32,
    deterministic. Raises ValueError for a volume that is not 3-D and for a network that changes the shape.
    """
    if volume.ndim != 3:
        raise ValueError(f"volume must be (D, H, W), found shape {volume.shape}")
    if options.device is not None:
        generator.to(options.device)
    source = torch.from_numpy(np.array(volume, np.float32))
    first = next(generator.parameters(), None)
    device = first.device if first is not None else torch.device(options.device or "cpu")
    half = precision_on(options.precision, device) == "bf16"
    axis = longest_axis(volume.shape)
    result = np.empty_like(source.numpy())
    target, done = np.moveaxis(result, axis, 0), 0
    # cudnn.flags() allows TF32 by default.
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with _evaluating(generator, options.channels_last), exact:
        by_planes = runs_by_planes(generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            if by_planes:
                pieces = forward_by_planes(generator, source, PLANES.get(device.type, 1))
            else:
                pieces = _whole(generator, source.to(device))
            for piece in pieces:
                target[done : done + len(piece)] = piece.float().cpu()
                done += len(piece)
                if progress is not None:
                    progress(done, len(target))
    return result


def _whole(generator: nn.Module, volume: torch.Tensor) -> Iterator[torch.Tensor]:
    output = generator(volume[None, None])[0, 0]
    if output.shape != volume.shape:
        raise ValueError(f"the generator must keep the shape: {tuple(volume.shape)} became {tuple(output.shape)}")
    yield output.movedim(longest_axis(volume.shape), 0)


@contextmanager
def _evaluating(generator: nn.Module, channels_last: bool) -> Iterator[None]:
    """Eval mode, the given memory layout, no gradients; then every submodule's mode and the layout are restored. With
    one channel both layouts have the same strides, so the network cannot read the layout from its input.
    """
    modes = [(part, part.training) for part in generator.modules()]
    layout = getattr(generator, "channels_last", None)
    generator.eval()
    if isinstance(layout, bool):
        generator.channels_last = channels_last  # type: ignore[assignment]
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
        if isinstance(layout, bool):
            generator.channels_last = layout  # type: ignore[assignment]
