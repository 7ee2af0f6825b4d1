"""One affine intensity map per subject, and the position of its foreground."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

LOW_PERCENTILE = 0.1  # of the whole volume
HIGH_PERCENTILE = 99.9  # of the foreground
MASK_BLOCK = 8  # edge of a block of the coarse foreground mask, in voxels
SLAB_VOXELS = 2**19  # voxels that are converted at a time
BLOCK_SHARE = 0.1  # a block is foreground when this share of its voxels is


@dataclass(frozen=True)
class IntensityMap:
    """The affine map from physical to normalised intensities: `low` to 0, `high` to 1, without clipping."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.low, self.high]).all() and self.low < self.high):
            raise ValueError(f"intensity map low={self.low}, high={self.high}: must be finite, low below high")

    @property
    def no_signal(self) -> float:
        """The normalised value of physical intensity 0."""
        return -self.low / (self.high - self.low)

    def normalise(self, physical: np.ndarray) -> np.ndarray:
        """Physical intensities, any shape, to float32 in about [0, 1]."""
        out = np.empty(physical.shape, np.float32)
        low, scale = np.float32(self.low), np.float32(1.0 / (self.high - self.low))
        # Slab by slab: the second operation finds the result of the first one in the cache.
        step = max(1, len(out) * SLAB_VOXELS // max(1, out.size))
        for start in range(0, len(out), step):
            part = out[start : start + step]
            np.subtract(physical[start : start + step], low, out=part, dtype=np.float32)
            part *= scale
        return out

    def restore(self, normalised: np.ndarray) -> np.ndarray:
        """Normalised intensities, any shape, to float32 physical ones."""
        out = np.multiply(normalised, np.float32(self.high - self.low), dtype=np.float32)
        out += np.float32(self.low)
        return out


def intensity_map(physical: np.ndarray) -> IntensityMap:
    """The robust intensity map of a volume. physical: (D, H, W) real, finite, not constant. Raises ValueError.

    low: the 0.1st percentile of the volume. high: the 99.9th percentile of the voxels above Otsu's threshold, so it
    does not depend on the share of background or on a few bright vessels. Above 4 million voxels, every second one
    along each axis is used.
    """
    sample = physical[::2, ::2, ::2] if physical.size > 4_000_000 else physical
    lowest, highest = float(physical.min()), float(physical.max())
    if not (np.isfinite([lowest, highest]).all() and lowest < highest):
        raise ValueError(f"intensities from {lowest} to {highest}: must be finite and not constant")
    low = float(np.percentile(sample, LOW_PERCENTILE))
    foreground = sample[sample > otsu_threshold(sample)]
    high = float(np.percentile(foreground, HIGH_PERCENTILE)) if foreground.size else highest
    # An almost constant volume has no robust range; use its full range.
    return IntensityMap(low, high) if low < high else IntensityMap(lowest, highest)


def otsu_threshold(values: np.ndarray, bins: int = 256) -> float:
    """The threshold that best separates real `values` into two classes (Otsu 1979), up to their 99.9th percentile."""
    low, high = float(values.min()), float(np.percentile(values, HIGH_PERCENTILE))
    if not low < high:
        return low
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    weight = np.cumsum(counts, dtype=np.float64)
    moment = np.cumsum(counts * centres)
    below, above = weight[:-1], weight[-1] - weight[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (moment[:-1] / below - (moment[-1] - moment[:-1]) / above) ** 2
    return float(edges[1 + int(np.argmax(np.nan_to_num(between)))])


def foreground(physical: np.ndarray) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
    """The region of the head (or of the brain of a skull-stripped volume). physical: (D, H, W) real.

    Returns the coarse mask, bool, one value per block of 8^3 voxels, and its bounding box, half-open, in voxels. A
    block counts by its share of voxels above half of Otsu's threshold: in full-head volumes, bright fat raises the
    threshold above grey matter. Only the largest connected part is kept, with its holes filled.
    """
    sample = physical[::2, ::2, ::2] if physical.size > 4_000_000 else physical
    background = float(np.percentile(sample, LOW_PERCENTILE))
    bright = physical > background + 0.5 * (otsu_threshold(sample) - background)
    share = _block_mean(bright, MASK_BLOCK)
    mask = largest_part(share >= BLOCK_SHARE)
    box = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        blocks = np.flatnonzero(mask.any(axis=others))
        stop = min((int(blocks[-1]) + 1) * MASK_BLOCK, physical.shape[axis])
        box.append((int(blocks[0]) * MASK_BLOCK, stop))
    return mask, tuple(box)


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest 6-connected part of a bool mask with its holes filled; all True for an empty mask."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return np.ones_like(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(ndimage.binary_fill_holes(labels == int(np.argmax(sizes))), dtype=bool)


def _block_mean(mask: np.ndarray, block: int) -> np.ndarray:
    """Share of True per block. A block that exceeds the volume is averaged over the voxels inside."""
    sums = mask.astype(np.float32)
    for axis in range(3):
        starts = np.arange(0, mask.shape[axis], block)
        lengths = np.diff(np.append(starts, mask.shape[axis]))
        sums = np.add.reduceat(sums, starts, axis=axis)
        sums /= np.expand_dims(lengths, tuple(a for a in range(3) if a != axis)).astype(np.float32)
    return sums
