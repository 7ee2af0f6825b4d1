"""Checks that a volume store has what an experiment needs, before anything starts."""

from __future__ import annotations

from mrisr.config import ConfigError, Experiment
from mrisr.data.splits import resolve_splits
from mrisr.degradation import check
from voxelstore import VolumeStore


def open_store(experiment: Experiment) -> VolumeStore:
    """The experiment's store. Raises ConfigError if it lacks subjects to train on or to validate on."""
    try:
        store = VolumeStore.open(experiment.data.store)
    except ValueError as error:
        raise ConfigError(f"data.store = {experiment.data.store}: {error}") from None
    resolve_splits(experiment, store)
    _require_subjects(experiment, store)
    shapes = {subject: store.record(subject).shape for subject in store.subjects()}
    shortest, smallest = min((min(shape), subject) for subject, shape in shapes.items())
    for key, patch in (("stream", experiment.stream.patch_size), ("validation", experiment.validation.patch_size)):
        if patch > shortest:
            raise ConfigError(
                f"{key}.patch_size = {patch} is larger than the shortest axis of {smallest}, {shortest} voxels; "
                f"use at most {shortest}"
            )
    widest = experiment.degradation.end(1)
    for subject, shape in shapes.items():
        try:
            check(widest, shape)
        except ValueError as error:
            raise ConfigError(f"{error} (volume {subject} of {store.path})") from None
    return store


def _require_subjects(experiment: Experiment, store: VolumeStore) -> None:
    for key, split in (("data.splits", "train"), ("validation.split", experiment.validation.split)):
        if not store.subjects(split):
            sizes = ", ".join(f"{name}: {len(subjects)}" for name, subjects in store.splits().items()) or "none"
            raise ConfigError(
                f"{key}: the store {store.path} has no subjects in split {split!r} (it has {sizes}); "
                "convert more volumes, or convert them into another data.store with other data.splits"
            )
