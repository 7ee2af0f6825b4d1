"""Peak signal-to-noise ratio."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def peak_signal_to_noise(reference: np.ndarray, estimate: np.ndarray, data_range: float = 1.0) -> float:
    """PSNR in dB of float arrays of one shape, of any number of axes; inf for identical ones."""
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(data_range**2 / np.mean((reference - estimate) ** 2, dtype=np.float64)))


def psnr(
    reference: np.ndarray, estimate: np.ndarray, masks: Sequence[np.ndarray | None], data_range: float
) -> list[float]:
    """PSNR in dB per mask, over the mask's voxels; see `mrisr.metrics.Figure` for the arguments."""
    return [
        peak_signal_to_noise(reference, estimate, data_range)
        if mask is None
        else peak_signal_to_noise(reference[mask], estimate[mask], data_range)
        for mask in masks
    ]
