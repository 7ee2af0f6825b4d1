"""Finding and loading versions in the MLflow model registry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mrisr.models import MDCSRN
from mrisr.tracking import client
from mrisr.weights import WEIGHTS, build_generator, read_weights_file

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion
    from mlflow.tracking import MlflowClient

CHAMPION = "champion"
# Where MLflow puts a model's extra files.
EXTRA_FILES = "extra_files"
# An alias that does not exist is an invalid parameter to MLflow's database store.
NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


class UnreadableModelError(ValueError):
    """A registered version whose files are not ours, or not within reach of this machine."""


@dataclass(frozen=True)
class ModelVersion:
    """One registered version: its tags are text, figures included."""

    name: str
    version: str
    run_id: str | None
    tags: dict[str, str]

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"

    def figure(self, metric: str) -> float | None:
        """A figure from the tags; None if it is not there."""
        return float(self.tags[metric]) if metric in self.tags else None


@dataclass(frozen=True)
class LoadedModel:
    """A generator in eval mode, on the CPU, with what the registry knows of it."""

    generator: MDCSRN
    generator_config: dict[str, Any]
    version: str
    tags: dict[str, str]
    name: str
    run_id: str | None


def _describe(version: MlflowVersion) -> ModelVersion:
    return ModelVersion(version.name, str(version.version), version.run_id or None, dict(version.tags))


def _known(store: MlflowClient, name: str) -> str:
    """What exists, for an error message."""
    found = {model.name: model for model in store.search_registered_models(f"name = '{name}'")}
    if name not in found:
        names = sorted(model.name for model in store.search_registered_models())
        return f"no model of that name; registered are: {', '.join(names) or 'none'}"
    versions = sorted(int(version.version) for version in store.search_model_versions(f"name = '{name}'"))
    aliases = ", ".join(f"@{alias} (version {v})" for alias, v in sorted(found[name].aliases.items()))
    return f"it has the versions {', '.join(map(str, versions)) or 'none'} and the aliases {aliases or 'none'}"


def find(model_uri: str, uri: str) -> ModelVersion:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` means. Raises ValueError saying what
    exists."""
    from mlflow.exceptions import MlflowException

    store, path = client(uri), model_uri.removeprefix("models:/")
    name, at, alias = path.partition("@")
    if not at:
        name, _, number = path.rpartition("/")
    if path == model_uri or not name or (not alias if at else not number.isdigit()):
        raise ValueError(f"model {model_uri!r}: write models:/NAME@{CHAMPION} or models:/NAME/VERSION")
    try:
        found = store.get_model_version_by_alias(name, alias) if at else store.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        raise ValueError(f"model {model_uri!r} does not exist: {_known(store, name)}") from error
    return _describe(found)


def champion(name: str, uri: str) -> ModelVersion | None:
    """The version with the alias `champion`; None if the model or the alias does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return _describe(client(uri).get_model_version_by_alias(name, CHAMPION))
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        return None


def load(model_uri: str, uri: str) -> LoadedModel:
    """Load a generator from the registry, for the CPU and in eval mode.

    model_uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`. Raises ValueError for what does not exist (and
    says what does) and for a model that was not registered by this platform.
    """
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    found = find(model_uri, uri)
    with TemporaryDirectory() as folder:
        try:
            # Not models:/..., which MLflow looks up in the process-wide registry, whatever it is told here.
            location = client(uri).get_model_version_download_uri(found.name, found.version).rstrip("/")
            files = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{location}/{EXTRA_FILES}", dst_path=folder, tracking_uri=uri
            )
            config, state = read_weights_file(Path(files) / WEIGHTS)
        except (MlflowException, OSError) as error:
            raise UnreadableModelError(
                f"model {model_uri!r} holds no {EXTRA_FILES}/{WEIGHTS} (was it registered by mrisr? "
                f"are its artifacts reachable from this machine?): {error}"
            ) from error
    assert config is not None
    generator = build_generator(config, state)
    return LoadedModel(generator, config, found.version, found.tags, found.name, found.run_id)
