"""Normalised root-mean-square error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def nrmse(
    reference: np.ndarray, estimate: np.ndarray, masks: Sequence[np.ndarray | None], data_range: float
) -> list[float]:
    """norm(reference - estimate) / norm(reference) per mask (euclidean convention); `data_range` has no effect. Raises
    ValueError where the reference is zero in every voxel of a mask.
    """
    figures = []
    for mask in masks:
        truth, found = (reference, estimate) if mask is None else (reference[mask], estimate[mask])
        if not np.any(truth):
            raise ValueError("NRMSE is not defined: the reference is zero in every voxel of the region")
        error, power = (np.mean(values**2, dtype=np.float64) for values in (truth - found, truth))
        figures.append(float(np.sqrt(error) / np.sqrt(power)))
    return figures
