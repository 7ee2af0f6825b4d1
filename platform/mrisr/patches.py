"""Where patches are cut: uniformly among the places that hold enough foreground. Pure numpy."""

from __future__ import annotations

import numpy as np

Corner = tuple[int, int, int]


def foreground_share(mask: np.ndarray, block: int, shape: tuple[int, ...], patch: int) -> np.ndarray:
    """Share of foreground in the patch at each candidate corner, a multiple of `block` or the last that fits.

    mask: (ceil(D/block), ...) bool, True where the block holds foreground; shape: (D, H, W) in voxels.
    Returns float64 in [0, 1], one value per candidate corner (see `candidate_offsets` per axis). Computed from a
    summed-area table, so the cost does not depend on the patch size.
    """
    table = np.pad(mask.astype(np.int64), ((1, 0),) * 3).cumsum(0).cumsum(1).cumsum(2)
    lo, hi = [], []
    for n in shape:
        offsets = candidate_offsets(n, patch, block)
        lo.append(offsets // block)
        hi.append(-(-(offsets + patch) // block))

    def at(d: np.ndarray, h: np.ndarray, w: np.ndarray) -> np.ndarray:
        return table[np.ix_(d, h, w)]

    total = (
        at(hi[0], hi[1], hi[2]) - at(lo[0], hi[1], hi[2]) - at(hi[0], lo[1], hi[2]) - at(hi[0], hi[1], lo[2])
        + at(lo[0], lo[1], hi[2]) + at(lo[0], hi[1], lo[2]) + at(hi[0], lo[1], lo[2]) - at(lo[0], lo[1], lo[2])
    )  # fmt: skip
    d, h, w = np.ix_(hi[0] - lo[0], hi[1] - lo[1], hi[2] - lo[2])
    return total / (d * h * w)


def candidate_offsets(length: int, patch: int, block: int) -> np.ndarray:
    """Offsets 0, block, 2*block, ... and the last one at which the patch still fits: 20, 8, 8 -> [0, 8, 12]."""
    last = length - patch
    if last < 0:
        raise ValueError(
            f"stream.patch_size = {patch} is larger than an axis of {length} voxels; "
            "choose a smaller patch, or convert with a larger --min-size so that such volumes are left out"
        )
    return np.unique(np.append(np.arange(0, last + 1, block), last))


def sample_corners(
    mask: np.ndarray,
    block: int,
    shape: tuple[int, ...],
    patch: int,
    count: int,
    min_foreground: float,
    rng: np.random.Generator,
) -> list[Corner]:
    """Draw `count` corners of (patch, patch, patch) cubes, every one inside the volume.

    A candidate on the coarse grid is drawn uniformly among those whose foreground share is at least `min_foreground`,
    then moved by less than one block in every direction, so that patches do not sit on a lattice. If no candidate
    reaches the share (a volume with little foreground), the best tenth of the candidates is used instead.
    """
    share = foreground_share(mask, block, shape, patch)
    good = np.flatnonzero(share >= min_foreground)
    if good.size == 0:
        keep = max(1, share.size // 10)
        good = np.sort(np.argpartition(share.ravel(), -keep)[-keep:])
    chosen = np.unravel_index(rng.choice(good, size=count), share.shape)
    offsets = [candidate_offsets(n, patch, block)[i] for n, i in zip(shape, chosen, strict=True)]
    jitter = rng.integers(-(block // 2), block - block // 2, size=(3, count))
    moved = [np.clip(o + j, 0, n - patch) for o, j, n in zip(offsets, jitter, shape, strict=True)]
    return [(int(d), int(h), int(w)) for d, h, w in zip(*moved, strict=True)]


def cut(volume: np.ndarray, corner: Corner, patch: int) -> np.ndarray:
    """The cube of edge `patch` at `corner`: a view, (patch, patch, patch)."""
    return volume[tuple(slice(c, c + patch) for c in corner)]
