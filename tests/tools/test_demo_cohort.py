"""The demo cohort: brains that differ, the same for everyone."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from mrisr.tools.demo_cohort import WARP_MM, make_cohort, smooth_field, vary
from voxelstore import read_volume


def small_template() -> np.ndarray:
    """(40, 44, 42) float32 in [0, 1], an ellipsoid in nothing."""
    axes = np.meshgrid(*(np.linspace(-1.3, 1.3, n) for n in (40, 44, 42)), indexing="ij")
    radius = sum(axis**2 for axis in axes)
    return np.where(radius < 1, 1 - 0.5 * radius, 0).astype(np.float32)


def test_a_cohort_is_idempotent_and_safe_to_make_twice_at_once(tmp_path: Path) -> None:
    threads = [threading.Thread(target=make_cohort, args=(tmp_path, 1, 5)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [path] = tmp_path.iterdir()
    content, written = path.read_bytes(), path.stat().st_mtime_ns
    first, second = make_cohort(tmp_path, 2, seed=5)
    assert (first.name, second.name) == ("sub-001_T1w.nii.gz", "sub-002_T1w.nii.gz")
    assert (first.read_bytes(), first.stat().st_mtime_ns) == (content, written)
    one, two = read_volume(first), read_volume(second)
    assert one.voxels.dtype == two.voxels.dtype == np.int16
    assert one.voxels.shape != two.voxels.shape
    np.testing.assert_allclose(one.spacing, 1.0)
    for brain in (one, two):
        assert min(brain.voxels.shape) > 128
        assert 0.2 < (brain.voxels > 0).mean() < 0.5
        assert not any(brain.voxels.take(edge, axis=axis).any() for axis in range(3) for edge in (0, -1))
    make_cohort(tmp_path, 1, seed=6)  # another seed replaces what is there
    assert first.read_bytes() != content


def test_a_subject_is_a_function_of_its_seed_and_touches_no_global_state() -> None:
    state = pickle.dumps(np.random.get_state())
    first, again, other = (vary(small_template(), np.eye(4), np.random.default_rng(s))[0] for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)
    assert pickle.dumps(np.random.get_state()) == state


def test_no_subjects_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="subjects = 0"):
        make_cohort(tmp_path, 0, seed=1)


def test_a_subject_lies_where_the_template_lies() -> None:
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = [-40, -44, -42]
    voxels, moved = vary(small_template(), affine, np.random.default_rng(0))
    weights = voxels / voxels.sum()
    centre = [
        float((weights.sum(axis=tuple(a for a in range(3) if a != i)) * np.arange(n)).sum())
        for i, n in enumerate(voxels.shape)
    ]
    expected = affine[:3, :3] @ ((np.array([40, 44, 42]) - 1) / 2) + affine[:3, 3]
    np.testing.assert_allclose(moved[:3, :3] @ centre + moved[:3, 3], expected, atol=10)


def test_fields_are_smooth_and_of_unit_size() -> None:
    field = smooth_field((150, 180, 150), np.random.default_rng(1))
    assert field.shape == (150, 180, 150)
    assert 0.4 < field.std() < 1.6
    # The warp moves neighbours apart by less than a voxel: nothing folds.
    assert max(float(np.abs(np.diff(field, axis=axis)).max()) for axis in range(3)) < 1 / (2 * WARP_MM)
