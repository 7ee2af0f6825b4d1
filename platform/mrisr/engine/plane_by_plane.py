"""A network's forward pass over a whole volume, a few planes at a time: the same result, at a memory of a few planes.

Every layer gets each plane once. A 3x3x3 convolution adds a plane's contributions to three planes of its output, which
are complete one plane later, so each such layer lags one plane behind its input. Where outputs of different lags meet,
in a sum or a concatenation, the earlier ones wait. Nothing is computed twice, and no borders of tiles show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def forward_by_planes(network: nn.Module, volume: Tensor, planes: int = 1) -> Iterator[Tensor]:
    """The output of `network` for a whole volume, in pieces along its longest axis. Run it without gradients.

    network: (1, 1, D, H, W) to the same shape, in eval mode. It may consist of 3x3x3 and 1x1x1 convolutions (stride 1,
    zero padding that keeps the shape), concatenations of channels and elementwise functions; see `runs_by_planes`.
    volume: (D, H, W), of which `planes` planes at a time are moved to the network's device. Yields (d, H', W') on that
    device, with the longest axis first. Raises ValueError for another layer or an output of another shape.
    """
    device = next(network.parameters(), volume).device
    axis = longest_axis(volume.shape)
    source = volume.movedim(axis, 0)
    mode = PlaneByPlane(source.shape, axis)
    begin = done = 0
    while done < len(source):
        with mode:
            output = network(source[begin : begin + planes].to(device)[None, None])
        begin += planes
        done += output.shape[2]
        # Every layer passes its last plane on in a call of its own.
        calls_too_many = begin > len(source) + planes * (mode.layers + 1)
        kept = (*output.shape[:2], *output.shape[3:]) == (1, 1, *source.shape[1:])
        if not kept or done > len(source) or calls_too_many:
            raise ValueError(f"the network must keep the shape {tuple(source.shape)}; it made {tuple(output.shape)}")
        if output.shape[2]:
            yield output[0, 0]


def longest_axis(shape: Sequence[int]) -> int:
    """The axis along which a volume runs: its planes are the smallest."""
    return max(range(len(shape)), key=lambda axis: shape[axis])


def runs_by_planes(network: nn.Module) -> bool:
    """Whether `forward_by_planes` gives what the network gives for a small volume of noise."""
    noise = torch.rand((7, 5, 6), generator=torch.Generator().manual_seed(0))
    noise = noise.to(next(network.parameters(), noise).device)
    whole = network(noise[None, None])
    try:
        found = torch.cat(list(forward_by_planes(network, noise)))
    except (ValueError, RuntimeError):  # torch raises RuntimeError for shapes that do not fit
        return False
    return whole.shape[2:] == found.shape and torch.allclose(found, whole[0, 0], rtol=1e-3, atol=1e-4, equal_nan=True)


class PlaneByPlane(TorchFunctionMode):
    """Within it, a network gets the next planes of a volume, and returns the planes of its output that are complete.

    Tensors are (1, C, n, H, W) with any n, also 0. The network is called until all planes of the output are there; with
    no planes left, each call moves the last ones one layer further. What layers keep belongs to the place of their call
    within a forward. shape: (D, H, W), with the planes' axis first; axis: where the network has this axis.
    """

    def __init__(self, shape: Sequence[int], axis: int = 0) -> None:
        super().__init__()
        self._depth, self._plane, self._axis = shape[0], tuple(shape[1:]), axis
        self._kept: list[Any] = []
        self._call = 0

    def __enter__(self) -> PlaneByPlane:
        self._call = 0
        return super().__enter__()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.conv3d:
            return self._convolution(*args, **(kwargs or {}))
        images = [one for arg in args for one in _listed(arg) if self._is_image(one)]
        if len(images) > 1:
            aligned = self._keep(lambda: Alignment(len(images)))(images)
            ready = {id(image): planes for image, planes in zip(images, aligned, strict=True)}
            args = [
                [ready.get(id(one), one) for one in arg] if isinstance(arg, list | tuple) else ready.get(id(arg), arg)
                for arg in args
            ]
        return func(*args, **(kwargs or {}))

    @property
    def layers(self) -> int:
        """How many places keep something: 3x3x3 convolutions, sums and concatenations."""
        return len(self._kept)

    def _is_image(self, value: object) -> bool:
        return isinstance(value, Tensor) and value.ndim == 5 and tuple(value.shape[3:]) == self._plane

    def _keep(self, make: Callable[[], Any]) -> Any:
        """What this place of the forward keeps from call to call."""
        if self._call == len(self._kept):
            self._kept.append(make())
        self._call += 1
        return self._kept[self._call - 1]

    def _convolution(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> Tensor:  # fmt: skip
        size = weight.shape[2]
        plain = all(_triple(value) == (one,) * 3 for value, one in ((stride, 1), (dilation, 1), (padding, size // 2)))
        if not plain or groups != 1 or tuple(weight.shape[2:]) not in ((1, 1, 1), (3, 3, 3)):
            raise ValueError(
                f"a convolution with kernel {tuple(weight.shape[2:])}, stride {stride}, padding {padding}, dilation "
                f"{dilation} and {groups} groups; only 1x1x1 and 3x3x3 with stride 1 and zero padding run by planes"
            )
        planes = x[0].transpose(0, 1)  # (n, C, H, W), a view
        taps = weight.movedim(2 + self._axis, 2)
        if size == 3:
            output = self._keep(lambda: Convolution(self._depth))(planes, taps, bias)
        else:
            output = F.conv2d(planes, taps[:, :, 0], bias) if len(planes) else None
        if output is None:
            return x.new_empty((1, len(weight), 0, *self._plane))
        return output.transpose(0, 1)[None]


class Convolution:
    """A 3x3x3 convolution with zero padding that gets each plane of its input once.

    A plane contributes to the output's planes before, at and after its own place. One 2-D convolution with three times
    the channels computes all three: on CPUs faster than a 3-D convolution of three planes, and no input is kept.
    """

    def __init__(self, depth: int) -> None:
        self._depth, self._received = depth, 0
        self._open: tuple[Any, Any] = (0.0, 0.0)  # sums so far of the output's planes `received - 1` and `received`

    def __call__(self, planes: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """planes: (n, C_in, H, W); weight: (C_out, C_in, 3, 3, 3) with the planes' axis first; bias: (C_out,). Returns
        the planes that are complete now, (m, C_out, H, W), or None.
        """
        if not len(planes):
            return self._last()
        width = len(weight)
        stacked = weight.flip(2).permute(2, 0, 1, 3, 4).flatten(0, 1)
        shift = None if bias is None else F.pad(bias, (width, width))
        products = F.conv2d(planes, stacked, shift, padding=1)
        complete = []
        for place in range(len(planes)):
            before, here, after = products[place : place + 1].split(width, 1)
            if self._received:
                complete.append(self._open[0] + before)
            self._open = (self._open[1] + here, after.clone())  # without the other two, which share its memory
            self._received += 1
        return _joined(complete, 0) if complete else None

    def _last(self) -> Tensor | None:
        if self._received < self._depth:
            return None
        self._received = -1  # nothing comes after the last plane
        return self._open[0]


class Alignment:
    """Several inputs of one function, which wait until each has the same planes."""

    def __init__(self, count: int) -> None:
        self._waiting: list[list[Tensor]] = [[] for _ in range(count)]

    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Add the next planes of every input, (1, C, n, H, W) with its own n. Returns the planes that all have."""
        for waiting, image in zip(self._waiting, images, strict=True):
            if image.shape[2]:
                waiting.append(image)
        count = min(sum(image.shape[2] for image in waiting) for waiting in self._waiting)
        return [_take(waiting, count) if count else image[:, :, :0]
                for waiting, image in zip(self._waiting, images, strict=True)]  # fmt: skip


def _take(waiting: list[Tensor], count: int) -> Tensor:
    """Remove the first `count` planes, (1, C, count, H, W)."""
    taken = []
    while count:
        image = waiting.pop(0)
        if image.shape[2] > count:
            image, rest = image[:, :, :count], image[:, :, count:]
            waiting.insert(0, rest)
        taken.append(image)
        count -= image.shape[2]
    return _joined(taken, 2)


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _listed(argument: Any) -> Sequence[Any]:
    return argument if isinstance(argument, list | tuple) else [argument]


def _triple(value: Any) -> tuple[Any, ...]:
    return (value,) * 3 if isinstance(value, int) else tuple(value)
