"""Converts volume files to subjects of a store, one file at a time, without a scheduler."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

from voxelstore.errors import VolumeError
from voxelstore.files import open_regular, real_path
from voxelstore.record import SubjectRecord
from voxelstore.store import VolumeStore
from voxelstore.subject import content_hash, image_hash
from voxelstore.volume import EXTENSIONS, read_volume

BIDS = "bids:"
_NOT_RAW = ("derivatives", "sourcedata")
# A person's label in the Brain Imaging Data Structure (BIDS), in a folder's or a file's name.
_LABEL = re.compile(r"(?<![A-Za-z0-9])sub-[A-Za-z0-9]+")


def find_volumes(
    folder: str | Path, pattern: str = "*", on_error: Callable[[VolumeError], None] | None = None
) -> list[Path]:
    """Every .nii, .nii.gz and .mgz file below `folder` that matches `pattern`, sorted. Links to folders are followed.

    pattern: a glob for the file's name (`*_T1w.*`). A glob with a slash applies to the path below `folder`, and its
    star also matches slashes (`*/ses-1/*_T1w.nii.gz`). `bids:T1w` follows the rule of BIDS: names `sub-..._T1w` without
    a `space-` entity (images resampled to a template), outside of folders `derivatives` and `sourcedata` below
    `folder`. Hidden files and folders are skipped. on_error: called with a VolumeError for every folder that cannot be
    listed; if None, the error is raised. Raises NotADirectoryError.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"{root}: no such folder; give the one that holds the volumes")
    found: list[Path] = []
    followed: set[Path] = set()
    skipped = _NOT_RAW if pattern.startswith(BIDS) else ()

    def cannot_list(error: OSError) -> None:
        text = f"cannot be listed ({error.strerror}); check its permissions, or take it out of the folder"
        problem = VolumeError(error.filename, "unreadable", text)
        if on_error is None:
            raise problem
        on_error(problem)

    for parent, folders, names in os.walk(root, followlinks=True, onerror=cannot_list):
        inside = [name for name in folders if name[0] != "." and name not in skipped]
        folders[:] = sorted(n for n in inside if _may_enter(Path(parent, n), real_path(root), followed))
        paths = [Path(parent, n) for n in names if n.lower().endswith(EXTENSIONS) and n[0] != "."]
        found += [path for path in paths if _fits(path.relative_to(root), pattern)]
    return sorted(found)


def _fits(path: Path, pattern: str) -> bool:
    if not pattern.startswith(BIDS):
        return fnmatchcase(path.as_posix() if "/" in pattern else path.name, pattern)
    *entities, suffix = path.name.split(".")[0].split("_")
    if not entities or not entities[0].startswith("sub-"):
        return False
    return fnmatchcase(suffix, pattern.removeprefix(BIDS)) and not any(e.startswith("space-") for e in entities)


def _may_enter(folder: Path, root: Path, followed: set[Path]) -> bool:
    """Whether to enter a folder. A link is refused if its target is visited otherwise."""
    if not os.path.islink(folder):
        return True
    target = real_path(folder)
    if root.is_relative_to(target) or any(target.is_relative_to(known) for known in (root, *followed)):
        return False
    followed.add(target)
    return True


def person_of(path: str | Path, root: str | Path) -> str:
    """The person: `sub-LABEL` anywhere in the path below `root`, else its first folder, else the file."""
    relative = Path(path).relative_to(root)
    if label := _LABEL.search(relative.as_posix()):
        return label.group()
    return relative.parts[0] if len(relative.parts) > 1 else subject_id(path, root)


def subject_id(path: str | Path, root: str | Path | None = None) -> str:
    """A name for the subject that is valid for a folder: 'site1/sub-01.nii' below `root` -> 'site1__sub-01'.

    If a character is replaced, eight digits of the relative path's SHA-256 keep the name unique.
    """
    path = Path(path)
    parts = list(path.relative_to(root).parts) if root is not None else [path.name]
    extension = next((e for e in EXTENSIONS if parts[-1].lower().endswith(e)), "")
    plain = "__".join([*parts[:-1], parts[-1][: len(parts[-1]) - len(extension)]])
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", plain).lstrip(".") or "subject"
    if safe != plain or len(safe) > 150:
        safe = f"{safe[:150]}-{hashlib.sha256(os.fsencode('/'.join(parts))).hexdigest()[:8]}"
    return safe


def convert_volume(
    path: str | Path, store_path: str | Path, subject: str, min_size: int = 32, group: str | None = None
) -> SubjectRecord:
    """Read, check and store one file. The store must exist. group: see `person_of`. Raises VolumeError, StoreError."""
    volume = read_volume(path)
    if min(volume.voxels.shape) < min_size:
        text = (
            f"shape {volume.voxels.shape} has an edge below {min_size} voxels; "
            "lower data.min_size, and stream.patch_size and validation.patch_size with it, or leave it out"
        )
        raise VolumeError(path, "too-small", text)
    return VolumeStore.open(store_path).write_subject(subject, volume, group=group)


def file_hash(path: str | Path) -> str:
    with open_regular(Path(path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same_image(path: str | Path, record: SubjectRecord) -> bool:
    """Whether a file holds the image of a stored subject, in whatever container. Raises VolumeError."""
    volume = read_volume(path)
    return record.content_hash == (image_hash(volume) if record.image else content_hash(volume))


def drop_duplicates(store: VolumeStore) -> dict[str, tuple[SubjectRecord, str]]:
    """Remove stored subjects with the same image as another: subject -> (its record, the subject that stays).

    Of equal subjects, one with a split stays (it may have been trained on), else one that the manifest lists, else the
    first by name. A copy in another split would leak training data.
    """
    listed = set(store.subjects())
    records = store.stored_records().values()
    order = sorted(records, key=lambda r: (r.split is None, r.subject not in listed, r.subject))
    kept: dict[str, str] = {}
    dropped = {}
    for record in order:
        hashes = {record.content, record.content_hash}
        twin = next((kept[one] for one in hashes if one in kept), None)
        kept |= dict.fromkeys(hashes - kept.keys(), twin or record.subject)
        if twin is not None:
            store.remove_subject(record.subject)
            dropped[record.subject] = record, twin
    return dropped
