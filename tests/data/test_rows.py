"""Rows made part by part are the rows that whole volumes and full transforms give."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mrisr.data.patches import cut, sample_corners
from mrisr.data.rows import PatchMaker, RowPlan, cached_store
from mrisr.degradation import DegradationRange, spectral_weight
from mrisr.degradation.applying import received_noise
from mrisr.tools.bench_stream import Stopwatch, plain_patches
from voxelstore import StoreError, VolumeStore
from voxelstore.subject import write_array


@pytest.fixture(scope="module")
def layered_store(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small store in blocks of 16^3, so that every volume has several layers along every axis."""
    path = tmp_path_factory.mktemp("layers") / "store.zarr"
    shutil.copytree(small_store, path)
    store = VolumeStore.open(path)
    for subject in store.subjects():
        voxels, folder = store.source(subject).voxels, path / "subjects" / subject / "voxels"
        shutil.rmtree(folder)
        write_array(folder, voxels, chunk=16)
    return path


@pytest.mark.parametrize("voxels", [1, 2**13, 2**19])
@pytest.mark.parametrize(
    "ranges",
    [
        DegradationRange("truncate", (1, 2), fraction=(0.3, 0.7)),
        DegradationRange("box", (0, 1), fraction=(0.3, 0.7)),
        DegradationRange("gaussian", (2, 0), fraction=(0.3, 0.7), sigma=(0.5, 1.0)),
        DegradationRange("truncate", (1,), fraction=(0.3, 0.7), slice_axis=0, slice_thickness=(2.0, 4.0)),
        DegradationRange("mixed", (0, 1, 2), fraction=(0.3, 0.7)),
        DegradationRange("truncate", (1, 2), fraction=(0.3, 0.7), noise=(0.01, 0.02)),
        DegradationRange("report_literal", (1, 2), fraction=(0.3, 0.7), mix=(0.1, 0.5)),
    ],
    ids=lambda r: f"{r.kind}{r.axes}",
)
def test_a_row_made_part_by_part_is_that_of_the_whole_volume(
    layered_store: Path, ranges: DegradationRange, voxels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrisr.data.rows.PART_VOXELS", voxels)
    plan = RowPlan(tuple(VolumeStore.open(layered_store).subjects("train")), 3, 6, 1, 1)
    maker = PatchMaker(layered_store, plan, ranges, 16, 0.3)
    for row in plan.epoch_rows(0)[:2]:
        lr, hr = maker.row_patches(row)
        whole_lr, whole_hr = plain_patches(maker, row, Stopwatch())
        np.testing.assert_array_equal(hr, whole_hr.astype(np.float16))
        # The transforms differ by rounding, which may move a value to the next float16.
        np.testing.assert_allclose(lr, whole_lr, rtol=2**-10, atol=5e-6)


def change_range(store: Path, subject: str, low: float, high: float) -> None:
    """Give a subject another robust range, in the manifest alone."""
    manifest = store / "manifest.json"
    described = json.loads(manifest.read_text())
    described["subjects"][subject]["intensity"] = {"low": low, "high": high}
    manifest.write_text(json.dumps(described))


def test_noise_is_counted_from_the_subjects_own_zero(small_store: Path, tmp_path: Path) -> None:
    """Against the physical volume, through a complex transform, where a background of 0 is not the normalised 0."""
    path = shutil.copytree(small_store, tmp_path / "store.zarr")
    (subject, *_) = VolumeStore.open(path).subjects("train")
    change_range(path, subject, -250.0, 750.0)
    maker = PatchMaker(path, RowPlan((subject,), 3, 6, 1, 1), DegradationRange("truncate", noise=(0.05, 0.1)), 16, 0.3)
    row = maker.plan.row(0)
    lr, _ = maker.row_patches(row)
    store, rng = VolumeStore.open(path), maker.plan.row_rng(row)
    d, record, mask = maker.degradation.sample(rng), store.record(subject), store.foreground(subject)
    corners = sample_corners(mask, record.mask_block, record.shape, 16, 6, 0.3, rng)
    half, n = spectral_weight(record.shape, d), record.shape[2]
    weight = half.take(np.minimum(np.arange(n), n - np.arange(n)), axis=2)
    signal = np.fft.ifftn(np.fft.fftn(store.read(subject), axes=(1, 2)) * weight, axes=(1, 2))
    physical = np.abs(signal + 1000 * received_noise(record.shape, d))
    expected = np.stack([cut((physical + 250) / 1000, corner, 16) for corner in corners])
    np.testing.assert_allclose(lr, expected, rtol=2**-10, atol=1e-5)
    assert lr.min() >= 0.249, "no magnitude is below that of no signal"


def test_a_store_that_was_converted_further_is_seen_as_it_is_now(small_store: Path, tmp_path: Path) -> None:
    path = shutil.copytree(small_store, tmp_path / "store.zarr")
    store = cached_store(str(path))
    assert cached_store(str(path)) is store
    subjects = store.subjects("train")
    first = store.source(subjects[0])
    maker = PatchMaker(path, RowPlan((subjects[1],), 3, 4, 1, 1), DegradationRange("truncate"), 16, 0.3)
    before = maker.row_patches(maker.plan.row(0))[1]
    writer = VolumeStore.open(path)
    writer.write_subject("new", first)
    writer.write_subject(subjects[1], replace(first, voxels=first.voxels // 2))
    writer.update_manifest({"train": 5, "validation": 1, "test": 1}, seed=0)
    assert cached_store(str(path)).record("new").shape == first.voxels.shape
    after = maker.row_patches(maker.plan.row(0))[1]
    # Of half the intensity with a range of half the width; with its old record it would reach half as far.
    assert after.max() > 0.8 * before.max()
    shutil.rmtree(path)
    with pytest.raises(StoreError, match="no volume store"):
        cached_store(str(path))


def test_no_row_is_made_of_another_store_than_the_run_began_with(small_store: Path, tmp_path: Path) -> None:
    path = shutil.copytree(small_store, tmp_path / "store.zarr")
    store = VolumeStore.open(path)
    subjects = store.subjects("train")
    plan = RowPlan((subjects[1],), 3, 4, 1, 1)
    maker = PatchMaker(path, plan, DegradationRange("truncate"), 16, 0.3, dataset=store.fingerprint())
    maker.row_patches(plan.row(0))
    store.remove_subject(subjects[0])
    store.update_manifest({"train": 3, "validation": 1, "test": 1}, seed=0)
    with pytest.raises(StoreError, match="have changed since the run began"):
        maker.row_patches(plan.row(0))


def test_an_intensity_that_patches_cannot_hold_is_an_error_that_names_the_subject(
    small_store: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(small_store, tmp_path / "store.zarr")
    (subject, *_) = VolumeStore.open(path).subjects("train")
    change_range(path, subject, 0.0, 1e-3)
    maker = PatchMaker(path, RowPlan((subject,), 3, 4, 1, 1), DegradationRange("truncate"), 16, 0.3)
    with pytest.raises(ValueError, match=rf"{subject} reaches .*e\+06 .*65504 at most.*0 to 0\.001.*convert it again"):
        maker.row_patches(maker.plan.row(0))
