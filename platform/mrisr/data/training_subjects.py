"""Compares the volumes that weights were trained on with a store: no subject may be both trained on and measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mrisr.models.weights import TrainedOn, read_trained_on
from voxelstore import VolumeStore

UNKNOWN = "which volumes the weights were trained on is not recorded"


def trained_on(store: VolumeStore, initial: Path | None) -> TrainedOn:
    """The volumes of a run's training subjects, and those that its initial weights were trained on."""
    before = TrainedOn(complete=True) if initial is None else read_trained_on(initial)
    own = [_hashes(store, subject) for subject in store.subjects("train")]
    return before._replace(contents=before.contents.union(*own))


def seen_in_training(store: VolumeStore, subjects: Sequence[str], trained_on: TrainedOn) -> tuple[str, ...]:
    """The subjects whose volumes are among the training volumes, independent of store and name."""
    return tuple(name for name in subjects if _hashes(store, name) & trained_on.contents)


def count_and_names(subjects: Sequence[str]) -> str:
    """`3 (a, b, c)`, with at most five names."""
    return f"{len(subjects)} ({', '.join(subjects[:5])}{', ...' if len(subjects) > 5 else ''})"


def _hashes(store: VolumeStore, subject: str) -> set[str]:
    """The hash of the image, and that of the stored voxels, the only one in records of older versions."""
    record = store.record(subject)
    return {record.content_hash, record.content}
