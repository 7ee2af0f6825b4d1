"""One subject on disk: a Zarr v3 group of voxels and coarse foreground mask. Its record is an attribute of the
group.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from voxelstore.errors import StoreError
from voxelstore.files import atomic_write_json, real_path, whole_folder
from voxelstore.formats import SourceLayout
from voxelstore.intensity import MASK_BLOCK, foreground
from voxelstore.record import SubjectRecord
from voxelstore.volume import SourceVolume, to_physical

VOXELS = "voxels"
FOREGROUND = "foreground"
CHUNK = 64  # measured: docs/measurements/storage.md


def write_subject(folder: Path, volume: SourceVolume, sha256: str, group: str) -> SubjectRecord:
    """Write the Zarr group `folder`, atomically. A replaced subject keeps its split."""
    physical = volume.physical()
    mask, box = foreground(physical)
    shape = volume.voxels.shape
    record = SubjectRecord(
        subject=folder.name,
        split=read_record(folder).split if (folder / "zarr.json").exists() else None,
        group=group,
        shape=(shape[0], shape[1], shape[2]),
        spacing=volume.spacing,
        dtype=volume.voxels.dtype.name,
        slope=volume.slope,
        intercept=volume.intercept,
        affine=tuple(tuple(float(x) for x in row) for row in volume.affine),
        intensity=volume.intensity(),
        foreground_box=(box[0], box[1], box[2]),
        mask_block=MASK_BLOCK,
        source=str(real_path(volume.path)),
        sha256=sha256,
        size=volume.size,
        mtime_ns=volume.mtime_ns,
        content=content_hash(volume),
        image=image_hash(volume),
    )
    with whole_folder(folder) as temporary:
        write_array(temporary / VOXELS, volume.voxels)
        write_array(temporary / FOREGROUND, mask)
        write_group(temporary, {"record": record.to_json(), "layout": _layout_to_json(volume.layout)})
    return record


def content_hash(volume: SourceVolume) -> str:
    """SHA-256 of type, shape, scale and voxels. Old records have it instead of `image_hash`."""
    head = f"{volume.voxels.dtype.name} {volume.voxels.shape} {volume.slope!r} {volume.intercept!r}\n"
    digest = hashlib.sha256(head.encode())
    digest.update(np.ascontiguousarray(volume.voxels).data)
    return digest.hexdigest()


def image_hash(volume: SourceVolume) -> str:
    """SHA-256 of the image, independent of type, scale, container and orientation in the file.

    With up to 65,536 intensities it hashes their ranks from dark to bright, which rounding to another type does not
    change; with more, the physical float32 values.
    """
    stored = np.unique(volume.voxels)
    levels, ranks = np.unique(to_physical(stored, volume.slope, volume.intercept), return_inverse=True)
    digest = hashlib.sha256(f"image {volume.voxels.shape}\n".encode())
    for slab in volume.voxels:
        if len(levels) > 2**16:
            image = to_physical(slab, volume.slope, volume.intercept) + np.float32(0)  # -0.0 becomes 0.0
        else:
            image = ranks.astype(np.uint16)[np.searchsorted(stored, slab)]
        digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def write_array(folder: Path, data: np.ndarray, chunk: int = CHUNK) -> None:
    """Write a Zarr v3 array: chunks of chunk^3 voxels, each with a checksum, in one shard, which is one file."""
    chunks = tuple(min(chunk, n) for n in data.shape)
    array = zarr.create_array(
        zarr.storage.LocalStore(folder),
        shape=data.shape,
        dtype=data.dtype,
        chunks=chunks,
        shards=tuple(math.ceil(n / c) * c for n, c in zip(data.shape, chunks, strict=True)),
        compressors=[BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"), Crc32cCodec()],
        # Otherwise empty chunks are not written, and a lost chunk would look like an empty one.
        config={"write_empty_chunks": True},
        dimension_names=("left-right", "posterior-anterior", "inferior-superior"),
    )
    array[...] = data


def read_record(folder: Path) -> SubjectRecord:
    return SubjectRecord.from_json(_attributes(folder).get("record"), str(folder))


def read_source(folder: Path, voxels: np.ndarray) -> SourceVolume:
    """The volume as it was read from its source file. That file is not needed."""
    attributes = _attributes(folder)
    record = SubjectRecord.from_json(attributes.get("record"), str(folder))
    layout, path, affine = _layout_from_json(attributes["layout"]), Path(record.source), np.array(record.affine)
    file = record.sha256, record.size, record.mtime_ns
    return SourceVolume(voxels, record.slope, record.intercept, affine, path, layout, *file)


def update_record(folder: Path, **changes: Any) -> SubjectRecord:
    record = replace(read_record(folder), **changes)
    write_group(folder, {**_attributes(folder), "record": record.to_json()})
    return record


def write_group(folder: Path, attributes: dict[str, Any]) -> None:
    value = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    atomic_write_json(folder / "zarr.json", value)


def _attributes(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "zarr.json").read_bytes())["attributes"])
    except (FileNotFoundError, KeyError, ValueError) as error:
        text = f"{folder}: no subject's group, or a damaged one ({error}); delete the folder and convert again"
        raise StoreError(text) from error


def open_array(folder: Path, shape: tuple[int, ...]) -> zarr.Array[Any]:
    """An array of a subject. Raises StoreError if it is missing or of another shape."""
    try:
        array = zarr.open_array(folder, mode="r", zarr_format=3)
    except (FileNotFoundError, ValueError) as error:
        raise StoreError(f"{folder}: {error}; delete the subject's folder and convert again") from error
    if array.shape != shape:
        raise StoreError(f"{folder}: shape {array.shape}, the record says {shape}; delete the folder and convert again")
    return array


def data_version(folder: Path) -> tuple[int, int]:
    """A value that changes if an array's data file is replaced. Raises StoreError if the file is missing.

    Zarr reads a missing file as zeros without an error, even from an open array.
    """
    try:
        found = (folder / "c" / "0" / "0" / "0").stat()
    except OSError as error:
        text = f"{folder}: its data file is missing ({error.strerror}); delete the subject's folder and convert again"
        raise StoreError(text) from error
    return found.st_size, found.st_mtime_ns


def _layout_to_json(layout: SourceLayout) -> dict[str, Any]:
    packed = {key: base64.b64encode(zlib.compress(getattr(layout, key))).decode() for key in ("prefix", "suffix")}
    return {**vars(layout), "shape": list(layout.shape), "affine": layout.affine.tolist(), **packed}


def _layout_from_json(value: dict[str, Any]) -> SourceLayout:
    unpacked = {key: zlib.decompress(base64.b64decode(value[key])) for key in ("prefix", "suffix")}
    return SourceLayout(**{**value, "shape": tuple(value["shape"]), "affine": np.array(value["affine"]), **unpacked})
