"""A small head, and a way to put it into files of every kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SHAPE = (40, 36, 44)


@pytest.fixture
def head() -> np.ndarray:
    """(40, 36, 44) int16: a bright, textured ellipsoid in a dark background, of no symmetry at all."""
    rng = np.random.default_rng(7)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    inside = ((axes[0] - 0.05) / 0.7) ** 2 + (axes[1] / 0.8) ** 2 + ((axes[2] + 0.1) / 0.75) ** 2 < 1
    texture = 600 + 150 * axes[0] + 80 * axes[2] + 20 * rng.standard_normal(SHAPE)
    return np.where(inside, texture, np.abs(3 * rng.standard_normal(SHAPE))).astype(np.int16)


@pytest.fixture
def nifti(tmp_path: Path) -> Callable[..., Path]:
    """nifti(voxels, affine=..., name=..., slope=..., intercept=...) writes a file by nibabel and returns its path."""

    def write(
        voxels: np.ndarray,
        affine: np.ndarray | None = None,
        name: str = "sub-01_T1w.nii.gz",
        slope: float = 1.0,
        intercept: float = 0.0,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(voxels, np.diag([0.7, 0.8, 0.9, 1]) if affine is None else affine, dtype=voxels.dtype)
        image.header.set_slope_inter(slope, intercept)
        nib.save(image, path)
        return path

    return write
