"""Corners stay inside, hold foreground where there is any, and are reproducible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrisr.data.patches import candidate_offsets, cut, foreground_share, sample_corners, shares_at


def in_voxels(mask: np.ndarray, block: int, shape: tuple[int, ...]) -> np.ndarray:
    """The coarse mask as one of voxels."""
    return np.kron(mask, np.ones((block,) * 3, dtype=bool))[tuple(slice(n) for n in shape)]


def brute_force_share(mask: np.ndarray, block: int, shape: tuple[int, ...], patch: int) -> np.ndarray:
    """The share of foreground voxels in each candidate patch, counted one by one."""
    voxels = in_voxels(mask, block, shape)
    offsets = [candidate_offsets(n, patch, block) for n in shape]
    out = np.empty([len(o) for o in offsets])
    for index in np.ndindex(*out.shape):
        corner = tuple(int(o[i]) for o, i in zip(offsets, index, strict=True))
        out[index] = cut(voxels, corner, patch).mean()
    return out


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(*[st.integers(12, 40)] * 3),
    patch=st.integers(4, 12),
    block=st.sampled_from([4, 8]),
    seed=st.integers(0, 100),
    density=st.floats(0.0, 1.0),
    least=st.floats(0.0, 1.0),
)
def test_every_cube_holds_the_foreground_that_was_asked_for_after_it_was_moved(
    shape: tuple[int, int, int], patch: int, block: int, seed: int, density: float, least: float
) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random([-(-n // block) for n in shape]) < density
    share = foreground_share(mask, block, shape, patch)
    np.testing.assert_allclose(share, brute_force_share(mask, block, shape, patch))
    corners = sample_corners(mask, block, shape, patch, 20, least, rng)
    voxels = in_voxels(mask, block, shape)
    counted = [cut(voxels, corner, patch).mean() for corner in corners]
    np.testing.assert_allclose(shares_at(mask, block, np.array(corners), patch), counted)
    assert all(cut(voxels, corner, patch).shape == (patch,) * 3 for corner in corners)
    touching = np.sort(share[share > 0])
    if least > 0 and touching.size:
        assert min(counted) > 0, "no patch is all air"
        reachable = least if touching[-1] >= least else touching[-max(1, touching.size // 10)]
        assert min(counted) >= reachable - 1e-6


def test_patches_lie_where_the_foreground_is() -> None:
    mask = np.zeros((16, 16, 16), dtype=bool)
    mask[6:10, 6:10, 6:10] = True
    corners = sample_corners(mask, 8, (128, 128, 128), 24, 300, 0.7, np.random.default_rng(0))
    shares = [cut(in_voxels(mask, 8, (128,) * 3), c, 24).mean() for c in corners]
    assert min(shares) >= 0.7
    assert max(shares) == 1.0
    assert len(set(corners)) > 100, "patches do not sit on a lattice"


def test_a_bound_that_only_the_grid_reaches_keeps_the_grid() -> None:
    mask = np.zeros((6, 6, 6), dtype=bool)
    mask[2:4, 2:4, 2:4] = True
    corners = sample_corners(mask, 8, (48, 48, 48), 16, 50, 1.0, np.random.default_rng(0))
    assert set(corners) == {(16, 16, 16)}


def test_a_volume_with_hardly_any_foreground_still_gives_patches_around_it() -> None:
    mask = np.zeros((8, 8, 8), dtype=bool)
    mask[4, 4, 4] = True
    corners = sample_corners(mask, 8, (64, 64, 64), 32, 50, 0.9, np.random.default_rng(0))
    assert len(corners) == 50
    assert min(cut(in_voxels(mask, 8, (64,) * 3), c, 32).sum() for c in corners) == 8**3, "all of it, in every cube"
    empty = sample_corners(np.zeros_like(mask), 8, (64, 64, 64), 32, 5, 0.9, np.random.default_rng(0))
    assert len(empty) == 5


def test_no_patch_is_all_air_where_few_places_touch_the_foreground() -> None:
    """Fewer than a tenth of all places touch it here, and none reaches the bound."""
    shape, mask = (256, 320, 320), np.zeros((32, 40, 40), dtype=bool)
    mask[3:6, 30:33, 17:20] = True
    share = foreground_share(mask, 8, shape, 64)
    assert 0 < np.count_nonzero(share) < share.size // 10
    corners = sample_corners(mask, 8, shape, 64, 200, 0.3, np.random.default_rng(0))
    assert shares_at(mask, 8, np.array(corners), 64).min() > 0
    assert len(set(corners)) > 20


def test_the_jitter_piles_no_patches_up_on_the_faces() -> None:
    mask = np.ones((8, 8, 8), dtype=bool)
    corners = np.array(sample_corners(mask, 8, (64, 64, 64), 24, 4000, 0.3, np.random.default_rng(0)))
    for axis in range(3):
        counts = np.bincount(corners[:, axis], minlength=41)
        assert len(counts) == 41
        # Half a cell beside either face has the candidates of a whole one.
        assert counts[[0, 40]].max() < 3 * np.median(counts)
        assert counts.min() > 0


def test_a_patch_larger_than_the_volume_is_an_error_that_names_the_key() -> None:
    with pytest.raises(ValueError, match=r"stream\.patch_size = 64 .* 40 voxels"):
        candidate_offsets(40, 64, 8)
