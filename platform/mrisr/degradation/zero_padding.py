"""A volume on a finer grid over the same field of view: its k-space, padded with zeros."""

from __future__ import annotations

import numpy as np
from scipy import fft

from mrisr.degradation.parameters import Degradation


def zero_padded(volume: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Fourier interpolation of (D, H, W) to `shape`, no axis shorter than before, float32 on the same scale.

    The outer faces of the outermost voxels keep their place, so voxel j of M lies at (j + 1/2) N / M - 1/2 of the N
    voxels before. Raises ValueError for a shorter axis.
    """
    if any(new < old for old, new in zip(volume.shape, shape, strict=True)):
        raise ValueError(f"a grid of {shape} is coarser than the volume's {volume.shape}")
    volume = np.asarray(volume, np.float32)
    for axis, (old, new) in enumerate(zip(volume.shape, shape, strict=True)):
        if new > old:
            volume = _padded_along(volume, axis, new)
    return volume


def acquired_band(shape: tuple[int, ...], finer: tuple[int, ...]) -> Degradation:
    """The band of a volume of `shape` within the spectrum of its zero-padding to `finer`, for `enforce_consistency`.

    It ends before the Nyquist frequency of `shape`, whose sample is not known by its phase.
    """
    axes = tuple(axis for axis, (old, new) in enumerate(zip(shape, finer, strict=True)) if new > old)
    return Degradation("truncate", axes, tuple(1 - shape[axis] / finer[axis] for axis in axes))


def _padded_along(volume: np.ndarray, axis: int, new: int) -> np.ndarray:
    old = volume.shape[axis]
    k = np.arange(old // 2 + 1)
    factor = new / old * np.exp(2j * np.pi * k / old * (old / new - 1) / 2)
    if old % 2 == 0:
        factor[-1] /= 2  # one sample for the Nyquist frequency of both signs
    factor = factor.astype(np.complex64).reshape([-1 if one == axis else 1 for one in range(volume.ndim)])
    return fft.irfft(fft.rfft(volume, axis=axis) * factor, n=new, axis=axis).astype(np.float32, copy=False)


def nearest(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A mask on the grid of `zero_padded`: each voxel that of the nearest one before."""
    for axis, (old, new) in enumerate(zip(mask.shape, shape, strict=True)):
        if new != old:
            mask = mask.take(((2 * np.arange(new) + 1) * old) // (2 * new), axis)
    return mask
