"""Memory is flat: an epoch over a store ten times the object store streams without spilling."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from voxelstore import VolumeStore, convert_volume

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = [str(CHECKOUT / "platform"), str(CHECKOUT / "storage")]
OBJECT_STORE = 80 * 2**20
SHAPES = [(256, 256, 256), (240, 272, 264)]
VOLUMES = 26
PER_ROW = 16

EPOCH = """
import json, sys
import psutil
from mrisr.cluster import prepare_environment, quiet
prepare_environment()
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
ray.init(num_cpus=2, object_store_memory=int(sys.argv[2]), include_dashboard=False, logging_level="ERROR")
quiet()
from mrisr.degradation import DegradationRange
from mrisr.data.rows import PatchMaker, RowPlan
from mrisr.data.stream import StreamLimits, rank_batches
from voxelstore import VolumeStore
store = VolumeStore.open(sys.argv[1])
subjects = tuple(store.subjects("train"))
plan = RowPlan(subjects, seed=0, patches_per_row=int(sys.argv[3]), rows_per_group=1, lanes=2)
maker = PatchMaker(store.path, plan, DegradationRange("truncate", fraction=(0.3, 0.7)), 48, 0.3)
def own():
    sizes = {}
    for process in psutil.Process().children(recursive=True) + [psutil.Process()]:
        try:
            memory = process.memory_info()
        except psutil.Error:
            continue
        sizes[process.pid] = memory.rss - memory.shared
    return sizes
patches, streamed, peaks = 0, 0, []
steps = plan.patches_per_row * len(subjects) // plan.lanes
for batch in rank_batches(maker, 0, 1, 0, steps, StreamLimits(1.0, 2.0, 1)):
    patches += len(batch.row)
    streamed += batch.lr.nbytes + batch.hr.nbytes
    if patches % (plan.group_size * plan.lanes) == 0:
        peaks.append(own())
state = get_state_from_address(ray.get_runtime_context().gcs_address)
stats = get_memory_info_reply(state).store_stats
print(json.dumps({
    "patches": patches, "streamed": streamed, "peaks": peaks, "limit": stats.object_store_bytes_avail,
    "spilled": stats.spilled_bytes_total, "fallback": stats.object_store_bytes_fallback,
}))
ray.shutdown()
"""


@pytest.mark.integration
def test_an_epoch_over_ten_times_the_object_store_spills_nothing_and_stays_flat(tmp_path: Path) -> None:
    store = VolumeStore.create(tmp_path / "store.zarr")
    rng = np.random.default_rng(0)
    for i, shape in enumerate(SHAPES):
        volume = np.zeros(shape, np.int16)
        volume[64:192, 64:192, 64:192] = rng.integers(300, 900, (128, 128, 128), dtype=np.int16)
        nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / f"{i}.nii")
        convert_volume(tmp_path / f"{i}.nii", store.path, f"sub-{i:02d}", 64)
    for i in range(len(SHAPES), VOLUMES):
        source, copy = (store.path / "subjects" / f"sub-{n:02d}" for n in (i % len(SHAPES), i))
        shutil.copytree(source, copy, copy_function=os.link)
    store.update_manifest({"train": 1.0}, seed=0)
    subjects = VolumeStore.open(store.path).subjects("train")
    assert len(subjects) == VOLUMES
    assert sum(store.sizes(subject)[1] for subject in subjects) > 10 * OBJECT_STORE

    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment["PYTHONPATH"] = os.pathsep.join(PACKAGES)
    done = subprocess.run(
        [sys.executable, "-c", EPOCH, str(store.path), str(OBJECT_STORE), str(PER_ROW)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["patches"] == PER_ROW * VOLUMES
    assert found["limit"] <= OBJECT_STORE
    assert found["streamed"] > 2 * OBJECT_STORE
    assert found["spilled"] == found["fallback"] == 0
    # Memory that a process shares with no other: the object store's pages, which are bounded, would count in each.
    early, late = largest(found["peaks"][2:7]), largest(found["peaks"][-5:])
    grown = sum(max(0, late[pid] - early[pid]) for pid in early.keys() & late.keys())
    assert grown < OBJECT_STORE / 2, f"{early}, later {late}"
    # Ray may start another process at any time.
    assert sum(late.values()) < sum(early.values()) + 2 * OBJECT_STORE, f"{early}, later {late}"


def largest(sizes: list[dict[str, int]]) -> dict[str, int]:
    """The most bytes of each process."""
    return {pid: max(size.get(pid, 0) for size in sizes) for pid in set().union(*sizes)}
