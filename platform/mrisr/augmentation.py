"""Random changes of training volumes, so that a network also works on contrasts and orientations it has not seen.

Intensities change in the volume before its degradation, which is linear. Mirroring and exchanging axes commute with the
degradation up to its axes, and are done on patches. Uses numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np

from mrisr.settings import AsPair, check_bounds, setting

Interval = Annotated[tuple[float, float], AsPair()]
# Signal, as a share of the robust range, up to which inverted contrast rises from the background's 0.
INVERTED_RISE = 0.15


class Orientation(NamedTuple):
    """One of the 48 orientations of a cube: `np.flip(np.transpose(patch, order), mirrored)`."""

    order: tuple[int, ...]
    mirrored: tuple[int, ...]

    def apply(self, patch: np.ndarray) -> np.ndarray:
        """A view of `patch`, (P, P, P), in this orientation."""
        return np.flip(np.transpose(patch, self.order), self.mirrored)


class Contrast(NamedTuple):
    """One change of a volume's intensities, a function of voxel and position.

    gamma: exponent. inverted: bright becomes dark, background stays dark. bias: (3, 2), amplitude and phase of the
    logarithm of a multiplicative field, one half cosine along each axis.
    """

    gamma: float = 1.0
    inverted: bool = False
    bias: tuple[tuple[float, float], ...] = ((0.0, 0.0),) * 3

    def apply(self, part: np.ndarray, shape: tuple[int, ...], start: tuple[int, ...]) -> np.ndarray:
        """part: float32 voxels of a volume of `shape` from voxel `start` on, in normalised intensity (0 to about 1).
        Returns float32.
        """
        out = part
        if self.inverted:
            inside = np.clip(part, 0.0, 1.0)
            out = (1.0 - inside) * np.minimum(inside / INVERTED_RISE, 1.0)
        if self.gamma != 1.0:
            out = np.sign(out) * np.abs(out) ** np.float32(self.gamma)
        for axis, (amplitude, phase) in enumerate(self.bias):
            if amplitude:
                place = (start[axis] + np.arange(part.shape[axis]) + 0.5) / shape[axis]
                field = np.exp(amplitude * np.cos(np.pi * (place + phase))).astype(np.float32)
                out = out * field.reshape([-1 if a == axis else 1 for a in range(3)])
        return out.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Augmentation:
    """The `augmentation` section, off by default. Raises ValueError that names the key for invalid values."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    mirror: tuple[int, ...] = setting((), "axes along which patches are mirrored, each with probability 1/2")
    exchange: tuple[int, ...] = setting((), "axes that patches exchange at random, so degraded axes are any of them")
    gamma: Interval = setting((1.0, 1.0), "exponent of the normalised intensity, drawn from [low, high]")
    bias: float = setting(0.0, "bias field: largest change of log intensity along an axis", ge=0, le=1)
    inverted: float = setting(0.0, "share of rows whose contrast is inverted", ge=0, le=1)

    def __post_init__(self) -> None:
        for name in ("mirror", "exchange"):
            axes = getattr(self, name)
            if len({*axes}) != len(axes) or not {*axes} <= {0, 1, 2}:
                raise ValueError(f"augmentation.{name} = {list(axes)}: use each of the axes 0, 1 and 2 at most once")
        if len(self.exchange) == 1:
            raise ValueError(f"augmentation.exchange = {list(self.exchange)} exchanges nothing; name two or three axes")
        low, high = self.gamma
        if not 0 < low <= high:
            raise ValueError(f"augmentation.gamma = {[low, high]}: exponents are above 0, the lower end comes first")
        check_bounds(self, "augmentation")

    def contrast(self, rng: np.random.Generator) -> Contrast:
        """Draw a row's change of intensities. Every parameter is drawn, used or not, so that no draw depends on another
        setting.
        """
        gamma = float(np.exp(rng.uniform(*np.log(self.gamma))))
        inverted = bool(rng.random() < self.inverted)
        bias = [(self.bias * float(rng.uniform(-1.0, 1.0)), float(rng.uniform(-1.0, 1.0))) for _ in range(3)]
        return Contrast(gamma, inverted, tuple(bias))

    def orientation(self, rng: np.random.Generator) -> Orientation:
        """Draw a patch's orientation."""
        order, exchanged = [0, 1, 2], rng.permutation(3)
        chosen = sorted(self.exchange)
        for axis, other in zip(chosen, [axis for axis in exchanged if axis in chosen], strict=True):
            order[axis] = int(other)
        mirrored = rng.random(3) < 0.5
        return Orientation(tuple(order), tuple(axis for axis in sorted(self.mirror) if mirrored[axis]))
