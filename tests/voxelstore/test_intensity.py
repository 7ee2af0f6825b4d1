"""The robust intensity map and the coarse foreground."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.filters import threshold_otsu

from voxelstore import IntensityMap, intensity_map, read_volume
from voxelstore.intensity import MASK_BLOCK, foreground, otsu_threshold


def test_the_map_runs_from_background_to_bright_tissue(head: np.ndarray) -> None:
    found = intensity_map(head.astype(np.float32))
    tissue = head[head > 300]
    assert 0 <= found.low < 5
    assert np.percentile(tissue, 99.5) < found.high <= tissue.max()


def test_the_share_of_background_does_not_move_the_map(head: np.ndarray) -> None:
    stripped = np.where(head > 300, head, 0).astype(np.float32)
    tight, wide = intensity_map(stripped), intensity_map(np.pad(stripped, 12))
    assert wide.low == tight.low == 0
    assert wide.high == pytest.approx(tight.high, rel=1e-6)


def test_a_few_hot_voxels_do_not_move_the_map(head: np.ndarray) -> None:
    hot = head.astype(np.float32)
    hot[20, 18, 20:22] = 30_000
    assert intensity_map(hot).high == pytest.approx(intensity_map(head.astype(np.float32)).high, rel=0.02)


@settings(max_examples=20)
@given(scale=st.floats(1e-3, 1e3), offset=st.floats(-1e3, 1e3))
def test_the_map_follows_an_affine_change_of_intensities(scale: float, offset: float) -> None:
    rng = np.random.default_rng(3)
    volume = np.where(rng.random((12, 12, 12)) < 0.4, 500 + 90 * rng.standard_normal((12, 12, 12)), 2.0)
    before, after = intensity_map(volume), intensity_map(volume * scale + offset)
    assert after.low == pytest.approx(before.low * scale + offset, rel=1e-6, abs=1e-6 * scale)
    # A voxel at the edge of a histogram's bin may change sides by rounding.
    assert after.high == pytest.approx(before.high * scale + offset, rel=5e-3, abs=1e-3 * scale)


def test_normalising_is_undone_and_clips_nothing(head: np.ndarray) -> None:
    found = intensity_map(head.astype(np.float32))
    normalised = found.normalise(head)
    assert normalised.dtype == np.float32
    assert normalised.max() > 1.0
    np.testing.assert_allclose(found.restore(normalised), head, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("volume", [np.full((4, 4, 4), 2.0), np.array([[[1.0, np.nan]]])])
def test_no_map_for_constant_or_unfinished_volumes(volume: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite"):
        intensity_map(volume)
    with pytest.raises(ValueError, match="low below high"):
        IntensityMap(1.0, 1.0)


def test_an_all_but_constant_volume_has_its_full_range() -> None:
    volume = np.zeros((30, 30, 30), np.float32)
    volume[4, 5, 6] = 8.0
    assert intensity_map(volume) == IntensityMap(0.0, 8.0)


def test_otsu_agrees_with_scikit_image(head: np.ndarray) -> None:
    clipped = np.minimum(head, np.percentile(head, 99.9))
    ours, theirs = otsu_threshold(head), threshold_otsu(clipped)
    assert ((head > ours) != (head > theirs)).mean() < 0.005


@pytest.mark.parametrize("stripped", [True, False])
def test_foreground_is_the_largest_part_without_holes(stripped: bool, head: np.ndarray) -> None:
    volume = np.pad(head.astype(np.float32), 16)
    if stripped:
        volume[volume < 300] = 0
    volume[32:40, 32:40, 36:44] = 0  # a ventricle
    volume[:4, :4, :4] = 900  # a marker far away
    mask, box = foreground(volume)
    assert mask.shape == tuple(-(-n // MASK_BLOCK) for n in volume.shape)
    fine = np.kron(mask, np.ones((MASK_BLOCK,) * 3, bool))[tuple(slice(n) for n in volume.shape)]
    tissue = np.pad(head > 300, 16)
    assert fine[tissue].mean() > 0.95
    assert fine[~tissue].mean() < 0.45
    assert not mask[0, 0, 0]
    assert mask[4, 4, 5]
    for (start, stop), axis in zip(box, range(3), strict=True):
        inside = np.flatnonzero(tissue.any(axis=tuple(a for a in range(3) if a != axis)))
        assert start <= inside[0] + 2
        assert stop >= inside[-1] - 1
        assert 0 <= start < stop <= volume.shape[axis]
        assert stop - start < volume.shape[axis]


def test_real_volumes_have_a_foreground_with_air_around(real_volumes: list[Path]) -> None:
    shares = []
    for path in real_volumes:
        volume = read_volume(path).physical()
        mask, _ = foreground(volume)
        shares.append(float(mask.mean()))
        assert mask[tuple(n // 2 for n in mask.shape)]
    assert all(0.15 < share < 0.7 for share in shares), shares
