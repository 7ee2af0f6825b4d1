"""The multiset of an epoch, validation for ever, and memory that stays flat over a store larger than Ray's."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mrisr.degradation import DegradationRange
from mrisr.stream import PatchMaker, RowPlan, StreamLimits, rank_batches
from mrisr.training.validation import subject_cubes
from voxelstore import VolumeStore, convert_volume

CHECKOUT = Path(__file__).resolve().parents[1]
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
from tests.test_stream_scale import cube_digests
print("\\n".join(cube_digests(sys.argv[1])))
"""


def cube_digests(path: str) -> list[str]:
    store = VolumeStore.open(path)
    cubes = [subject_cubes(store, subject, "chen2018", 24, 3) for subject in store.subjects()]
    return [f"{c.subject} {hashlib.sha256(c.lr.tobytes() + c.hr.tobytes()).hexdigest()}" for c in cubes]


def test_validation_cubes_are_those_of_any_other_process(small_store: Path) -> None:
    """Another process, hash seed, thread count and history of global random numbers: nothing of that enters."""
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    environment["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), *PACKAGES])
    done = subprocess.run(
        [sys.executable, "-c", CUBES, str(small_store)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == cube_digests(str(small_store))
    assert len(done.stdout.splitlines()) == 6


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


FLAT = """
import json, sys, threading, time
from pathlib import Path
import psutil, ray
from mrisr.cluster import prepare_environment, quiet
prepare_environment()
ray.init(num_cpus=3, object_store_memory=80 * 2**20, include_dashboard=False, logging_level="ERROR")
quiet()
from mrisr.degradation import DegradationRange
from mrisr.stream import PatchMaker, RowPlan, StreamLimits, rank_batches
from ray._private.internal_api import memory_summary
from voxelstore import VolumeStore
store = VolumeStore.open(Path(sys.argv[1]))
plan = RowPlan(tuple(store.subjects("train")), 0, 8, 2, 2)
maker = PatchMaker(store.path, plan, DegradationRange("truncate", fraction=(0.3, 0.7)), 48, 0.3)
def largest():
    tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
    sizes = []
    for process in tree:
        try:
            info = process.memory_info()
            sizes.append(info.rss - info.shared)
        except psutil.Error:
            pass
    return max(sizes)
rows = len(store.subjects("train"))
steps = plan.patches_per_row * rows // plan.lanes
peaks, seen, patches = [], 0, 0
for batch in rank_batches(maker, 0, 1, 0, steps, StreamLimits(1.0, 2.0, 1)):
    patches += len(batch.row)
    if patches // (2 * plan.lanes * plan.group_size) > len(peaks):
        peaks.append(largest())
print(json.dumps({"patches": patches, "peaks": peaks, "rows": rows, "memory": memory_summary(stats_only=True)}))
ray.shutdown()
"""


@pytest.mark.integration
def test_memory_is_flat_and_nothing_spills_over_a_store_ten_times_rays(tmp_path: Path) -> None:
    """An epoch over 850 MB of volumes of two shapes, through an object store of 80 MB, in a process of its own."""
    store = VolumeStore.create(tmp_path / "store.zarr")
    rng = np.random.default_rng(0)
    shapes = [(128, 128, 128), (112, 144, 120)]
    for i, shape in enumerate(shapes):
        volume = np.pad(rng.integers(300, 900, [n - 32 for n in shape], dtype=np.int16), 16)
        nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / f"{i}.nii")
        convert_volume(tmp_path / f"{i}.nii", store.path, f"sub-{i:03d}", 64)
    for i in range(2, 212):
        source, copy = (store.path / "subjects" / f"sub-{n:03d}" for n in (i % 2, i))
        shutil.copytree(source, copy, copy_function=os.link)
    store.rebuild_manifest()
    store.update_manifest({"train": 1.0}, seed=0)
    decoded = sum(2 * int(np.prod(store.record(s).shape)) for s in VolumeStore.open(store.path).subjects("train"))
    assert decoded > 10 * 80 * 2**20
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment["PYTHONPATH"] = os.pathsep.join(PACKAGES)
    done = subprocess.run(
        [sys.executable, "-c", FLAT, str(store.path)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["patches"] == 8 * found["rows"] == 8 * 212
    assert "Spilled" not in found["memory"], found["memory"]
    early, late = max(found["peaks"][:4]), max(found["peaks"][-4:])
    assert len(found["peaks"]) >= 12
    assert late < early + 64 * 2**20, f"{early / 2**20:.0f} MB, later {late / 2**20:.0f} MB"
    assert late < 700 * 2**20
