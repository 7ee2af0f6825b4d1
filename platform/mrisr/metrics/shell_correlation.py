"""Fourier shell correlation: up to which spatial frequency two volumes agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import fft


class ShellCorrelation(NamedTuple):
    """Correlation of two spectra per shell; frequency in cycles/mm for a spacing in mm."""

    frequency: np.ndarray
    correlation: np.ndarray


def fourier_shell_correlation(
    reference: np.ndarray,
    estimate: np.ndarray,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    shells: int | None = None,
) -> ShellCorrelation:
    """Normalised correlation of two volumes' spectra in shells of equal spatial frequency.

    reference, estimate: (D, H, W). spacing: voxel edge per axis (mm). shells: how many; the first is centred on zero,
    the last ends at the Nyquist frequency of the coarsest axis; default half the shortest axis.
    FSC = Re(sum F conj(G)) / sqrt(sum |F|^2 sum |G|^2), Harauz and van Heel 1986; nan where there is no power.
    """
    if reference.shape != estimate.shape:
        raise ValueError(f"reference and estimate differ in shape: {reference.shape} and {estimate.shape}")
    count = shells if shells is not None else min(reference.shape) // 2
    if count < 1:
        raise ValueError(f"shells must be at least 1, found {count}")
    width = 0.5 / max(spacing) / count
    spectra = fft.rfftn(reference), fft.rfftn(estimate)
    weight = half_spectrum_weight(reference.shape[2])
    sums = np.zeros((3, count + 1))
    for plane, shell in enumerate(_shells(reference.shape, spacing, width, count)):
        f, g = spectra[0][plane], spectra[1][plane]
        for row, value in enumerate(((f * g.conj()).real, np.abs(f) ** 2, np.abs(g) ** 2)):
            sums[row] += np.bincount(shell.ravel(), (value * weight).ravel(), minlength=count + 1)
    power = np.sqrt(sums[1, :count] * sums[2, :count])
    correlation = np.divide(sums[0, :count], power, out=np.full(count, np.nan), where=power > 0)
    return ShellCorrelation(np.arange(count) * width, correlation)


def half_spectrum_weight(length: int) -> np.ndarray:
    """How many samples of the full spectrum each column of `rfft` stands for: (length // 2 + 1,) float32.

    Two, except one for k = 0 and, if `length` is even, for Nyquist.
    """
    weight = np.full(length // 2 + 1, 2.0, np.float32)
    weight[0] = 1.0
    if length % 2 == 0:
        weight[-1] = 1.0
    return weight


def _shells(shape: Sequence[int], spacing: Sequence[float], width: float, count: int) -> Iterator[np.ndarray]:
    """Per plane of the half spectrum the shell index of each sample; `count` beyond the last shell."""
    first, second = (fft.fftfreq(n, d) for n, d in zip(shape[:2], spacing[:2], strict=True))
    last = fft.rfftfreq(shape[2], spacing[2])
    in_plane = second[:, None] ** 2 + last[None, :] ** 2
    for frequency in first:
        yield np.minimum(np.floor(np.sqrt(frequency**2 + in_plane) / width + 0.5).astype(np.int64), count)
