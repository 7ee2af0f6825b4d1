"""The MLflow model registry: register a generator, find a version, load it.

A version holds the network twice; neither is a pickle. `data/model.pt2` is the exported graph for the CPU, with dynamic
batch and volume sizes: `mlflow.pytorch.load_model("models:/NAME@champion")` and `mlflow.pyfunc.load_model` read it
without this package. `extra_files/generator.safetensors` and `generator.json` are the module itself, for any device:
`load` reads them. `extra_files/trained_on.json` lists the training volumes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version as installed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from mrisr.models.generator import Generator
from mrisr.models.pretrained import shipped_weights
from mrisr.models.weights import (
    WEIGHTS,
    TrainedOn,
    Weights,
    read_protocol,
    read_trained_on,
    read_weights_file,
    trained_generator,
    write_weights,
)
from mrisr.tracking.addresses import check_address
from mrisr.tracking.redaction import mask_message
from mrisr.tracking.runs import client

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion
    from mlflow.tracking import MlflowClient

CHAMPION = "champion"
PROTOCOL, FINGERPRINT = "protocol", "validation_fingerprint"  # tags
MAIN_PROTOCOL = "main_protocol"  # a tag of the registered model
TRAINED_ON = "trained_on.json"
EXTRA_FILES = "extra_files"  # where MLflow puts a model's extra files
# MLflow's database store reports an alias that does not exist as an invalid parameter.
MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


class UnreadableModelError(ValueError):
    """The files of a registered version were not written by mrisr, or cannot be reached from this machine."""


@dataclass(frozen=True)
class ModelVersion:
    """One registered version. tags: text, numbers included."""

    name: str
    version: str
    run_id: str | None
    tags: dict[str, str]

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"

    def figure(self, metric: str) -> float | None:
        return float(self.tags[metric]) if metric in self.tags else None


@dataclass(frozen=True)
class LoadedModel(ModelVersion):
    generator: Generator
    generator_config: dict[str, Any]
    trained_on: TrainedOn = field(default_factory=TrainedOn)


def find(model_uri: str, uri: str) -> ModelVersion:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names. Raises ValueError listing what exists."""
    from mlflow.exceptions import MlflowException

    path = model_uri.removeprefix("models:/")
    name, at, alias = path.partition("@")
    if not at:
        name, _, number = path.rpartition("/")
    if path == model_uri or not name or (not alias if at else not number.isdigit()):
        raise ValueError(f"model {model_uri!r}: write models:/NAME@{CHAMPION} or models:/NAME/VERSION")
    check_address(uri)
    store = client(uri)
    try:
        found = store.get_model_version_by_alias(name, alias) if at else store.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in MISSING:
            raise
        raise ValueError(f"model {model_uri!r} does not exist: {_existing(store, name)}") from error
    return _describe(found)


def champion_alias(name: str, protocol: str | None, uri: str) -> str:
    """`champion` for a registered model's main protocol, `champion-PROTOCOL` for any other. The main protocol is that
    of its first candidate, or of the champion that an older program chose.
    """
    store = client(uri)
    main = store.get_registered_model(name).tags.get(MAIN_PROTOCOL)
    if main is None:
        present = champion(name, uri)
        main = (present.tags.get(PROTOCOL) if present is not None else None) or protocol
        if main is None:
            return CHAMPION
        store.set_registered_model_tag(name, MAIN_PROTOCOL, main)
    return CHAMPION if protocol in (None, main) else f"{CHAMPION}-{re.sub(r'[^A-Za-z0-9_-]', '-', str(protocol))}"


def champion(name: str, uri: str, alias: str = CHAMPION) -> ModelVersion | None:
    """The version with the alias, or None if the model or the alias does not exist."""
    from mlflow.exceptions import MlflowException

    check_address(uri)
    try:
        return _describe(client(uri).get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if error.error_code not in MISSING:
            raise
        return None


def load(model_uri: str, uri: str) -> LoadedModel:
    """Load a generator from the registry, on the CPU and in eval mode. Raises ValueError that lists the existing
    versions, and UnreadableModelError for a model that is damaged, unreachable or not registered by mrisr.
    """
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    found = find(model_uri, uri)
    with TemporaryDirectory() as folder:
        try:
            # For models:/... MLflow would use the process-wide registry and ignore tracking_uri.
            location = client(uri).get_model_version_download_uri(found.name, found.version).rstrip("/")
            files = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{location}/{EXTRA_FILES}", dst_path=folder, tracking_uri=uri
            )
            file = Path(files) / WEIGHTS
            config, state = read_weights_file(file)
            generator = trained_generator(config or {}, state)
            trained_on = read_trained_on(file)
        except (MlflowException, FileNotFoundError) as error:
            raise UnreadableModelError(
                f"model {model_uri!r} holds no {EXTRA_FILES}/{WEIGHTS} (was it registered by mrisr? "
                f"are its artifacts reachable from this machine?): {_located(error, folder, found)}"
            ) from error
        except (ValueError, OSError) as error:
            raise UnreadableModelError(f"model {model_uri!r}: {_located(error, folder, found)}") from error
    return LoadedModel(**vars(found), generator=generator, generator_config=config or {}, trained_on=trained_on)


