"""Reading a volume into canonical orientation, and writing one back into its source's own space."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from voxelstore.errors import VolumeError
from voxelstore.files import atomic_write, open_regular
from voxelstore.formats import SourceLayout, decompressed, on_grid, parse
from voxelstore.intensity import IntensityMap, intensity_map

EXTENSIONS = (".nii.gz", ".nii", ".mgz")
GZIP_LEVEL = 1  # nibabel's own; level 6 took nine times as long on 52 MB and saved 5 %
MGH_TYPES = ("u1", "i2", "i4", "f4")
# With fewer float32 steps between the least and greatest intensity, a large offset has destroyed the image.
LEAST_STEPS = 256


@dataclass(frozen=True)
class SourceVolume:
    """The content of a source file, in canonical orientation (RAS+, axis 0 = left to right).

    voxels: (D, H, W), the type of the file. Physical intensity = voxels * slope + intercept. affine: (4, 4), canonical
    voxel indices to mm. sha256, size, mtime_ns: of the file as read. layout: what `write_volume` needs.
    """

    voxels: np.ndarray
    slope: float
    intercept: float
    affine: np.ndarray
    path: Path
    layout: SourceLayout
    sha256: str
    size: int
    mtime_ns: int

    def physical(self) -> np.ndarray:
        """(D, H, W) float32: voxels * slope + intercept, computed in float64."""
        return to_physical(self.voxels, self.slope, self.intercept)

    def intensity(self) -> IntensityMap:
        """The robust intensity map (`intensity_map`). Raises VolumeError if it has none."""
        try:
            return intensity_map(self.physical())
        except ValueError as error:
            text = f"its intensities have no robust range ({error}); remove the offset or the outliers"
            raise VolumeError(self.path, "unusable", text) from error

    def described(self) -> str:
        """Its grid in the order of the file: `256x320x320 voxels of 0.7x0.7x0.7 mm`."""
        axes = self.stored_axes
        shape = "x".join(str(self.voxels.shape[axis]) for axis in axes)
        return f"{shape} voxels of {'x'.join(f'{self.spacing[axis]:.4g}' for axis in axes)} mm"

    @property
    def stored_axes(self) -> tuple[int, ...]:
        """The canonical axis of each axis of the file."""
        return tuple(int(axis) for axis in nib.io_orientation(self.layout.affine)[:, 0])

    def on_grid(self, shape: tuple[int, int, int]) -> SourceVolume:
        """This file with other numbers of voxels over the same field of view, for `write_volume`; its voxels are 0.

        The outer faces of the outermost voxels keep their place: the centre of voxel 0 moves.
        """
        step = np.array(self.voxels.shape) / shape
        finer = np.diag([*step, 1.0])
        finer[:3, 3] = (step - 1) / 2
        affine = self.affine @ finer
        stored = tuple(shape[axis] for axis in self.stored_axes)
        to_canonical = nib.orientations.inv_ornt_aff(nib.io_orientation(self.layout.affine), stored)
        layout = on_grid(self.layout, stored, affine @ np.linalg.inv(to_canonical))
        return replace(
            self, voxels=np.broadcast_to(np.zeros((), self.voxels.dtype), shape), affine=affine, layout=layout
        )

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Edge lengths of a voxel in mm, along the canonical axes."""
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(d), float(h), float(w)


def read_volume(path: str | Path) -> SourceVolume:
    """Read a .nii, .nii.gz or .mgz file (NIfTI-1, NIfTI-2, MGH), gzipped or not; (D, H, W, 1) counts as 3-D.

    Raises VolumeError: unreadable, truncated, unsupported, not-3d, constant, not-finite, unusable.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            content = file.read()
    except OSError as error:
        text = f"cannot be read ({error.strerror}); check path and permissions"
        raise VolumeError(path, "unreadable", text) from error
    parsed = parse(path, decompressed(path, content))
    orientation = nib.io_orientation(parsed.layout.affine)
    turned = nib.apply_orientation(parsed.raw, orientation)
    voxels = np.ascontiguousarray(turned, dtype=turned.dtype.newbyteorder("="))
    _check_intensities(path, voxels, parsed.slope, parsed.intercept)
    affine = parsed.layout.affine @ nib.orientations.inv_ornt_aff(orientation, parsed.raw.shape)
    identity = hashlib.sha256(content).hexdigest(), status.st_size, status.st_mtime_ns
    return SourceVolume(voxels, parsed.slope, parsed.intercept, affine, path, parsed.layout, *identity)


def write_volume(path: str | Path, data: np.ndarray, like: SourceVolume) -> None:
    """Write physical intensities into the space of `like`, atomically.

    data: (D, H, W) real, canonical orientation, the shape of `like`. The file gets the orientation, affine, header,
    type, slope and intercept of `like`; integer types are rounded and clipped. Unmodified integer voxels are written
    unchanged if |voxel + intercept / slope| < 2^23, the limit of float32; use float64 data beyond it. NIfTI written to
    .mgz, or the reverse, keeps affine and type if possible: MGH has no slopes and no unsigned or 64-bit types, which
    become float32. Raises ValueError for another shape, another extension or non-finite values.
    """
    path = Path(path)
    if data.shape != like.voxels.shape:
        raise ValueError(f"{path}: data has shape {data.shape}, its source {like.path} {like.voxels.shape}")
    if not np.isfinite(data).all():
        raise ValueError(f"{path}: data holds NaN or infinity; nothing was written")
    target = next((e for e in EXTENSIONS if path.name.lower().endswith(e)), None)
    if target is None:
        raise ValueError(f"{path}: extension {path.suffix!r} is not one of {', '.join(EXTENSIONS)}")
    if (target == ".mgz") == (like.layout.format == "mgh"):
        dtype = np.dtype(like.layout.dtype)
        raw = to_source_orientation(to_stored(data, dtype, like.slope, like.intercept), like.layout)
        pieces = [like.layout.prefix, raw.tobytes(order="F"), like.layout.suffix]
    else:
        pieces = [_in_other_format(target, data, like)]
    content = b"".join(pieces)
    if target != ".nii":
        content = gzip.compress(content, compresslevel=GZIP_LEVEL, mtime=0)
    atomic_write(path, content)


def to_source_orientation(canonical: np.ndarray, layout: SourceLayout) -> np.ndarray:
    """A view of (D, H, W) canonical data with the axes and directions of the source's file."""
    orientation = nib.io_orientation(layout.affine)
    turned = canonical.transpose(orientation[:, 0].astype(int))
    flips = tuple(slice(None, None, -1) if sign < 0 else slice(None) for sign in orientation[:, 1])
    return turned[flips]


