"""The grid of a super-resolved volume: finer than its input's, over the same field of view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voxelstore import SourceVolume

#: An axis with voxels longer than this many times the others' is that of thick slices.
THICK = 1.2
#: Spacings that differ by less are equal.
SLACK = 0.01
#: NIfTI-1 counts the voxels of an axis in 16 bits.
LONGEST = 32_767


@dataclass(frozen=True)
class FinerGrid:
    """What is asked for: a factor of the number of voxels, or a spacing in mm; of the axes in the plane, or of each.

    factor, spacing: one number for the axes in the plane, or three numbers for the axes in the order of the file;
    exactly one of the two. Raises ValueError.
    """

    factor: tuple[float, ...] | None = None
    spacing: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.factor is None) == (self.spacing is None):
            raise ValueError("give either --factor or --spacing")
        numbers = self._numbers
        if len(numbers) not in (1, 3) or not all(np.isfinite(n) and n > 0 for n in numbers):
            raise ValueError(
                f"{self._option} {','.join(f'{n:g}' for n in numbers)}: give one number above 0, or three, one for "
                "each axis in the order of the file"
            )

    @classmethod
    def parse(cls, factor: str | None = None, spacing: str | None = None) -> FinerGrid:
        """From texts such as `2` and `0.5,0.5,1`; a factor of 2 without any. Raises ValueError."""
        if factor is None and spacing is None:
            return cls(factor=(2.0,))
        return cls(_numbers("--factor", factor), _numbers("--spacing", spacing))

    @property
    def _numbers(self) -> tuple[float, ...]:
        return self.factor or self.spacing or ()

    @property
    def _option(self) -> str:
        return "--factor" if self.factor is not None else "--spacing"

    def shape(self, volume: SourceVolume, trained_axes: Sequence[int] = (1, 2)) -> tuple[int, int, int]:
        """The number of voxels along the canonical axes. trained_axes: in the plane where all voxels are alike.

        The spacing becomes the field of view over a whole number of voxels, so it may differ a little from the one
        asked for. Raises ValueError for a coarser grid, and for the grid that the volume has.
        """
        numbers: list[float | None] = [None] * 3
        if len(self._numbers) == 3:
            for number, axis in zip(self._numbers, volume.stored_axes, strict=True):
                numbers[axis] = number
        else:
            for axis in in_plane(volume.spacing, trained_axes):
                numbers[axis] = self._numbers[0]
        shape = tuple(
            self._length(volume, axis, number) if number is not None else volume.voxels.shape[axis]
            for axis, number in enumerate(numbers)
        )
        if shape == volume.voxels.shape:
            raise ValueError(
                f"{volume.path}: its grid is the one that {self._option} asks for; --same-grid keeps the grid of a "
                "volume that is zero-filled already"
            )
        depth, height, width = shape
        return depth, height, width

    def _length(self, volume: SourceVolume, axis: int, number: float) -> int:
        factor = number if self.factor is not None else volume.spacing[axis] / number
        if factor < 1 - SLACK:
            raise ValueError(
                f"{volume.path}: {self._option} {number:g} is coarser than its voxels of {volume.spacing[axis]:.4g} mm "
                "along one axis; give a finer one"
            )
        length = volume.voxels.shape[axis]
        if factor < 1 + SLACK:
            return length
        if length * factor > LONGEST:
            raise ValueError(
                f"{volume.path}: {self._option} {number:g} makes more than the {LONGEST:,} voxels that a NIfTI file "
                f"has along an axis at most, from {length}; give a coarser one"
            )
        return round(length * factor)


def scaled_shape(shape: Sequence[int], factor: Sequence[float]) -> tuple[int, ...]:
    """The shape of a finer grid for an array. factor: of its last two axes, or of each of the three."""
    factors = factor if len(factor) == 3 else (1.0, *factor, *factor)
    if not all(each >= 1 and n * each <= LONGEST for n, each in zip(shape, factors, strict=True)):
        raise ValueError(
            f"factor = {list(factor)}: an axis must have as many voxels as the array's or more, and {LONGEST:,} at most"
        )
    return tuple(round(n * each) for n, each in zip(shape, factors, strict=True))


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(map(float, text.split(",")))
    except ValueError:
        raise ValueError(f"{option} {text}: is no number, nor three numbers such as 0.5,0.5,1") from None


def in_plane(spacing: Sequence[float], trained_axes: Sequence[int] = (1, 2)) -> tuple[int, ...]:
    """The canonical axes in the plane: all but that of thick slices; without thick slices the trained axes."""
    *others, thickest = sorted(range(3), key=lambda axis: spacing[axis])
    if spacing[thickest] > THICK * spacing[others[1]]:
        return tuple(sorted(others))
    return tuple(trained_axes)
