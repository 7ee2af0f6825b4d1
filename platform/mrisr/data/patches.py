"""Chooses where patches are cut: uniformly among the places with enough foreground. Uses numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Corner = tuple[int, int, int]

# Repeated draws for a moved patch with too little foreground. After that it stays on the grid.
REDRAWS = 16


def overlaps(offsets: np.ndarray, patch: int, block: int, blocks: int) -> np.ndarray:
    """Share of a patch that each block covers along one axis: (len(offsets), blocks) float64, rows sum to 1.

    Example: [4], patch 8, block 8: half of the patch lies in block 0, half in block 1.
    """
    start = np.arange(blocks) * block
    offsets = offsets[:, None]
    covered = np.minimum(offsets + patch, start + block) - np.maximum(offsets, start)
    return np.maximum(covered, 0) / patch


def foreground_share(mask: np.ndarray, block: int, shape: tuple[int, ...], patch: int) -> np.ndarray:
    """Share of a patch's voxels that lie in foreground blocks, at each candidate corner (`candidate_offsets`).

    mask: (ceil(D/block), ...) bool; shape: (D, H, W) in voxels. Returns float64 in [0, 1] per candidate.
    """
    share = mask.astype(np.float64)
    for axis, n in enumerate(shape):
        weights = overlaps(candidate_offsets(n, patch, block), patch, block, mask.shape[axis])
        share = np.moveaxis(np.tensordot(weights, share, axes=(1, axis)), 0, axis)
    return share


def shares_at(mask: np.ndarray, block: int, corners: np.ndarray, patch: int) -> np.ndarray:
    """`foreground_share` at any corners, (n, 3) voxels; returns (n,) float64."""
    d, h, w = (overlaps(corners[:, axis], patch, block, mask.shape[axis]) for axis in range(3))
    return np.einsum("nd,nh,nw,dhw->n", d, h, w, mask.astype(np.float64), optimize=True)


def candidate_offsets(length: int, patch: int, block: int) -> np.ndarray:
    """Offsets 0, block, 2*block, ... and the last one at which the patch still fits: 20, 8, 8 -> [0, 8, 12]."""
    last = length - patch
    if last < 0:
        raise ValueError(
            f"stream.patch_size = {patch} is larger than an axis of {length} voxels; "
            "choose a smaller patch, or convert into another store with a larger data.min_size, which leaves such "
            "volumes out"
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
    """Draw `count` corners of (patch, patch, patch) cubes inside the volume.

    A candidate on the coarse grid is drawn uniformly among those with a foreground share of at least `min_foreground`.
    Then it is moved by less than one block along every axis; a moved cube with too little foreground is drawn again. If
    no candidate has that share, the best tenth of those with foreground is used, and the bound is the smallest share
    among them. If no candidate has foreground, all are used.
    """
    share = foreground_share(mask, block, shape, patch)
    # The rounding tolerance is relative: a bound above 0 must stay above the share of air, which is exactly 0.
    slack = 1.0 - 1e-9
    bound = min_foreground * slack
    if share.max() < bound:
        keep = max(1, int(np.count_nonzero(share)) // 10)
        bound = float(np.partition(share.ravel(), -keep)[-keep]) * slack
    good = np.flatnonzero(share >= bound)
    last = np.subtract(shape, patch)[:, None]

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.unravel_index(rng.choice(good, size=n), share.shape)
        on_grid = np.stack([candidate_offsets(m, patch, block)[i] for m, i in zip(shape, chosen, strict=True)])
        moved = on_grid + rng.integers(-(block // 2), block - block // 2, size=(3, n))
        # Reflect positions outside of the volume at its faces: clipping would accumulate patches there.
        moved = np.where(moved < 0, -1 - moved, moved)
        moved = np.where(moved > last, 2 * last + 1 - moved, moved)
        return on_grid.T, np.clip(moved, 0, last).T

    on_grid, corners = draw(count)
    for _ in range(REDRAWS):
        short = np.flatnonzero(shares_at(mask, block, corners, patch) < bound)
        if not short.size:
            break
        on_grid[short], corners[short] = draw(short.size)
    else:
        short = np.flatnonzero(shares_at(mask, block, corners, patch) < bound)
        corners[short] = on_grid[short]
    return [(int(d), int(h), int(w)) for d, h, w in corners]


def bounding_region(
    corners: list[Corner], patch: int, shape: tuple[int, ...], axes: tuple[int, ...]
) -> tuple[tuple[slice, slice, slice], list[Corner]]:
    """The part of the volume that contains all cubes, cropped along `axes` only, and the corners inside that part."""
    first, last = np.zeros(3, int), np.array(shape)
    for axis in axes:
        first[axis] = min(corner[axis] for corner in corners)
        last[axis] = max(corner[axis] for corner in corners) + patch
    d, h, w = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    return (d, h, w), [(int(c[0] - first[0]), int(c[1] - first[1]), int(c[2] - first[2])) for c in corners]


def cut(volume: np.ndarray, corner: Corner, patch: int) -> np.ndarray:
    """A view of the cube at `corner`, (patch, patch, patch)."""
    return volume[tuple(slice(c, c + patch) for c in corner)]


def copy_overlaps(
    cubes: np.ndarray | Sequence[np.ndarray], corners: list[Corner], part: np.ndarray, axis: int, first: int
) -> None:
    """Copy a part of a volume into the cubes at `corners` that overlap it.

    cubes: n of (patch, patch, patch), written. part: the slices from number `first` on along `axis`, complete along the
    other axes.
    """
    patch, last = cubes[0].shape[axis], first + part.shape[axis]
    for cube, corner in zip(cubes, corners, strict=True):
        start, stop = max(corner[axis], first), min(corner[axis] + patch, last)
        if start < stop:
            source, target = [slice(c, c + patch) for c in corner], [slice(None)] * 3
            source[axis] = slice(start - first, stop - first)
            target[axis] = slice(start - corner[axis], stop - corner[axis])
            cube[tuple(target)] = part[tuple(source)]
