"""Splits NIfTI-1, NIfTI-2 and MGH files into bytes from which the same file can be written again.

nibabel parses the headers. The bytes are kept because its header objects drop or normalise some fields, extensions and
tags.
"""

from __future__ import annotations

import io
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.imageglobals import logger as nibabel_log
from nibabel.spatialimages import HeaderDataError

from voxelstore.errors import VolumeError

GZIP_MAGIC = b"\x1f\x8b"
GZIP = 31  # zlib's window bits for a gzip container, whose checksum it compares
MGH_VOXELS_AT = 284
UNITS = {1: 1000.0, 3: 0.001}  # NIfTI's metre and micrometre in mm; everything else is mm
SCANNER = 1  # NIfTI's code of coordinates in the scanner
# Quaternions are rounded to float32, in some tools to float16. A larger deviation is not a rotation.
QUATERNION_SLACK = 1e-2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceLayout:
    """How the voxels are stored in their file.

    format: "nifti1", "nifti2" or "mgh". dtype: with byte order, such as ">i2". shape: as on disk, with trailing
    singletons. affine: (4, 4) of the voxels as stored, in mm. prefix, suffix: the bytes before and after the voxels.
    """

    format: str
    dtype: str
    shape: tuple[int, ...]
    affine: np.ndarray
    prefix: bytes
    suffix: bytes


def on_grid(layout: SourceLayout, shape: tuple[int, ...], affine: np.ndarray) -> SourceLayout:
    """The layout of a file with as many voxels as `shape` says, (D, H, W) as stored, at `affine`, in mm.

    sform, qform and pixdim agree with the affine; an sform is set if the file had neither. A qform holds no shear.
    """
    affine = np.asarray(affine, np.float64)
    shape = (*shape, *layout.shape[3:])
    if layout.format == "mgh":
        mgh = MGHHeader.from_fileobj(io.BytesIO(layout.prefix))
        image = nib.MGHImage(np.broadcast_to(np.zeros((), layout.dtype), shape), affine, mgh)
        written = io.BytesIO()
        image.header.writehdr_to(written)
        prefix = written.getvalue()[:MGH_VOXELS_AT]
        return replace(layout, shape=shape, affine=affine, prefix=prefix)
    kind = nib.Nifti1Header if layout.format == "nifti1" else nib.Nifti2Header
    size = kind.template_dtype.itemsize
    header = kind(layout.prefix[:size])
    stored = affine.copy()
    stored[:3] /= UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    qform, sform = int(header["qform_code"]), int(header["sform_code"])
    header.set_data_shape(shape)
    header.set_qform(stored, qform)
    header.set_sform(stored, sform or (0 if qform else SCANNER))
    prefix = header.binaryblock + layout.prefix[size:]
    return replace(layout, shape=shape, affine=affine, prefix=prefix)


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
    corrected: tuple[tuple[int, bytes], ...] = ()  # other bytes of the header, and where they go


def decompressed(path: Path, content: bytes) -> bytes:
    """`content` without its gzip container, recognised by its first bytes. Bytes after it are ignored and logged."""
    if not content.startswith(GZIP_MAGIC):
        return content
    members, rest = [], content
    while rest.startswith(GZIP_MAGIC):
        member = zlib.decompressobj(GZIP)
        try:
            members.append(member.decompress(rest))
        except zlib.error as error:
            text = f"the gzip stream is damaged ({error}); copy the file again"
            raise VolumeError(path, "unreadable", text) from error
        if not member.eof:
            text = f"the gzip stream ends early, after {len(content)} bytes; copy the file again"
            raise VolumeError(path, "truncated", text)
        rest = member.unused_data
    if rest.strip(b"\0"):
        log.warning("%s: %d bytes after the gzip stream are ignored", path, len(rest))
    return b"".join(members)


def parse(path: Path, content: bytes) -> ParsedFile:
    """Parse the decompressed bytes of a file.

    Raises VolumeError: unreadable, truncated, unsupported (RGB, complex), not-3d, not-finite.
    """
    size = int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")
    try:
        with _silent_nibabel():
            if 348 in size:
                return _take_apart(path, content, _nifti_header(path, content, nib.Nifti1Header, 348, "nifti1"))
            if 540 in size:
                return _take_apart(path, content, _nifti_header(path, content, nib.Nifti2Header, 540, "nifti2"))
            if size[1] == 1:
                return _take_apart(path, content, _mgh_header(path, content))
    except VolumeError:
        raise
    except (HeaderDataError, ImageFileError, KeyError, ValueError, OverflowError, np.linalg.LinAlgError) as error:
        raise VolumeError(path, "unreadable", f"its header is damaged ({error}); export the volume again") from error
    raise VolumeError(
        path,
        "unreadable",
        f"neither NIfTI nor MGH: it holds {len(content)} bytes and starts with {content[:8]!r}; "
        "a Git LFS or git-annex pointer has to be fetched first",
    )


