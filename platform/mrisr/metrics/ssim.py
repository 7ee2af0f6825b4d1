"""Structural similarity (Wang et al. 2004)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WINDOW = 7
SLAB_PLANES = 16


def ssim(
    reference: np.ndarray, estimate: np.ndarray, masks: Sequence[np.ndarray | None], data_range: float
) -> list[float]:
    """Mean of the SSIM map over each mask, or over the voxels whose window lies inside the volume."""
    similarity = ssim_map(reference, estimate, data_range)
    inner = (slice(WINDOW // 2, -(WINDOW // 2)),) * 3
    return [float(similarity[inner if mask is None else mask].mean(dtype=np.float64)) for mask in masks]


def ssim_map(
    reference: np.ndarray, estimate: np.ndarray, data_range: float = 1.0, slab: int = SLAB_PLANES
) -> np.ndarray:
    """Local structural similarity: scikit-image's, with a uniform window of 7^3 voxels.

    reference, estimate: (D, H, W) float32 or float64; the result has their shape and dtype. float32 differs from
    float64 by less than 1e-4 in a voxel and 1e-6 in the mean. The map is made in slabs of `slab` planes plus the
    window's reach, with the same values: 256x320x320 takes 110 MB beside its result instead of 1 GB. Raises ValueError
    if an axis is shorter than the window.
    """
    from skimage.metrics import structural_similarity  # lazy: takes half a second

    if min(reference.shape) < WINDOW:
        raise ValueError(f"SSIM's window of {WINDOW} voxels does not fit into a volume of shape {reference.shape}")
    result = np.empty(reference.shape, np.result_type(reference.dtype, np.float32))
    planes, reach = reference.shape[0], WINDOW // 2
    for start in range(0, planes, slab):
        stop = min(start + slab, planes)
        # Every slab holds at least one window. scikit-image reflects at the borders of the volume.
        low = max(0, min(start - reach, planes - WINDOW))
        high = min(planes, max(stop + reach, low + WINDOW))
        _, part = structural_similarity(
            reference[low:high], estimate[low:high], win_size=WINDOW, data_range=data_range, full=True
        )
        result[start:stop] = part[start - low : stop - low]
    return result
