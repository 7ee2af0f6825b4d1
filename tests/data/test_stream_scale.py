"""The multiset of an epoch, validation for ever, and volumes of any shape and little foreground."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tests.slices_by_hand import one_by_one

from mrisr.data.patches import cut
from mrisr.data.rows import PatchMaker, RowPlan
from mrisr.data.stream import StreamLimits, rank_batches
from mrisr.degradation import PROTOCOLS, DegradationRange, spectral_weight
from mrisr.training.validation import subject_cubes
from voxelstore import VolumeStore, convert_volume

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = [str(CHECKOUT / "platform"), str(CHECKOUT / "storage")]
PER_ROW = 4


def planned(store: Path, rows: int, lanes: int = 6, per_row: int = PER_ROW) -> PatchMaker:
    subjects = tuple(VolumeStore.open(store).subjects("train"))
    plan = RowPlan(subjects, seed=5, patches_per_row=per_row, rows_per_group=rows, lanes=lanes)
    ranges = DegradationRange("truncate", fraction=(0.3, 0.7), noise=(0.0, 0.02))
    return PatchMaker(store, plan, ranges, 16, 0.3)


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("world", "rows", "rounds"), [(1, 1, 1), (2, 2, 1), (3, 2, 2), (2, 4, 1)])
def test_the_multiset_of_an_epochs_patches_is_the_same_for_any_workers_and_block_sizes(
    small_store: Path, world: int, rows: int, rounds: int
) -> None:
    """Blocks of 4, 8 and 16 patches. Three epochs are 12 rows of 4 volumes: the first 2 of each lane."""
    maker = planned(small_store, rows)
    steps = maker.plan.group_size * -(-2 // rows)
    found: Counter[str] = Counter()
    for rank in range(world):
        for batch in rank_batches(maker, rank, world, 0, steps, StreamLimits(1.0, 2.0, rounds)):
            for lr, hr, row in zip(batch.lr, batch.hr, batch.row, strict=True):
                if row < 12:
                    found[hashlib.sha256(lr.tobytes() + hr.tobytes()).hexdigest()] += 1
    expected: Counter[str] = Counter()
    for epoch in range(3):
        for row in maker.plan.epoch_rows(epoch):
            pairs = zip(*maker.row_patches(row), strict=True)
            expected.update(hashlib.sha256(lr.tobytes() + hr.tobytes()).hexdigest() for lr, hr in pairs)
    assert sum(expected.values()) == 12 * PER_ROW
    assert found == expected


CUBES = """
import sys
import numpy
numpy.random.seed(3)
from tests.data.test_stream_scale import cube_digests
print("\\n".join(cube_digests(sys.argv[1])))
"""


def cube_digests(path: str) -> list[str]:
    store = VolumeStore.open(path)
    cubes = [subject_cubes(store, subject, "chen2018", 24, 3) for subject in store.subjects()]
    return [f"{c.subject} {hashlib.sha256(c.lr.tobytes() + c.hr.tobytes()).hexdigest()}" for c in cubes]


def test_validation_cubes_are_those_of_any_other_process_on_any_other_processor(small_store: Path) -> None:
    """Another process, hash seed, threads, history of global random numbers; the code paths of an old processor."""
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    environment |= {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F X86_V3 X86_V4", "OPENBLAS_CORETYPE": "Nehalem"}
    environment["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), *PACKAGES])
    done = subprocess.run(
        [sys.executable, "-c", CUBES, str(small_store)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == cube_digests(str(small_store))
    assert len(done.stdout.splitlines()) == 6


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_validation_cubes_do_not_depend_on_how_a_library_transforms(small_store: Path, protocol: str) -> None:
    """Equal bits from another algorithm (numpy's complex transform, a spline per slice): that differs more than another
    machine does.
    """
    store, degradation = VolumeStore.open(small_store), PROTOCOLS[protocol]
    subject = store.subjects()[0]
    hr = store.read_normalised(subject)
    patch = min(hr.shape)
    found = subject_cubes(store, subject, protocol, patch, 1)
    n, axes = hr.shape[degradation.transform_axes[-1]], degradation.transform_axes
    if degradation.kind == "slices":
        lr = one_by_one(hr, axes[0], round(1 / (1 - degradation.fractions(hr.shape)[0]), 9))
    else:
        weight = spectral_weight(hr.shape, degradation)
        weight = weight.take(np.minimum(np.arange(n), n - np.arange(n)), axis=axes[-1])
        lr = np.fft.ifftn(np.fft.fftn(hr.astype(np.float64), axes=axes) * weight, axes=axes).real
    corner = next(c for c in np.ndindex(*(m - patch + 1 for m in hr.shape)) if (cut(hr, c, patch) == found.hr[0]).all())
    assert (cut(np.round(lr * 2**16) / 2**16, corner, patch) == found.lr[0]).all()


def test_all_of_a_volume_with_little_foreground_and_of_other_shapes_streams(tmp_path: Path) -> None:
    store = VolumeStore.create(tmp_path / "store.zarr")
    rng = np.random.default_rng(0)
    for i, shape in enumerate([(33, 40, 56), (48, 32, 41), (40, 40, 40)]):
        volume = np.zeros(shape, np.int16)
        volume[16:21, 16:21, 16:21] = rng.integers(500, 900, (5, 5, 5))
        nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / f"sub-{i}.nii")
        convert_volume(tmp_path / f"sub-{i}.nii", store.path, f"sub-{i}", 32)
    store.update_manifest({"train": 3}, seed=0)
    maker = planned(store.path, rows=1)
    for row in maker.plan.epoch_rows(0):
        lr, hr = maker.row_patches(row)
        assert lr.shape == hr.shape == (PER_ROW, 16, 16, 16)
        assert all(patch.max() > 0.5 for patch in hr), "the little there is lies in every patch"
