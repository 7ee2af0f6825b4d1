"""The volume store: one Zarr v3 group per subject, and a manifest that lists the subjects."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from voxelstore.errors import StoreError
from voxelstore.files import atomic_write_json, clean, locked, remove_folder
from voxelstore.manifest import MANIFEST, new_manifest, read_manifest
from voxelstore.record import SubjectRecord
from voxelstore.splits import SplitRule, assign_splits
from voxelstore.subject import (
    FOREGROUND,
    VOXELS,
    data_version,
    image_hash,
    open_array,
    read_record,
    read_source,
    update_record,
    write_group,
    write_subject,
)
from voxelstore.volume import SourceVolume, to_physical

Region = tuple[slice, slice, slice]  # a part of a volume: one slice along each axis
SUBJECTS = "subjects"
WRITERS_LOCK = ".writers.lock"
MANIFEST_LOCK = ".manifest.lock"


class VolumeStore:
    """Brain volumes, (D, H, W) in canonical orientation (RAS+), as listed when it was opened.

    A pickle contains only path and manifest; opened arrays are kept per process.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self._take(manifest)

    @classmethod
    def open(cls, path: str | Path) -> VolumeStore:
        """Open an existing store. Raises StoreError if it is missing, of another schema, or damaged."""
        path = Path(path).resolve()
        return cls(path, read_manifest(path))

    @staticmethod
    def exists(path: str | Path) -> bool:
        return (Path(path) / MANIFEST).exists()

    @classmethod
    def create(cls, path: str | Path) -> VolumeStore:
        """Open the store at `path`; create it if nothing exists there."""
        path = Path(path).resolve()
        if not cls.exists(path):
            (path / SUBJECTS).mkdir(parents=True, exist_ok=True)
            with locked(path / MANIFEST_LOCK), locked(path / WRITERS_LOCK, shared=True):
                if not cls.exists(path):
                    write_group(path, {})
                    write_group(path / SUBJECTS, {})
                    atomic_write_json(path / MANIFEST, new_manifest({}, {}, None))
        return cls.open(path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}

    def __repr__(self) -> str:
        return f"VolumeStore({str(self.path)!r}, {len(self._records)} subjects)"

    def subjects(self, split: str | None = None) -> list[str]:
        return [s for s, record in self._records.items() if split is None or record.split == split]

    def splits(self) -> dict[str, list[str]]:
        """Subjects by split, sorted; subjects without a split are not listed."""
        names = sorted({record.split for record in self._records.values() if record.split is not None})
        return {name: self.subjects(name) for name in names}

    def record(self, subject: str) -> SubjectRecord:
        """The record of a subject. Raises StoreError if the manifest does not list it."""
        if subject not in self._records:
            text = f"no subject {subject!r} among its {len(self._records)}; subjects() lists them, converting adds them"
            raise StoreError(f"{self.path}: {text}")
        return self._records[subject]

    def read(self, subject: str, region: Region | None = None) -> np.ndarray:
        """Physical intensities, float32: the volume (D, H, W), or the part given by three slices."""
        record = self.record(subject)
        return to_physical(self._voxels(subject, region), record.slope, record.intercept)

    def read_normalised(self, subject: str, region: Region | None = None) -> np.ndarray:
        """`read`, mapped so that the subject's robust `low` is 0 and its `high` is 1; not clipped."""
        return self.record(subject).normalised(self._voxels(subject, region))

    def normalised_parts(
        self, subject: str, region: Region, axis: int, voxels: int | None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """`read_normalised` of a region, part by part along `axis`: (the part's first index along it, the part).

        voxels: the size of a part, at least one slice; None: one part. Every block is decoded once, and one layer of
        blocks is in memory at a time.
        """
        record = self.record(subject)
        first, last, _ = region[axis].indices(record.shape[axis])
        block = last if voxels is None else self._array(subject)[0].chunks[axis]
        while first < last:
            end = min(last, (first // block + 1) * block)
            layer = self._voxels(subject, _along(axis, slice(first, end), region))
            step = end - first if voxels is None else max(1, voxels * (end - first) // max(1, layer.size))
            for start in range(0, end - first, step):
                yield first + start, record.normalised(layer[_along(axis, slice(start, start + step))])
            first = end

    def sizes(self, subject: str) -> tuple[int, int]:
        """Bytes of a subject's voxels in the store, and decoded."""
        record, folder = self.record(subject), self._folder(subject) / VOXELS
        stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        return stored, math.prod(record.shape) * np.dtype(record.dtype).itemsize

    def foreground(self, subject: str) -> np.ndarray:
        """Coarse foreground mask, bool, ceil(shape / mask_block): True where the block holds foreground."""
        record = self.record(subject)
        shape = tuple(math.ceil(n / record.mask_block) for n in record.shape)
        folder = self._folder(subject) / FOREGROUND
        version = data_version(folder)
        return _read(folder, open_array(folder, shape), version, ...).astype(bool)

    def source(self, subject: str) -> SourceVolume:
        """The subject as `read_volume` returned it; `write_volume` needs it to write into the subject's own space."""
        return read_source(self._folder(subject), self._voxels(subject, None))

    def fingerprint(self, split: str | None = None) -> str:
        """SHA-256 over the subjects (of one split, or all), their sources' SHA-256 and their splits."""
        lines = [f"{s} {self._records[s].sha256} {self._records[s].split}\n" for s in self.subjects(split)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def rule(self) -> SplitRule | None:
        """The rule that split the subjects; None before the first `update_manifest` or if the manifest was lost."""
        return self._rule

    @property
    def left_out(self) -> dict[str, dict[str, Any]]:
        """Source files that conversion left out: path -> reason, message, stat and so on."""
        return dict(self._left_out)

    def write_subject(
        self, subject: str, volume: SourceVolume, sha256: str | None = None, group: str | None = None
    ) -> SubjectRecord:
        """Store a volume under `subject`, atomically. A replaced subject keeps its split.

        sha256: of the source file, by default `volume.sha256`. group: the person, by default the subject itself.
        `update_manifest` lists the subject. Raises StoreError for a name that is not valid for a folder.
        """
        with locked(self.path / WRITERS_LOCK, shared=True):
            return write_subject(self._folder(subject), volume, sha256 or volume.sha256, group or subject)

    def remove_subject(self, subject: str) -> None:
        """Delete a subject's folder. The manifest lists it until `update_manifest`."""
        with locked(self.path / WRITERS_LOCK, shared=True):
            remove_folder(self._folder(subject))

    def note_source(self, subject: str, source: str, size: int, mtime_ns: int) -> None:
        """Record the present path of an unchanged source, so it need not be hashed. Add `image` to an old record."""
        folder = self._folder(subject)
        with locked(self.path / WRITERS_LOCK, shared=True):
            record = read_record(folder)
            image = record.image or image_hash(
                read_source(folder, np.asarray(open_array(folder / VOXELS, record.shape)[...]))
            )
            update_record(folder, source=source, size=size, mtime_ns=mtime_ns, image=image)

    def stored_records(self) -> dict[str, SubjectRecord]:
        """The records in the subjects' own folders, sorted by name, whether or not the manifest lists them."""
        folders = sorted(p for p in (self.path / SUBJECTS).iterdir() if p.is_dir() and p.name[0] != ".")
        return {folder.name: read_record(folder) for folder in folders}

    def stored_record(self, subject: str) -> SubjectRecord:
        """The record in a subject's own folder, whether or not the manifest lists it. Raises StoreError."""
        return read_record(self._folder(subject))

    def clean(self) -> list[str]:
        """Delete what killed writers left, unless a writer is running. Returns the names of what it deleted."""
        with locked(self.path / WRITERS_LOCK, wait=False) as no_writer:
            return clean(self.path / SUBJECTS) + clean(self.path) if no_writer else []

    def update_manifest(
        self,
        fractions_or_counts: Mapping[str, float | int],
        seed: int,
        left_out: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """List every stored subject, assign missing splits (`assign_splits`), and record the rule. Raises ValueError.

        Splits are written to the subjects' own records first, so the manifest can be rebuilt.
        """
        with self._changing_manifest():
            records = self.stored_records()
            assigned = {subject: record.split for subject, record in records.items()}
            groups = {subject: record.group for subject, record in records.items()}
            for subject, split in assign_splits(assigned, records, fractions_or_counts, seed, groups).items():
                if split != assigned[subject]:
                    records[subject] = update_record(self._folder(subject), split=split)
            rule = SplitRule({name: float(share) for name, share in fractions_or_counts.items()}, seed)
            self._write_manifest(records, self._left_out if left_out is None else left_out, rule)

    def rebuild_manifest(self) -> None:
        """Write the manifest from the subjects' own records, splits included."""
        with self._changing_manifest():
            self._write_manifest(self.stored_records(), self._left_out, self._rule)

    @contextmanager
    def _changing_manifest(self) -> Iterator[None]:
        with locked(self.path / MANIFEST_LOCK), locked(self.path / WRITERS_LOCK, shared=True):
            yield

    def _write_manifest(
        self, records: Mapping[str, SubjectRecord], left_out: Mapping[str, Any], rule: SplitRule | None
    ) -> None:
        atomic_write_json(self.path / MANIFEST, new_manifest(records, left_out, rule))
        self._take(read_manifest(self.path))

    def _take(self, manifest: Mapping[str, Any]) -> None:
        where = str(self.path / MANIFEST)
        subjects = sorted(manifest["subjects"].items())
        self._records = {subject: SubjectRecord.from_json(value, f"{where}, {subject}") for subject, value in subjects}
        self._left_out: dict[str, Any] = dict(manifest["left_out"])
        self._rule = None if manifest["splits"] is None else SplitRule.from_json(manifest["splits"])
        self._arrays: dict[str, tuple[zarr.Array[Any], tuple[int, ...]]] = {}

    def _folder(self, subject: str) -> Path:
        if not subject or subject[0] == "." or "/" in subject:
            raise StoreError(f"subject {subject!r} cannot be a folder's name; subject_id() makes one")
        return self.path / SUBJECTS / subject

    def _array(self, subject: str) -> tuple[zarr.Array[Any], tuple[int, ...]]:
        """The open array and the version of its data file, both of the volume that the manifest describes."""
        if subject not in self._arrays:
            record, folder = self.record(subject), self._folder(subject)
            version = data_version(folder / VOXELS)
            self._arrays[subject] = open_array(folder / VOXELS, record.shape), version
            if read_record(folder).sha256 != record.sha256:
                del self._arrays[subject]
                raise StoreError(
                    f"{folder}: was converted from another file than {MANIFEST} describes; let `mrisr convert` end, or "
                    "run it again"
                )
        return self._arrays[subject]

    def _voxels(self, subject: str, region: Region | None) -> np.ndarray:
        folder = self._folder(subject) / VOXELS
        return _read(folder, *self._array(subject), ... if region is None else region)


def _read(folder: Path, array: zarr.Array[Any], version: tuple[int, ...], region: Any) -> np.ndarray:
    """A region of an open array. Raises StoreError for damage, or if the data file is not that of `version`."""
    try:
        found = np.asarray(array[region])
    except (ValueError, RuntimeError, OSError) as error:  # a checksum's, a codec's and the disk's errors
        raise StoreError(f"{folder}: damaged data ({error}); delete the subject's folder and convert again") from error
    if data_version(folder) != version:
        raise StoreError(f"{folder}: was converted again while the store was open; open the store again")
    return found


def _along(axis: int, chosen: slice, region: Region = (slice(None), slice(None), slice(None))) -> Region:
    d, h, w = (chosen if a == axis else part for a, part in enumerate(region))
    return d, h, w
