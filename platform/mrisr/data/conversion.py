"""Converts a folder of volume files into a volume store, with one Ray task per file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console

from mrisr.cluster import wait_for_cpu
from mrisr.config.schema import Data
from mrisr.counted import counted
from mrisr.data.splits import agreed_rule
from mrisr.files import check_output, describe_os_error
from voxelstore import (
    StoreError,
    SubjectRecord,
    VolumeError,
    VolumeStore,
    convert_volume,
    find_volumes,
    person_of,
    subject_id,
)
from voxelstore.convert import drop_duplicates, file_hash, same_image
from voxelstore.errors import printable
from voxelstore.files import real_path

# Reasons that can end while the file's size and time stay the same (permissions, a fetched annex, memory).
TRY_AGAIN = ("unreadable", "worker-died", "name-clash", "too-large")


class LeftOut(NamedTuple):
    """A file that is not in the store, with reason and remedy. twin: of a duplicate, the subject in the store."""

    path: Path
    reason: str
    message: str
    twin: str = ""


Outcome = Literal["converted", "unchanged"] | LeftOut
Outcomes = dict[Path, Outcome]


@dataclass(frozen=True)
class ConversionSummary:
    """splits: number of subjects in each; people: number in the store; orphaned: subjects whose file is gone."""

    converted: list[str]
    unchanged: list[str]
    left_out: list[LeftOut]
    splits: dict[str, int]
    people: int
    unassigned: list[str] = field(default_factory=list)
    orphaned: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return 3 if self.left_out else 0

    def lines(self) -> list[str]:
        counts = f"{len(self.converted)} converted, {len(self.unchanged)} unchanged, {len(self.left_out)} left out"
        shares = ", ".join(f"{name} {count}" for name, count in self.splits.items()) or "none"
        lines = [counts, f"splits: {shares}"]
        volumes = sum(self.splits.values()) + len(self.unassigned)
        if self.people == 1 < volumes:
            lines.append(
                f"all {volumes} volumes are taken for one person's and share a split: their paths hold no sub-LABEL "
                "and begin with the same folder. If they are several people's, give that folder itself"
            )
        elif self.people < volumes:
            lines.append(f"{volumes} volumes of {self.people} people; all volumes of a person share a split")
        if self.unassigned:
            lines.append(
                f"{len(self.unassigned)} subjects are in no split, as data.splits asks for fewer: "
                f"{_few(self.unassigned)}"
            )
        if self.orphaned:
            lines.append(
                f"{len(self.orphaned)} subjects stay in the store though their files are gone or data.pattern leaves "
                f"them out; convert into a new data.store to drop them: {_few(self.orphaned)}"
            )
        left_out = [f"left out ({item.reason}) {item.path}: {item.message}" for item in self.left_out]
        return list(map(printable, lines + left_out))


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


class SourceFile(NamedTuple):
    """A file, its subject and person, and the store's record of that subject. clashes: another file of the folder has
    the same subject name and comes first.
    """

    path: Path
    subject: str
    person: str
    known: SubjectRecord | None
    clashes: bool = False

    def is_source_of_known(self) -> bool:
        return self.known is not None and self.known.source == str(real_path(self.path))


def convert_folder(
    source: str | Path, data: Data, *, verify: bool = False, console: Console | None = None
) -> ConversionSummary:
    """Convert the .nii, .nii.gz and .mgz files below `source` into data.store, which is created if missing.

    Ray must be initialised; every node must see both paths. A file with a recorded size and modification time is not
    read again; with `verify` it is hashed. A file with a recorded SHA-256 is not decoded. Subjects keep their split.
    Raises FileNotFoundError for a folder without volumes, ValueError for splits with a wrong sum or other splits than
    the store's, StoreError.
    """
    rule = agreed_rule(VolumeStore.open(data.store) if VolumeStore.exists(data.store) else None, data)
    root = real_path(Path(source))
    unlisted: Outcomes = {}
    paths = _choose(root, data.pattern, unlisted)
    if real_path(data.store) == root:
        raise StoreError(f"data.store = {data.store}: this is the folder of the volumes; give a path of its own")
    store = VolumeStore.create(data.store)
    store.clean()
    records = store.stored_records()
    names = {path: subject_id(path, root) for path in paths}
    files = _with_clashes(
        [SourceFile(path, name, person_of(path, root), records.get(name)) for path, name in names.items()]
    )
    outcomes = unlisted | ({} if verify else _without_reading(files, store.left_out, records, data.min_size))
    waiting = [file for file in files if file.path not in outcomes]
    _check_room(store.path, sum((_stat(file.path) or (0, 0))[0] for file in waiting) // 4)
    outcomes |= _run_tasks(waiting, store.path, data.min_size, console)
    _leave_out_duplicates(store, files, outcomes)
    store.update_manifest(rule.splits, rule.seed, _left_out_entries(store, root, outcomes, data.min_size))
    return _summary(store, root, files, outcomes)


def _choose(root: Path, pattern: str, unlisted: Outcomes) -> list[Path]:
    """The files to convert. Folders that cannot be listed are added to `unlisted`."""

    def leave_out(error: VolumeError) -> None:
        unlisted[Path(error.path)] = LeftOut(Path(error.path), error.reason, error.message)

    paths = find_volumes(root, pattern, leave_out)
    if not paths and (others := len(find_volumes(root, on_error=leave_out))):
        raise FileNotFoundError(f"data.pattern = {pattern!r}: fits none of the {others} volumes below {root}; widen it")
    if not paths:
        problem = "; ".join(f"{item.path} {item.message}" for item in _left_out(unlisted))
        raise FileNotFoundError(
            f"{root}: holds no .nii, .nii.gz or .mgz file; {problem or 'give the folder of the volumes'}"
        )
    return paths


def _check_room(store: Path, space: int) -> None:
    """Raise StoreError if the store cannot be written, or has no room for `space` bytes."""
    try:
        check_output(store, folder=True, space=space)
    except OSError as error:
        raise StoreError(f"data.store = {store}: {describe_os_error(error)}") from None


def _with_clashes(files: Sequence[SourceFile]) -> list[SourceFile]:
    """The files with `clashes` set. Of equal names, the stored subject's file comes first, then the first by path."""
    first: dict[str, SourceFile] = {}
    for file in files:
        if file.subject not in first or file.is_source_of_known():
            first[file.subject] = file
    return [file._replace(clashes=first[file.subject] is not file) for file in files]


