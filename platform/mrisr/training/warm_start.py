"""Where a run's generator starts: a weights file, another run, or the model registry."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from mrisr.config import ConfigError, Experiment
from mrisr.config.paths import home
from mrisr.files import write_atomic
from mrisr.models import build_generator, complete_config
from mrisr.tracking.registry import load_generator_weights
from mrisr.training.checkpoints import BEST_WEIGHTS
from mrisr.training.run_folder import RunFolder


def prepare_initial_weights(experiment: Experiment, uri: str) -> Path | None:
    """Read `generator.init_from` once, in the driver (workers may not reach a registry), into the run's folder.

    Returns the safetensors file, or None for seeded initial weights. Raises ConfigError for a source that cannot be
    read or does not fit the generator.
    """
    source = experiment.generator.init_from
    if source is None:
        return None
    file = RunFolder.of(experiment).initial_weights
    if not file.exists():
        state = read_initial_weights(experiment, source, uri)
        write_atomic(file, save({key: value.contiguous() for key, value in state.items()}))
    return file


def read_initial_weights(experiment: Experiment, source: str, uri: str) -> dict[str, Tensor]:
    """The state_dict behind a source: `models:/...`, a run's or checkpoint's folder, or a weights file."""
    config = experiment.generator.architecture
    try:
        resolved = source if source.startswith("models:/") else _file(source)
        found, state = load_generator_weights(resolved, uri)
        generator = build_generator(config)
        if found is None:
            generator.load_reference_state_dict(state)
        else:
            if complete_config(found) != config:
                raise ValueError(f"its generator is {found}, this experiment's is {config}")
            generator.load_state_dict(state)
    except (ValueError, TypeError, RuntimeError, FileNotFoundError) as error:
        raise ConfigError(
            f"generator.init_from = {source!r}: {error}. Give a weights file, a run folder or models:/NAME@ALIAS of "
            "the same generator, or null for seeded weights (then with schedule.pretrain_steps above 0)"
        ) from None
    return generator.state_dict()


def _file(source: str) -> str:
    path = Path(source.replace("$MRISR_HOME", str(home()))).expanduser()
    if not path.is_dir():
        return str(path)
    # A run's folder holds checkpoints; each holds the best weights up to its step.
    for folder in [path, *reversed(RunFolder(path).checkpoints())]:
        if (folder / BEST_WEIGHTS).is_file():
            return str(folder / BEST_WEIGHTS)
    raise FileNotFoundError(f"{path}: holds no checkpoint with {BEST_WEIGHTS}")
