"""Corners stay inside, hold foreground where there is any, and are reproducible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrisr.patches import candidate_offsets, cut, foreground_share, sample_corners


def brute_force_share(mask: np.ndarray, block: int, shape: tuple[int, ...], patch: int) -> np.ndarray:
    """Mean of the coarse blocks that each candidate patch touches, one by one."""
    offsets = [candidate_offsets(n, patch, block) for n in shape]
    out = np.empty([len(o) for o in offsets])
    for index in np.ndindex(*out.shape):
        touched = tuple(slice(o[i] // block, -(-(o[i] + patch) // block)) for o, i in zip(offsets, index, strict=True))
        out[index] = mask[touched].mean()
    return out


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(*[st.integers(12, 40)] * 3),
    patch=st.integers(4, 12),
    block=st.sampled_from([4, 8]),
    seed=st.integers(0, 100),
)
def test_share_equals_brute_force_and_corners_fit(
    shape: tuple[int, int, int], patch: int, block: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random([-(-n // block) for n in shape]) < 0.4
    share = foreground_share(mask, block, shape, patch)
    np.testing.assert_allclose(share, brute_force_share(mask, block, shape, patch))
    corners = sample_corners(mask, block, shape, patch, 20, 0.5, rng)
    for corner in corners:
        assert cut(np.empty(shape), corner, patch).shape == (patch,) * 3


def test_patches_lie_where_the_foreground_is() -> None:
    mask = np.zeros((16, 16, 16), dtype=bool)
    mask[6:10, 6:10, 6:10] = True
    corners = sample_corners(mask, 8, (128, 128, 128), 24, 300, 0.9, np.random.default_rng(0))
    voxels = np.kron(mask, np.ones((8, 8, 8), dtype=bool))
    shares = [cut(voxels, c, 24).mean() for c in corners]
    assert min(shares) > 0.45
    assert np.mean(shares) > 0.7
    assert len(set(corners)) > 100, "patches do not sit on a lattice"


def test_a_volume_with_hardly_any_foreground_still_gives_patches_around_it() -> None:
    mask = np.zeros((8, 8, 8), dtype=bool)
    mask[4, 4, 4] = True
    corners = sample_corners(mask, 8, (64, 64, 64), 32, 50, 0.9, np.random.default_rng(0))
    assert len(corners) == 50
    empty = sample_corners(np.zeros_like(mask), 8, (64, 64, 64), 32, 5, 0.9, np.random.default_rng(0))
    assert len(empty) == 5


def test_a_patch_larger_than_the_volume_is_an_error_that_names_the_key() -> None:
    with pytest.raises(ValueError, match=r"stream\.patch_size = 64 .* 40 voxels"):
        candidate_offsets(40, 64, 8)
