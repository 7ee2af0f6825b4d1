"""The interface for Python: the verbs that a notebook or a script calls. Errors are those of the commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mrisr.config import Experiment, load_experiment

if TYPE_CHECKING:
    from mrisr.inference.model import Model
    from mrisr.training.publishing import Published

__all__ = ["load_experiment", "load_model", "superresolve", "train"]


def load_model(model: str | Path, tracking_uri: str | None = None) -> Model:
    """A trained model. `Model.generator` is a torch module in evaluation mode on the CPU.

    model: `pretrained` (the weights that ship), `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a weights file such as
    best.safetensors of a checkpoint.
    tracking_uri: of MLflow; None: $MLFLOW_TRACKING_URI, else sqlite in $MRISR_HOME/mlflow.db. Raises ConfigError that
    names the model and what exists.
    """
    from mrisr.inference.model import load_model

    return load_model(str(model), tracking_uri)


def superresolve(
    source: np.ndarray | str | Path,
    target: str | Path | None = None,
    *,
    model: Model | str | Path = "pretrained",
    factor: float | tuple[float, ...] | None = 2.0,
    data_consistency: str | None = None,
    keep_background: bool = True,
    overwrite: bool = False,
) -> np.ndarray:
    """Super-resolve one volume onto a finer grid, as `mrisr superresolve` does. Returns (D, H, W) float32, physical
    intensities.

    source: an array (D, H, W) of real, finite intensities of any scale, or a .nii, .nii.gz or .mgz file, whose result
    is in canonical orientation (RAS+). target: also write the result of a file in its own orientation and type;
    overwrite: replace an existing target. model: of `load_model`, or what that takes. factor: of the number of voxels
    along the axes in the plane (of an array: the last two), or along each axis; None: the input is on the grid already.
    data_consistency: the protocol (`chen2018`, ...) that names the acquired band of k-space, which the output then
    takes from the input; the grid stays. keep_background: without negative intensities in the input, the output has
    none, and is 0 where the input is 0.

    Raises ConfigError for an unknown model or protocol, VolumeError or another ValueError for an unusable input, and
    FileExistsError.
    """
    from mrisr.config.validation import protocol_named
    from mrisr.inference.grid import FinerGrid, scaled_shape
    from mrisr.inference.model import Model
    from mrisr.inference.superresolution import (
        resolver_of,
        superresolve_file,
        superresolve_intensities,
        superresolve_volume,
    )
    from voxelstore import read_volume
    from voxelstore.intensity import intensity_map

    loaded = model if isinstance(model, Model) else load_model(model)
    band = None if data_consistency is None else protocol_named(data_consistency, "data_consistency")
    factors = () if factor is None or band is not None else tuple(np.atleast_1d(factor).astype(float).tolist())
    resolver = resolver_of(loaded, band, keep_background, FinerGrid(factors) if factors else None)
    if isinstance(source, np.ndarray):
        if target is not None:
            raise ValueError(f"target = {str(target)!r}: an array has no space of its own; save the result yourself")
        if source.ndim != 3:
            raise ValueError(f"source: must be (D, H, W), found an array of shape {source.shape}")
        physical = np.asarray(source, np.float32)
        shape = scaled_shape(physical.shape, factors) if factors else None
        return superresolve_intensities(physical, intensity_map(physical), resolver, shape=shape)
    if target is None:
        return superresolve_volume(read_volume(source), resolver)
    return superresolve_file(Path(source), Path(target), resolver, overwrite)


def train(experiment: Experiment | str | Path, overrides: Sequence[str] = ()) -> list[Published]:
    """Train or resume an experiment and register its best weights, as `mrisr train` does, on this machine or a cluster.

    experiment: of `load_experiment`, or what that takes: a YAML file or the name of one that ships; overrides:
    `KEY=VALUE`. Returns a registered version per stage, the best first; `Published.model_uri` goes to `load_model`.
    Raises ConfigError, ResourceError, and TrainingStopped for a run that cannot go on.
    """
    from mrisr.cluster import prepare_environment

    prepare_environment()  # before Ray is imported
    from mrisr.training.publishing import publish
    from mrisr.training.run import train

    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment, overrides)
    elif overrides:
        raise ValueError("overrides are for a file; an experiment is changed by Experiment.changed({KEY: VALUE})")
    return publish(train(experiment))