def _without_reading(
    files: Sequence[SourceFile], left_out: Mapping[str, Any], records: Mapping[str, SubjectRecord], min_size: int
) -> Outcomes:
    """The files whose outcome follows from size and time: stored ones, and those left out for a permanent reason."""
    outcomes: Outcomes = {}
    for file in files:
        stat, known, entry = _stat(file.path), file.known, left_out.get(str(file.path))
        same = known is not None and file.is_source_of_known() and stat == (known.size, known.mtime_ns)
        if same and known is not None and known.image:
            outcomes[file.path] = "unchanged"
        elif (
            entry is not None
            and entry["reason"] not in TRY_AGAIN
            and entry["min_size"] == min_size
            and entry["stat"] is not None
            and stat == tuple(entry["stat"])
            and (entry["reason"] != "duplicate" or entry["twin"] in records)
        ):
            outcomes[file.path] = LeftOut(file.path, entry["reason"], entry["message"], entry["twin"])
    return outcomes


def _run_tasks(files: Sequence[SourceFile], store: Path, min_size: int, console: Console | None) -> Outcomes:
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

    if files:
        wait_for_cpu(1)
    task = ray.remote(num_cpus=1, max_retries=1)(convert_files)
    subjects: dict[str, list[SourceFile]] = {}
    for file in sorted(files, key=lambda file: file.clashes):
        subjects.setdefault(file.subject, []).append(file)
    waiting = {task.remote(same_name, store, min_size): same_name for same_name in subjects.values()}
    outcomes: Outcomes = {}
    with counted("converting", len(files), console) as after:
        while waiting:
            [done], _ = ray.wait(list(waiting), num_returns=1)
            same_name = waiting.pop(done)
            try:
                found: list[Outcome] = ray.get(done)
            except (WorkerCrashedError, OutOfMemoryError, NodeDiedError) as error:
                text = f"its task died twice ({type(error).__name__}); give a task more memory and convert again"
                found = [LeftOut(file.path, "worker-died", text) for file in same_name]
            except RayTaskError as error:
                if isinstance(error.cause, StoreError):
                    raise error.cause from None  # a line; Ray's own message holds the task's traceback
                raise
            outcomes |= zip((file.path for file in same_name), found, strict=True)
            last = found[0].reason if isinstance(found[0], LeftOut) else found[0]
            after(f"{same_name[0].subject} {last}", len(found))
    return outcomes


