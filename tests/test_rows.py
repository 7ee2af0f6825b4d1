"""Rows made part by part are the rows that whole volumes and full transforms give."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mrisr.bench_stream import plain_patches
from mrisr.degradation import DegradationRange
from mrisr.rows import PatchMaker, RowPlan
from voxelstore import VolumeStore
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
    monkeypatch.setattr("mrisr.rows.PART_VOXELS", voxels)
    plan = RowPlan(tuple(VolumeStore.open(layered_store).subjects("train")), 3, 6, 1, 1)
    maker = PatchMaker(layered_store, plan, ranges, 16, 0.3)
    for row in plan.epoch_rows(0)[:2]:
        lr, hr = maker.row_patches(row)
        whole_lr, whole_hr = plain_patches(maker, row, lambda stage: None)
        np.testing.assert_array_equal(hr, whole_hr.astype(np.float16))
        # The transforms differ by rounding, which may move a value to the next float16.
        np.testing.assert_allclose(lr, whole_lr, rtol=2**-10, atol=5e-6)
