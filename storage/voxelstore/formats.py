"""The bytes of a NIfTI-1, NIfTI-2 or MGH file, taken apart so that they can be put together again.

nibabel parses the headers. The bytes before and after the voxels are kept unchanged, because header objects drop or
normalise some fields, extensions and tags.
"""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.spatialimages import HeaderDataError

from voxelstore.errors import VolumeError

GZIP_MAGIC = b"\x1f\x8b"
MGH_VOXELS_AT = 284


@dataclass(frozen=True)
class SourceLayout:
    """How the voxels lie in their file.

    format: "nifti1", "nifti2" or "mgh". dtype: NumPy string with byte order, such as ">i2". shape: as on disk, with
    trailing singleton dimensions. affine: (4, 4) of the voxels as stored, in mm. prefix, suffix: the bytes before and
    after the voxels (header and extensions; footer and tags).
    """

    format: str
    dtype: str
    shape: tuple[int, ...]
    affine: np.ndarray
    prefix: bytes
    suffix: bytes


class ParsedFile(NamedTuple):
    """raw: the voxels as stored, (D, H, W) on disk in Fortran order, a view of the file's bytes."""

    raw: np.ndarray
    slope: float
    intercept: float
    layout: SourceLayout


class _Header(NamedTuple):
    format: str
    dtype: np.dtype
    shape: tuple[int, ...]
    affine: np.ndarray
    voxels_at: int  # the offset of the voxels, in bytes
    scale: tuple[float, float]  # slope and intercept


def decompressed(path: Path, content: bytes) -> bytes:
    """`content` without its gzip container, which is recognised by its first bytes and not by the file's name."""
    if not content.startswith(GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except EOFError as error:
        text = f"the gzip stream ends early, after {len(content)} bytes; copy the file again"
        raise VolumeError(path, "truncated", text) from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise VolumeError(path, "unreadable", f"the gzip stream is damaged ({error}); copy the file again") from error


def parse(path: Path, content: bytes) -> ParsedFile:
    """Take the decompressed bytes of a file apart.

    Raises VolumeError: unreadable, truncated, unsupported (RGB, complex), not-3d, not-finite.
    """
    size = int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")
    try:
        if 348 in size:
            return _take_apart(path, content, _nifti_header(path, content, nib.Nifti1Header, 348, "nifti1"))
        if 540 in size:
            return _take_apart(path, content, _nifti_header(path, content, nib.Nifti2Header, 540, "nifti2"))
        if size[1] == 1:
            return _take_apart(path, content, _mgh_header(path, content))
    except (HeaderDataError, ImageFileError, KeyError, np.linalg.LinAlgError) as error:
        raise VolumeError(path, "unreadable", f"its header is damaged ({error}); export the volume again") from error
    raise VolumeError(
        path,
        "unreadable",
        f"neither NIfTI nor MGH: it holds {len(content)} bytes and starts with {content[:8]!r}; "
        "a Git LFS or git-annex pointer has to be fetched first",
    )


def _nifti_header(path: Path, content: bytes, kind: type[nib.Nifti1Header], size: int, name: str) -> _Header:
    _require(path, content, size)
    header = kind(content[:size])
    if not bytes(header["magic"]).startswith(b"n+"):
        raise VolumeError(
            path,
            "unreadable",
            f"a header of an .hdr/.img pair or of Analyze (magic {bytes(header['magic'])!r}); "
            "convert it to a single .nii.gz file",
        )
    slope, intercept = header.get_slope_inter()
    scale = (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))
    shape = tuple(int(n) for n in header.get_data_shape())
    offset = int(header.get_data_offset())
    return _Header(name, header.get_data_dtype(), shape, header.get_best_affine(), offset, scale)


def _mgh_header(path: Path, content: bytes) -> _Header:
    _require(path, content, MGH_VOXELS_AT)
    header = MGHHeader.from_fileobj(io.BytesIO(content))
    shape = tuple(int(n) for n in header.get_data_shape())
    return _Header("mgh", header.get_data_dtype(), shape, header.get_affine(), MGH_VOXELS_AT, (1.0, 0.0))


def _take_apart(path: Path, content: bytes, header: _Header) -> ParsedFile:
    name, dtype, shape, affine, offset, scale = header
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or min(shape) < 1:
        raise VolumeError(path, "not-3d", f"shape {shape}; extract one 3-D volume (D, H, W) into a file of its own")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise VolumeError(path, "unsupported", f"voxel type {dtype} is no real number of 8 to 64 bits; convert it")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        text = f"affine {affine.tolist()} has no inverse; correct sform or qform in its header"
        raise VolumeError(path, "unreadable", text)
    if not np.isfinite(scale).all():
        text = f"slope and intercept are {scale}; correct scl_slope and scl_inter in its header"
        raise VolumeError(path, "not-finite", text)
    count = int(np.prod(shape, dtype=np.int64))
    end = offset + count * dtype.itemsize
    _require(path, content, end)
    raw = np.frombuffer(content, dtype=dtype, count=count, offset=offset).reshape(shape[:3], order="F")
    layout = SourceLayout(name, dtype.str, shape, np.array(affine, dtype=np.float64), content[:offset], content[end:])
    return ParsedFile(raw, *scale, layout)


def _require(path: Path, content: bytes, size: int) -> None:
    if len(content) < size:
        text = f"holds {len(content)} of the {size} bytes that its header promises; copy it again"
        raise VolumeError(path, "truncated", text)
