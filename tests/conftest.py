"""Fixtures that several rooms share: a small store of synthetic brains, the real volumes where they exist, one Ray."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import settings
from scipy import ndimage

from mrisr.collector import collect_rarely
from voxelstore import VolumeStore, convert_volume, find_volumes, subject_id

CHECKOUT = Path(__file__).resolve().parents[1]

# An example may take long on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

collect_rarely()
# Sums are split by the number of threads; here, so that fixtures of modules have one as well.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def synthetic_brain(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """An ellipsoid with structure on several scales, int16, air around it: (D, H, W)."""
    rng = np.random.default_rng(seed)
    texture = sum(ndimage.gaussian_filter(rng.standard_normal(shape), s) * s for s in (1.0, 2.5, 6.0))
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = sum(g**2 for g in grid) < 0.8
    values = np.where(inside, 500 + 150 * texture / texture.std(), 0)
    return np.clip(values, 0, None).astype(np.int16)


def write_cohort(folder: Path, count: int, size: int = 40) -> list[Path]:
    """`count` NIfTI files of slightly different shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        volume = synthetic_brain((size + i % 3, size + 4 - i % 2, size + 2), seed=i)
        paths.append(folder / f"sub-{i:02d}.nii.gz")
        nib.save(nib.Nifti1Image(volume, np.diag([1.0, 1.0, 1.0, 1.0])), paths[-1])
    return paths


@contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder of a user to whom permissions apply: root is nobody until the end."""
    with tempfile.TemporaryDirectory() as name:
        root = os.geteuid() == 0
        if root:
            os.chown(name, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six synthetic subjects of about 40^3, four of them for training, one for validation, one for testing."""
    root = tmp_path_factory.mktemp("small")
    store = VolumeStore.create(root / "store.zarr")
    for path in write_cohort(root / "cohort", 6):
        convert_volume(path, store.path, subject_id(path), 32)
    store.update_manifest({"train": 4, "validation": 1, "test": 1}, seed=0)
    return store.path


@pytest.fixture(scope="session")
def real_volumes() -> list[Path]:
    """The real volumes beside the checkout; an empty list where there are none."""
    folder = CHECKOUT.parent / "shared" / "data"
    return find_volumes(folder) if folder.is_dir() else []


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One local Ray of 4 logical CPUs for all tests of this process."""
    from mrisr import cluster

    cluster.prepare_environment()
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=4, object_store_memory=512 * 2**20, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()