def convert_files(files: Sequence[SourceFile], store: Path, min_size: int) -> list[Outcome]:
    """One Ray task: convert the files of one subject name. The first usable one is stored, the others are left out."""
    outcomes: list[Outcome] = []
    stored: SubjectRecord | None = None
    for file in files:
        outcomes.append(convert_file(file if stored is None else file._replace(known=stored), store, min_size))
        if outcomes[-1] == "converted":
            stored = VolumeStore.open(store).stored_record(file.subject)
    return outcomes


def convert_file(file: SourceFile, store: Path, min_size: int) -> Outcome:
    """Convert a file unless its content is stored. A full disk or a damaged store raises StoreError."""
    try:
        if file.known is not None:
            stat = _stat(file.path)
            if not file.clashes and stat is not None and _hash(file.path) == file.known.sha256:
                VolumeStore.open(store).note_source(file.subject, str(real_path(file.path)), *stat)
                return "unchanged"
            if not file.is_source_of_known() and Path(file.known.source).exists():
                return _name_clash(file, file.known)
        convert_volume(file.path, store, file.subject, min_size, file.person)
    except VolumeError as error:
        kept = "; the store keeps what was converted before" if file.known is not None else ""
        return LeftOut(file.path, error.reason, error.message + kept)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(describe_os_error(error, error.filename or store)) from None
    except MemoryError as error:
        text = f"does not fit into the memory of its task ({str(error) or 'MemoryError'}); crop it, or leave it out"
        return LeftOut(file.path, "too-large", text)
    except ValueError as error:
        return LeftOut(file.path, "unusable", f"{error}; export the volume again, or leave it out")
    return "converted"


def _name_clash(file: SourceFile, known: SubjectRecord) -> LeftOut:
    """Why a file is left out whose subject name is that of another, stored file. Raises VolumeError."""
    if same_image(file.path, known):
        text = f"holds the same image as {known.source}; remove one of the two files"
        return LeftOut(file.path, "duplicate", text, known.subject)
    text = f"its subject name {file.subject!r} is that of {known.source}; rename the file or its folder"
    return LeftOut(file.path, "name-clash", text)


def _leave_out_duplicates(store: VolumeStore, files: Sequence[SourceFile], outcomes: Outcomes) -> None:
    paths = {file.subject: file.path for file in files if not isinstance(outcomes[file.path], LeftOut)}
    for subject, (record, twin) in drop_duplicates(store).items():
        path = paths.get(subject, Path(record.source))
        text = f"holds the same image as subject {twin!r}; remove one of the two files"
        outcomes[path] = LeftOut(path, "duplicate", text, twin)


def _left_out(outcomes: Outcomes) -> list[LeftOut]:
    return sorted(outcome for outcome in outcomes.values() if isinstance(outcome, LeftOut))


def _left_out_entries(store: VolumeStore, root: Path, outcomes: Outcomes, min_size: int) -> dict[str, dict[str, Any]]:
    """The manifest's list of left-out files: new entries for this folder, unchanged ones for other folders."""
    entries = {path: entry for path, entry in store.left_out.items() if not Path(path).is_relative_to(root)}
    for path, reason, message, twin in _left_out(outcomes):
        entry = {"reason": reason, "message": message, "twin": twin, "min_size": min_size, "stat": _stat(path)}
        entries[str(path)] = entry
    return entries


def _summary(store: VolumeStore, root: Path, files: Sequence[SourceFile], outcomes: Outcomes) -> ConversionSummary:
    records = {subject: store.record(subject) for subject in store.subjects()}
    chosen = {str(real_path(file.path)) for file in files}
    return ConversionSummary(
        converted=[file.subject for file in files if outcomes[file.path] == "converted"],
        unchanged=[file.subject for file in files if outcomes[file.path] == "unchanged"],
        left_out=_left_out(outcomes),
        splits={name: len(members) for name, members in store.splits().items()},
        people=len({record.group for record in records.values()}),
        unassigned=[s for s, record in records.items() if record.split is None],
        orphaned=[s for s, r in records.items() if r.source not in chosen and Path(r.source).is_relative_to(root)],
    )


def _hash(path: Path) -> str | None:
    """SHA-256; None for a file that cannot be read. `read_volume` then reports the error."""
    try:
        return file_hash(path)
    except OSError:
        return None


def _stat(path: Path) -> tuple[int, int] | None:
    """Size and modification time; None for a missing file, such as the target of a broken link."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