def to_physical(voxels: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """voxels * slope + intercept as float32, computed in float64, slab by slab to save memory."""
    if slope == 1.0 and intercept == 0.0:
        return voxels.astype(np.float32)
    return _by_slabs(voxels, np.dtype(np.float32), lambda slab: slab * slope + intercept)


def to_stored(physical: np.ndarray, dtype: np.dtype, slope: float, intercept: float) -> np.ndarray:
    """The inverse of `to_physical`: values of `dtype`, rounded and clipped for integer types."""
    if dtype.kind == "f":
        return _by_slabs(physical, dtype, lambda slab: (slab - intercept) / slope)
    limits = np.iinfo(dtype)
    # The largest 64-bit integers have no exact float64; take the next float64 below.
    top = float(limits.max) if dtype.itemsize < 8 else float(np.nextafter(float(limits.max), 0.0))
    bottom = float(limits.min)
    return _by_slabs(physical, dtype, lambda slab: np.clip(np.rint((slab - intercept) / slope), bottom, top))


def _by_slabs(values: np.ndarray, dtype: np.dtype, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    out = np.empty(values.shape, dtype=dtype)
    step = max(1, 2**20 * len(values) // max(1, values.size))
    for start in range(0, len(values), step):
        out[start : start + step] = function(values[start : start + step].astype(np.float64))
    return out


def _in_other_format(target: str, data: np.ndarray, like: SourceVolume) -> bytes:
    dtype = np.dtype(like.layout.dtype).newbyteorder("=")
    slope, intercept = like.slope, like.intercept
    image_class = nib.MGHImage if target == ".mgz" else nib.Nifti1Image
    scaled = (slope, intercept) != (1.0, 0.0)
    if target == ".mgz" and (scaled or dtype.str[1:] not in MGH_TYPES):
        dtype, slope, intercept = np.dtype(np.float32), 1.0, 0.0
    raw = to_source_orientation(to_stored(data, dtype, slope, intercept), like.layout)
    image = image_class(raw, like.layout.affine)
    if target != ".mgz":
        image.header.set_xyzt_units("mm", "sec")
    return bytes(image.to_bytes())


def _check_intensities(path: Path, voxels: np.ndarray, slope: float, intercept: float) -> None:
    lowest, highest = voxels.min(), voxels.max()
    ends = np.array([lowest, highest], dtype=np.float64) * slope + intercept
    if not (np.abs(ends) <= np.finfo(np.float32).max).all():  # NaN fails the comparison
        text = f"intensities from {lowest} to {highest}; replace NaN and infinity, by 0 outside the head"
        raise VolumeError(path, "not-finite", text)
    # Compared in float32, in which everything is computed: 2^30 and 2^30 + 1 are equal.
    if np.float32(ends[0]) == np.float32(ends[1]):
        text = f"voxels from {lowest} to {highest} are all {ends[0]:g} in float32; is it the right file?"
        raise VolumeError(path, "constant", text)
    steps = float(ends.max() - ends.min()) / float(np.spacing(np.float32(np.abs(ends).max())))
    if steps < LEAST_STEPS:
        text = (
            f"intensities from {ends.min():.10g} to {ends.max():.10g} have {steps:.0f} steps in float32; "
            "subtract their offset and save the volume again"
        )
        raise VolumeError(path, "unusable", text)
