"""A folder of volume files into a volume store, one Ray task per file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mrisr.data.splits import agreed_rule
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
from voxelstore.convert import drop_duplicates, file_hash
from voxelstore.store import MANIFEST


class LeftOut(NamedTuple):
    """A file that is not in the store: its path, a short reason (`VolumeError.reason`), and what to do about it."""

    path: str
    reason: str
    message: str


@dataclass(frozen=True)
class ConversionSummary:
    """What a conversion did. converted, unchanged, unassigned, forsaken: subjects.

    splits: how many subjects each split has. people: how many people the store's subjects are. forsaken: stored ones
    whose file below the folder is gone, or is not among those that the pattern chooses any more.
    """

    converted: list[str]
    unchanged: list[str]
    left_out: list[LeftOut]
    splits: dict[str, int]
    people: int
    unassigned: list[str] = field(default_factory=list)
    forsaken: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0: every file is in the store; 3: something was left out."""
        return 3 if self.left_out else 0

    def lines(self) -> list[str]:
        """The summary as plain lines, one per file left out."""
        counts = f"{len(self.converted)} converted, {len(self.unchanged)} unchanged, {len(self.left_out)} left out"
        shares = ", ".join(f"{name} {count}" for name, count in self.splits.items()) or "none"
        lines = [counts, f"splits: {shares}"]
        volumes = sum(self.splits.values()) + len(self.unassigned)
        if self.people == 1 < volumes:
            lines.append(
                f"all {volumes} volumes are taken for one person's, so that they share a split: their paths hold no "
                "sub-LABEL and begin with the same folder. If they are several people's, give that folder itself"
            )
        elif self.people < volumes:
            lines.append(f"{volumes} volumes of {self.people} people; all volumes of a person share a split")
        if self.unassigned:
            few = _few(self.unassigned)
            lines.append(f"{len(self.unassigned)} subjects are in no split, as data.splits asks for fewer: {few}")
        if self.forsaken:
            lines.append(
                f"{len(self.forsaken)} subjects stay in the store though their files are gone or data.pattern leaves "
                f"them out; convert into a new data.store to be without them: {_few(self.forsaken)}"
            )
        return lines + [f"left out ({item.reason}) {item.path}: {item.message}" for item in self.left_out]


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


# What may change without the file's size and time changing (permissions, a fetched annex, memory) is tried again.
TRY_AGAIN = ("unreadable", "worker-died", "name-clash", "too-large")


class _Job(NamedTuple):
    path: str
    subject: str
    person: str
    known: SubjectRecord | None  # what the store has under this name


class _Outcome(NamedTuple):
    status: str  # converted, unchanged or left-out
    reason: str = ""
    message: str = ""
    twin: str = ""  # of a duplicate: the subject that stays


def convert_folder(
    source: str | Path,
    store: str | Path,
    splits: Mapping[str, float | int] | None = None,
    split_seed: int | None = None,
    min_size: int = 32,
    pattern: str = "*",
    *,
    verify: bool = False,
    progress: bool = True,
    console: Console | None = None,
) -> ConversionSummary:
    """Convert the .nii, .nii.gz and .mgz files below `source` into the store, which is made if nothing is there.

    Ray must be initialised; every node needs to see both paths. A file whose size and modification time are those
    recorded is not read again (`verify` hashes it all the same); one whose SHA-256 is the recorded one is not decoded.
    A killed conversion goes on where it was. splits, split_seed: fractions or counts of people, see `assign_splits`
    and `person_of`; None: what the store was split by before, see `agreed_rule`. Who has a split keeps it. min_size:
    shortest edge in voxels. pattern: which files, see `find_volumes`. Files that cannot be used are left out with a
    reason. Raises FileNotFoundError for a folder without volumes, ValueError for splits that do not add up or are not
    the store's, StoreError.
    """
    rule = agreed_rule(VolumeStore.open(store) if (Path(store) / MANIFEST).exists() else None, splits, split_seed)
    root = Path(source).resolve()
    paths = find_volumes(root, pattern)
    if not paths and (others := len(find_volumes(root))):
        raise FileNotFoundError(f"data.pattern = {pattern!r}: fits none of the {others} volumes below {root}; widen it")
    if not paths:
        raise FileNotFoundError(f"{root}: holds no .nii, .nii.gz or .mgz file; give the folder of the volumes")
    target = VolumeStore.create(store)
    target.clean()
    jobs, outcomes = _plan(root, paths, target, min_size, verify)
    outcomes |= _run(jobs, target.path, min_size, progress, console)
    subjects = {str(path): subject_id(path, root) for path in paths}
    _leave_out_duplicates(target, outcomes, subjects)
    target.update_manifest(rule.splits, rule.seed, left_out=_memory(target, root, outcomes, min_size))
    return _summary(target, root, paths, outcomes, subjects)


def _plan(
    root: Path, paths: list[Path], store: VolumeStore, min_size: int, verify: bool
) -> tuple[list[_Job], dict[str, _Outcome]]:
    """Which files need a task, and what is known of the others without reading them."""
    records = store.stored_records()
    owners: dict[str, str] = {}
    for path in paths:
        subject = subject_id(path, root)
        record = records.get(subject)
        if subject not in owners or (record is not None and record.source == str(path.resolve())):
            owners[subject] = str(path)
    jobs, outcomes = [], {}
    for path in paths:
        name, subject = str(path), subject_id(path, root)
        record = records.get(subject)
        if owners[subject] != name:
            outcomes[name] = _clash(subject, owners[subject])
        elif not verify and record is not None and record.source == str(path.resolve()) and _same(path, record):
            outcomes[name] = _Outcome("unchanged")
        elif not verify and (remembered := _remembered(path, store, records, min_size)) is not None:
            outcomes[name] = remembered
        else:
            jobs.append(_Job(name, subject, person_of(path, root), record))
    return jobs, outcomes