@contextmanager
def _silent_nibabel() -> Iterator[None]:
    """In the block, nibabel does not log. It logs what it corrects, and what it raises, without naming the file."""
    before, nibabel_log.disabled = nibabel_log.disabled, True
    try:
        yield
    finally:
        nibabel_log.disabled = before


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
    corrected = _corrected(path, header)
    slope, intercept = header.get_slope_inter()
    scale = (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))
    shape = tuple(int(n) for n in header.get_data_shape())
    affine = header.get_best_affine()
    affine[:3] *= UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    return _Header(name, header.get_data_dtype(), shape, affine, int(header["vox_offset"]), scale, corrected)


def _corrected(path: Path, header: nib.Nifti1Header) -> tuple[tuple[int, bytes], ...]:
    """Correct header fields that other readers correct too. Returns the changed bytes for the header of the output."""
    fields: dict[str, float] = {}
    if header["vox_offset"] == 0:
        fields["vox_offset"] = header.single_vox_offset
    elif not header["vox_offset"] >= header.single_vox_offset:
        text = (
            f"vox_offset {header['vox_offset']} lies inside its header of {header.single_vox_offset} bytes; correct it"
        )
        raise VolumeError(path, "unreadable", text)
    names = "quatern_b", "quatern_c", "quatern_d"
    length = float(np.sqrt(sum(float(header[name]) ** 2 for name in names)))
    if header["sform_code"] == 0 and header["qform_code"] > 0 and length > 1:
        if not length <= 1 + QUATERNION_SLACK:
            text = f"the quaternion of its qform has the length {length:.4g}, above 1; correct qform or give an sform"
            raise VolumeError(path, "unreadable", text)
        fields |= {name: float(header[name]) / (length * (1 + 1e-15)) for name in names}
    for name, value in fields.items():
        header[name] = value
    places = header.structarr.dtype.fields
    return tuple((places[name][1], header[name].tobytes()) for name in fields)


def _mgh_header(path: Path, content: bytes) -> _Header:
    _require(path, content, MGH_VOXELS_AT)
    header = MGHHeader.from_fileobj(io.BytesIO(content))
    shape = tuple(int(n) for n in header.get_data_shape())
    return _Header("mgh", header.get_data_dtype(), shape, header.get_affine(), MGH_VOXELS_AT, (1.0, 0.0))


def _take_apart(path: Path, content: bytes, header: _Header) -> ParsedFile:
    name, dtype, shape, affine, offset, scale, corrected = header
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or min(shape) < 1:
        raise VolumeError(path, "not-3d", f"shape {shape}; extract one 3-D volume (D, H, W) into a file of its own")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise VolumeError(path, "unsupported", f"voxel type {dtype} is not a real type of 8 to 64 bits; convert it")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * spacing.prod():
        text = f"affine {affine.tolist()} has no inverse; correct sform or qform in its header"
        raise VolumeError(path, "unreadable", text)
    if not np.isfinite(scale).all():
        text = f"slope and intercept are {scale}; correct scl_slope and scl_inter in its header"
        raise VolumeError(path, "not-finite", text)
    count = int(np.prod(shape, dtype=np.int64))
    end = offset + count * dtype.itemsize
    _require(path, content, end)
    raw = np.frombuffer(content, dtype=dtype, count=count, offset=offset).reshape(shape[:3], order="F")
    prefix = bytearray(content[:offset])
    for at, field in corrected:
        prefix[at : at + len(field)] = field
    layout = SourceLayout(name, dtype.str, shape, np.array(affine, dtype=np.float64), bytes(prefix), content[end:])
    return ParsedFile(raw, *scale, layout)


def _require(path: Path, content: bytes, size: int) -> None:
    if len(content) < size:
        text = f"holds {len(content)} of the {size} bytes that its header promises; copy it again"
        raise VolumeError(path, "truncated", text)
