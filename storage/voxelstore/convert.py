"""From a folder of volume files to subjects of a store, one file at a time, without a scheduler."""

from __future__ import annotations

import hashlib
import os
import re
from fnmatch import fnmatchcase
from pathlib import Path

from voxelstore.errors import VolumeError
from voxelstore.record import SubjectRecord
from voxelstore.store import VolumeStore
from voxelstore.volume import EXTENSIONS, read_volume

# A person's label in the Brain Imaging Data Structure (BIDS), in a folder's or a file's name.
_LABEL = re.compile(r"(?<![A-Za-z0-9])sub-[A-Za-z0-9]+")


def find_volumes(folder: str | Path, pattern: str = "*") -> list[Path]:
    """Every .nii, .nii.gz and .mgz file below `folder` that matches `pattern`, sorted; links to folders are followed.

    pattern: a glob on the file's name (`*T1w*`). With a slash it is a glob on the path below `folder`, and a star also
    matches slashes (`*/ses-1/*_T1w.nii.gz`). Hidden files and folders are skipped. Raises NotADirectoryError.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"{root}: no such folder; give the one that holds the volumes")
    found: list[Path] = []
    followed: set[Path] = set()
    for parent, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(n for n in folders if n[0] != "." and _leads_on(Path(parent, n), root.resolve(), followed))
        paths = [Path(parent, n) for n in names if n.lower().endswith(EXTENSIONS) and n[0] != "."]
        whole = "/" in pattern
        found += [p for p in paths if fnmatchcase(p.relative_to(root).as_posix() if whole else p.name, pattern)]
    return sorted(found)


def _leads_on(folder: Path, root: Path, followed: set[Path]) -> bool:
    """Whether to enter a folder: not a link to a folder that the search visits already, and each link's target once."""
    if not folder.is_symlink():
        return True
    target = folder.resolve()
    if root.is_relative_to(target) or any(target.is_relative_to(known) for known in (root, *followed)):
        return False
    followed.add(target)
    return True


def person_of(path: str | Path, root: str | Path) -> str:
    """The person on the volume; all files of one person share a split.

    `sub-LABEL` from anywhere in the path below `root` (BIDS), else the first folder below `root`
    (100307/T1w/T1w.nii.gz in HCP), else the file's own `subject_id`.
    """
    relative = Path(path).relative_to(root)
    if label := _LABEL.search(relative.as_posix()):
        return label.group()
    return relative.parts[0] if len(relative.parts) > 1 else subject_id(path, root)


def subject_id(path: str | Path, root: str | Path | None = None) -> str:
    """A name for the subject in `path` that can be a folder's: letters, digits, '.', '_', '-'.

    'sub-01_T1w.nii.gz' -> 'sub-01_T1w'. Folders below `root` are part of the name: 'site1/sub-01.nii' ->
    'site1__sub-01'. If a character is replaced, eight digits of the relative path's SHA-256 keep the name unique.
    """
    path = Path(path)
    parts = list(path.relative_to(root).parts) if root is not None else [path.name]
    extension = next((e for e in EXTENSIONS if parts[-1].lower().endswith(e)), "")
    plain = "__".join([*parts[:-1], parts[-1][: len(parts[-1]) - len(extension)]])
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", plain).lstrip(".") or "subject"
    if safe != plain or len(safe) > 150:
        safe = f"{safe[:150]}-{hashlib.sha256('/'.join(parts).encode()).hexdigest()[:8]}"
    return safe


def convert_volume(
    path: str | Path, store_path: str | Path, subject: str, min_size: int = 32, group: str | None = None
) -> SubjectRecord:
    """Read, check and store one file; the store must exist. group: see `person_of`. Raises VolumeError, StoreError."""
    volume = read_volume(path)
    if min(volume.voxels.shape) < min_size:
        text = (
            f"shape {volume.voxels.shape} has an edge below {min_size} voxels; "
            "lower data.min_size, and stream.patch_size and validation.patch_size with it, or leave it out"
        )
        raise VolumeError(path, "too-small", text)
    return VolumeStore.open(store_path).write_subject(subject, volume, group=group)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, read piece by piece."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def drop_duplicates(store: VolumeStore) -> dict[str, tuple[SubjectRecord, str]]:
    """Remove stored subjects whose voxels equal another's: subject -> (its record, the subject that stays).

    Of equal subjects, one with a split stays (it may have been trained on), else one that the manifest lists, else the
    first by name. A copy in another split would leak.
    """
    listed = set(store.subjects())
    records = store.stored_records().values()
    order = sorted(records, key=lambda r: (r.split is None, r.subject not in listed, r.subject))
    kept: dict[str, str] = {}
    dropped = {}
    for record in order:
        twin = kept.setdefault(record.content, record.subject)
        if twin != record.subject:
            store.remove_subject(record.subject)
            dropped[record.subject] = record, twin
    return dropped
