"""A cohort without a download: seeded variations of the ICBM152 template that nilearn ships.

The template (skull-stripped T1w, 1 mm, an average of 152 people) is warped, cropped and given another contrast, with
one seed per subject. Figures on these volumes do not carry over to real cohorts.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from voxelstore.files import atomic_write

CONTROL_POINTS = (6, 7, 6)  # of the warp, along each axis: about 30 mm apart
WARP_MM = 2.0  # standard deviation of the displacement along each axis; the largest is some 3 times that
SCALE = 0.06  # standard deviation of the size along each axis
MARGIN = (8, 20)  # voxels left around the brain on each side, least and most
NOISE = 0.005  # standard deviation, of the brightest tissue
BRIGHTEST = 1000.0  # intensity of the brightest tissue, before the subject's gain


def make_cohort(folder: str | Path, subjects: int, seed: int = 0) -> list[Path]:
    """Write sub-001_T1w.nii.gz, sub-002_T1w.nii.gz, ...: int16, 1 mm, RAS+, of different shapes; returns the paths.

    The bytes of subject i depend only on (seed, i). A file of the same seed is kept. Writes are atomic, so several
    processes may run this at once. About 2 s a subject. Raises ImportError without the extra `demo`.
    """
    if subjects < 1:
        raise ValueError(f"subjects = {subjects}: must be at least 1")
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    paths = [root / f"sub-{index + 1:03d}_T1w.nii.gz" for index in range(subjects)]
    missing = [(i, path) for i, path in enumerate(paths) if not _is_made(path, _label(seed, i))]
    if missing:
        template, affine = _template()
        for index, path in missing:
            voxels, moved = vary(template, affine, np.random.default_rng([seed, index]))
            image = nib.Nifti1Image(voxels, moved)
            image.header.set_xyzt_units("mm", "sec")
            image.header["descrip"] = _label(seed, index)
            atomic_write(path, gzip.compress(image.to_bytes(), compresslevel=2, mtime=0))
    return paths


def vary(template: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One subject: int16 voxels and their affine. template: (D, H, W) float32 in [0, 1], 0 outside the brain."""
    # (3, 2): first and last index of the brain along each axis.
    inside = np.array([(s.start, s.stop) for s in ndimage.find_objects((template > 0).astype(np.uint8))[0]])
    centre = inside.mean(axis=1) - 0.5
    zoom = 1.0 + SCALE * rng.uniform(-1.0, 1.0, size=3)
    half = np.ceil(np.diff(inside, axis=1)[:, 0] / 2 * zoom).astype(int)
    start = np.floor(centre).astype(int) - half - rng.integers(*MARGIN, size=3)
    shape = tuple(int(n) for n in np.floor(centre).astype(int) + half + rng.integers(*MARGIN, size=3) - start)
    grid = np.empty((3, *shape), np.float32)
    for axis in range(3):
        places = (np.arange(shape[axis], dtype=np.float32) + start[axis] - centre[axis]) / zoom[axis] + centre[axis]
        grid[axis] = places.reshape([-1 if a == axis else 1 for a in range(3)])
        grid[axis] += WARP_MM * smooth_field(shape, rng)
    mask = ndimage.map_coordinates((template > 0).astype(np.float32), grid, order=1) > 0.5
    brain = np.zeros(shape, np.float32)
    brain[mask] = ndimage.map_coordinates(template, grid[:, mask], order=3)
    # An interpolated average of 152 heads is softer than one head; sharpen its edges.
    brain += 0.8 * (brain - ndimage.gaussian_filter(brain, 1.0))
    brain = np.clip(brain, 0.0, None) ** np.float32(rng.uniform(0.8, 1.25))
    brain *= 1.0 + 0.06 * smooth_field(shape, rng)
    noise = NOISE * rng.standard_normal((2, *shape), dtype=np.float32)
    brain = np.hypot(brain + noise[0], noise[1]) * mask
    voxels = np.rint(brain * np.float32(BRIGHTEST * rng.uniform(0.6, 1.6))).astype(np.int16)
    moved = affine.copy()
    moved[:3, 3] = affine[:3, :3] @ start + affine[:3, 3]
    return voxels, moved


def smooth_field(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A random field, float32, standard deviation about 1: cubic splines through normal control values."""
    field = rng.standard_normal(CONTROL_POINTS).astype(np.float32)
    for axis, (points, length) in enumerate(zip(CONTROL_POINTS, shape, strict=True)):
        # Interpolation is linear in the values, so its matrix is the spline through unit vectors.
        matrix = ndimage.zoom(np.eye(points, dtype=np.float32), (length / points, 1.0), order=3)
        field = np.moveaxis(np.tensordot(matrix, field, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(field)


def _template() -> tuple[np.ndarray, np.ndarray]:
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError as error:
        raise ImportError("the demo cohort needs nilearn: pip install 'mrisr[demo]'") from error
    image = load_mni152_template(resolution=1)
    return np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine, dtype=np.float64)


def _label(seed: int, index: int) -> str:
    return f"mrisr demo cohort v1 seed {seed} subject {index + 1}"


def _is_made(path: Path, label: str) -> bool:
    return path.exists() and nib.load(path).header["descrip"].item().decode() == label