def _located(error: Exception, folder: str, version: ModelVersion) -> str:
    """The message, with the version in place of the temporary folder that its files were copied into."""
    return mask_message(str(error).replace(folder, version.uri))


def load_generator_weights(source: str | Path, uri: str | None = None) -> Weights:
    """Weights from a file (see `read_weights_file`), from the registry (`models:/...`, then `uri` is needed), or those
    that ship (`pretrained`, `pretrained:NAME`).
    """
    if not str(source).startswith("models:/"):
        file = shipped_weights(str(source)) or Path(source).expanduser()
        return Weights(*read_weights_file(file), read_trained_on(file), read_protocol(file))
    if uri is None:
        raise ValueError(f"model {source!r}: a tracking URI is needed to read the registry")
    loaded = load(str(source), uri)
    protocol = loaded.tags.get(PROTOCOL)
    return Weights(loaded.generator_config, loaded.generator.state_dict(), loaded.trained_on, protocol)


def _describe(version: MlflowVersion) -> ModelVersion:
    return ModelVersion(version.name, str(version.version), version.run_id or None, dict(version.tags))


def _existing(store: MlflowClient, name: str) -> str:
    found = {model.name: model for model in store.search_registered_models(f"name = '{name}'")}
    if name not in found:
        names = sorted(model.name for model in store.search_registered_models())
        return f"no model of that name; registered are: {', '.join(names) or 'none'}"
    versions = sorted(int(version.version) for version in store.search_model_versions(f"name = '{name}'"))
    aliases = [f"@{alias} (version {number})" for alias, number in sorted(found[name].aliases.items())]
    return f"it has {_list('version', versions)} and {_list('alias', aliases)}"


def _list(what: str, found: Sequence[object]) -> str:
    return f"the {what} {', '.join(map(str, found))}" if found else f"no {what}"


def model_tags(
    protocol: str, degradation: str, validation_fingerprint: str, dataset_fingerprint: str, figures: Mapping[str, float]
) -> dict[str, str]:
    """The tags of a version. degradation: the protocol in words; figures: see EvaluationResult.figures."""
    tags = {PROTOCOL: protocol, "degradation": degradation, FINGERPRINT: validation_fingerprint}
    tags["dataset_fingerprint"] = dataset_fingerprint
    return tags | {key: repr(float(value)) for key, value in figures.items()}


def register(weights: Weights, run_id: str, name: str, tags: Mapping[str, str], description: str, uri: str) -> str:
    """Log a generator to a run and make it the next version of the registered model `name`. Returns the version.

    Takes 4 s for the published network, nearly all of it the export. Raises ValueError if weights and configuration do
    not fit.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    plain = trained_generator(weights.config or {}, weights.state)
    store = client(uri)
    run = store.get_run(run_id)
    logged = store.create_logged_model(
        run.info.experiment_id, name="generator", source_run_id=run_id, tags=dict(tags), model_type="super-resolution"
    )
    try:
        with TemporaryDirectory() as folder:
            files = _files(Path(folder), weights)
            _save(plain, files, Path(folder), run_id, logged.model_id)
            store.log_model_artifacts(logged.model_id, f"{folder}/model")
    except BaseException:
        store.finalize_logged_model(logged.model_id, "FAILED")
        raise
    store.finalize_logged_model(logged.model_id, "READY")
    store.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    try:
        store.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = store.create_model_version(
        name,
        # For models:/<id> MLflow's database store would use the process-wide tracking URI.
        source=logged.artifact_location,
        run_id=run_id,
        tags=dict(tags),
        description=description,
        model_id=logged.model_id,
    )
    return str(created.version)


def registered(name: str, run_id: str, tags: Mapping[str, str], uri: str) -> ModelVersion | None:
    for version in client(uri).search_model_versions(f"name = '{name}'"):
        if version.run_id == run_id and all(version.tags.get(key) == value for key, value in tags.items()):
            return _describe(version)
    return None


def _files(folder: Path, weights: Weights) -> list[Path]:
    (folder / TRAINED_ON).write_text(weights.trained_on.to_json())
    written = write_weights(folder, weights.config or {}, weights.state, weights.trained_on, weights.protocol)
    return [*written, folder / TRAINED_ON]


def _save(generator: Generator, files: list[Path], folder: Path, run_id: str, model_id: str) -> None:
    import mlflow.pytorch
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    volumes = TensorSpec(np.dtype(np.float32), (-1, 1, -1, -1, -1))
    packages = ("mlflow", "numpy", "torch")
    mlflow.pytorch.save_model(
        generator,
        str(folder / "model"),
        mlflow_model=Model(run_id=run_id, model_id=model_id),
        signature=ModelSignature(Schema([volumes]), Schema([volumes])),
        # Export makes a dimension dynamic only if it is greater than 1 in the example, which is stored as JSON.
        input_example=np.zeros((2, 1, 16, 16, 16), np.float32),
        serialization_format="pt2",
        extra_files=[str(file) for file in files],
        # Without the local part (+cpu), which package indices do not serve.
        pip_requirements=[f"{package}=={installed(package).partition('+')[0]}" for package in packages],
    )
