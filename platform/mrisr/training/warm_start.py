"""The generator's initial weights from a weights file, another run, or the model registry."""

from __future__ import annotations

from pathlib import Path

from mrisr.config import ConfigError, Experiment
from mrisr.config.paths import home
from mrisr.data.training_subjects import UNKNOWN, count_and_names, seen_in_training
from mrisr.files import write_atomic
from mrisr.models import build_generator, complete_config
from mrisr.models.pretrained import shipped_weights
from mrisr.models.weights import TrainedOn, Weights, serialised
from mrisr.tracking.registry import load_generator_weights
from mrisr.training.checkpoints import BEST_WEIGHTS
from mrisr.training.progress import Tell
from mrisr.training.run_folder import RunFolder
from voxelstore import VolumeStore


def prepare_initial_weights(experiment: Experiment, store: VolumeStore, uri: str, tell: Tell = print) -> Path | None:
    """Copy `generator.init_from` into the run's folder, once and in the driver: workers may not reach a registry.

    Returns the safetensors file, or None for seeded weights. Raises ConfigError for a source that cannot be read, does
    not fit the generator, or was trained on validation subjects without permission by `allow_trained_on`.
    """
    source = experiment.generator.init_from
    if source is None:
        return None
    file = RunFolder.of(experiment).initial_weights
    if not file.exists():
        weights = read_initial_weights(experiment, source, uri)
        _refuse_seen(experiment, store, weights.trained_on, tell)
        write_atomic(file, serialised(experiment.generator.architecture, weights.state, weights.trained_on))
    return file


def _refuse_seen(experiment: Experiment, store: VolumeStore, trained_on: TrainedOn, tell: Tell) -> None:
    key, split = f"generator.init_from = {experiment.generator.init_from!r}", experiment.validation.split
    subjects = store.subjects(split)
    seen = seen_in_training(store, subjects, trained_on)
    if seen and not experiment.validation.allow_trained_on:
        raise ConfigError(
            f"{key}: these weights were trained on {count_and_names(seen)} of the {len(subjects)} subjects of "
            f"validation.split = {split!r}, so figures would not be about unseen people; use other weights or another "
            "store, or set validation.allow_trained_on=true (then no version of the run becomes champion)"
        )
    if not trained_on.complete:
        tell(f"{key}: {UNKNOWN}; validation subjects may be among them")


def read_initial_weights(experiment: Experiment, source: str, uri: str) -> Weights:
    """The weights of `models:/...`, a folder of a run or checkpoint, or a weights file. Raises ConfigError."""
    config = experiment.generator.architecture
    try:
        registered = source.startswith("models:/") or shipped_weights(source) is not None
        resolved = source if registered else _file(source)
        found, state, seen, _ = load_generator_weights(resolved, uri)
        generator = build_generator(config)
        if found is None:
            generator.load_reference_state_dict(state)
        else:
            if complete_config(found) != config:
                raise ValueError(f"its generator is {found}, this experiment's is {config}")
            generator.load_weights(state)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(
            f"generator.init_from = {source!r}: {error}. Give a weights file, a run folder or models:/NAME@ALIAS of "
            "the same generator, or null for seeded weights (then with schedule.pretrain_steps above 0)"
        ) from None
    return Weights(config, generator.state_dict(), seen)


def _file(source: str) -> str:
    path = Path(source.replace("$MRISR_HOME", str(home()))).expanduser()
    if not path.is_dir():
        return str(path)
    # A run's folder holds checkpoints; each holds the best weights up to its step.
    for folder in [path, *reversed(RunFolder(path).checkpoints())]:
        if (folder / BEST_WEIGHTS).is_file():
            return str(folder / BEST_WEIGHTS)
    raise FileNotFoundError(f"{path}: holds no checkpoint with {BEST_WEIGHTS}")