def _run(jobs: list[_Job], store: Path, min_size: int, progress: bool, console: Console | None) -> dict[str, _Outcome]:
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

    task = ray.remote(num_cpus=1, max_retries=1)(_convert_one)
    waiting = {task.remote(job, str(store), min_size): job for job in jobs}
    outcomes: dict[str, _Outcome] = {}
    columns = (TextColumn("converting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[last]}"), console=console, disable=not progress) as bar:
        row = bar.add_task("", total=len(jobs), last="")
        while waiting:
            [done], _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(done)
            try:
                outcome = ray.get(done)
            except (WorkerCrashedError, OutOfMemoryError, NodeDiedError) as error:
                text = f"its task died twice ({type(error).__name__}); give a task more memory and convert again"
                outcome = _Outcome("left-out", "worker-died", text)
            outcomes[job.path] = outcome
            bar.update(row, advance=1, last=f"{job.subject} {outcome.reason or outcome.status}")
    return outcomes


def _convert_one(job: _Job, store: str, min_size: int) -> _Outcome:
    """One Ray task. Only what is wrong with this one file is caught; a full disk or a damaged store stops it all."""
    try:
        if job.known is not None:
            path = Path(job.path)
            stat = _stat(path)
            if stat is not None and os.access(path, os.R_OK) and file_hash(path) == job.known.sha256:
                VolumeStore.open(store).note_source(job.subject, path.resolve(), *stat)
                return _Outcome("unchanged")
            if job.known.source != str(path.resolve()) and Path(job.known.source).exists():
                return _clash(job.subject, job.known.source)
        convert_volume(job.path, store, job.subject, min_size, job.person)
    except VolumeError as error:
        kept = "; the store keeps what was converted before" if job.known is not None else ""
        return _Outcome("left-out", error.reason, error.message + kept)
    except StoreError:
        raise
    except MemoryError as error:
        text = f"does not fit into the memory of its task ({str(error) or 'MemoryError'}); crop it, or leave it out"
        return _Outcome("left-out", "too-large", text)
    except ValueError as error:
        return _Outcome("left-out", "unusable", f"{error}; export the volume again, or leave it out")
    return _Outcome("converted")


def _leave_out_duplicates(store: VolumeStore, outcomes: dict[str, _Outcome], subjects: Mapping[str, str]) -> None:
    paths = {subject: path for path, subject in subjects.items() if outcomes[path].status != "left-out"}
    for subject, (record, twin) in drop_duplicates(store).items():
        outcomes[paths.get(subject, record.source)] = _Outcome(
            "left-out", "duplicate", f"holds the same voxels as subject {twin!r}; remove one of the two files", twin
        )


def _memory(
    store: VolumeStore, root: Path, outcomes: Mapping[str, _Outcome], min_size: int
) -> dict[str, dict[str, Any]]:
    """The manifest's list of files left out: those of other folders as they were, those of this one as they are."""
    memory = {p: v for p, v in store.left_out.items() if not Path(p).is_relative_to(root)}
    for name, outcome in outcomes.items():
        if outcome.status == "left-out":
            entry: dict[str, Any] = {
                "reason": outcome.reason,
                "message": outcome.message,
                "min_size": min_size,
                "twin": outcome.twin,
            }
            memory[name] = entry | {"stat": _stat(Path(name))}
    return memory


def _remembered(path: Path, store: VolumeStore, records: Mapping[str, SubjectRecord], min_size: int) -> _Outcome | None:
    """Why the file was left out the last time, if nothing has changed since that could change it."""
    entry = store.left_out.get(str(path))
    if entry is None or entry["reason"] in TRY_AGAIN or entry["min_size"] != min_size:
        return None
    if entry["stat"] is None or _stat(path) != tuple(entry["stat"]):
        return None
    if entry["reason"] == "duplicate" and entry["twin"] not in records:
        return None
    return _Outcome("left-out", entry["reason"], entry["message"], entry["twin"])


def _clash(subject: str, other: str) -> _Outcome:
    text = f"its subject name {subject!r} is that of {other}; rename the file or its folder"
    return _Outcome("left-out", "name-clash", text)


def _same(path: Path, record: SubjectRecord) -> bool:
    return _stat(path) == (record.size, record.mtime_ns)


def _stat(path: Path) -> tuple[int, int] | None:
    """Size and modification time; None for what is not there, such as the target of a broken link."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _summary(
    store: VolumeStore, root: Path, paths: list[Path], outcomes: Mapping[str, _Outcome], subjects: Mapping[str, str]
) -> ConversionSummary:
    def with_status(status: str) -> list[str]:
        return [subjects[name] for name in sorted(outcomes) if outcomes[name].status == status]

    left_out = [
        LeftOut(name, outcomes[name].reason, outcomes[name].message)
        for name in sorted(outcomes)
        if outcomes[name].status == "left-out"
    ]
    records = {subject: store.record(subject) for subject in store.subjects()}
    chosen = {str(path.resolve()) for path in paths}
    return ConversionSummary(
        with_status("converted"),
        with_status("unchanged"),
        left_out,
        {name: len(members) for name, members in store.splits().items()},
        len({record.group for record in records.values()}),
        [s for s, record in records.items() if record.split is None],
        [s for s, r in records.items() if r.source not in chosen and Path(r.source).is_relative_to(root)],
    )
