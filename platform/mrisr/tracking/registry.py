"""The MLflow model registry: register a generator, load one, and decide which is the champion.

A version holds the network twice. `data/model.pt2` is what
`mlflow.pytorch.load_model("models:/NAME@champion")` and `mlflow.pyfunc.load_model` read, in any process that
has mlflow and torch and nothing of ours: the exported graph, with dynamic batch and volume sizes, for the
CPU, without pickle. `extra_files/generator.safetensors` and `generator.json` are what `load` reads: the
module itself, for any device; it never unpickles anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from mrisr.models import MDCSRN
from mrisr.models.weights import WEIGHTS, build_generator, read_weights_file, write_weights
from mrisr.tracking.runs import client, deciding

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


__all__ = [
    "CHAMPION", "LoadedModel", "ModelVersion", "Promotion", "champion", "find", "load", "load_generator_weights",
    "model_tags", "promote", "register",
]  # fmt: skip

PROTOCOL, FINGERPRINT = "protocol", "validation_fingerprint"


@dataclass(frozen=True)
class Promotion:
    """The outcome of `promote`: figures are of `metric`; the champion's are of the one before the
    decision."""

    promoted: bool
    reason: str
    metric: str
    version: str
    figure: float
    champion_version: str | None
    champion_figure: float | None


def model_tags(
    protocol: str,
    degradation: str,
    validation_fingerprint: str,
    dataset_fingerprint: str,
    figures: Mapping[str, float],
) -> dict[str, str]:
    """The tags that `promote` and a reader of the registry need.

    protocol: name of the validation protocol; degradation: its description; fingerprints: of the validation
    split and of the whole store; figures: such as {"val_psnr": 40.9, "val_ssim": 0.97}.
    """
    tags = {
        PROTOCOL: protocol,
        "degradation": degradation,
        FINGERPRINT: validation_fingerprint,
        "dataset_fingerprint": dataset_fingerprint,
    }
    return tags | {key: repr(float(value)) for key, value in figures.items()}


def register(
    generator: nn.Module | Mapping[str, Tensor],
    generator_config: Mapping[str, Any],
    run_id: str,
    name: str,
    tags: Mapping[str, str],
    description: str,
    uri: str,
) -> str:
    """Log a generator to a run and make it the next version of the registered model `name`. Returns the
    version.

    generator: a plain (not sharded) MDCSRN on any device, or its full state dict; generator_config: what
    built it. tags: see `model_tags`. The run's state (running, finished) and MLflow's global state stay as
    they are. Takes about 4 s for the full network, nearly all of it the export. Raises ValueError if weights
    and generator_config do not fit.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    state = generator if isinstance(generator, Mapping) else generator.state_dict()
    plain = build_generator(generator_config, state)
    store = client(uri)
    run = store.get_run(run_id)
    logged = store.create_logged_model(
        run.info.experiment_id, name="generator", source_run_id=run_id, tags=dict(tags), model_type="super-resolution"
    )
    try:
        with TemporaryDirectory() as folder:
            _save(plain, generator_config, Path(folder), run_id, logged.model_id)
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
        # Not models:/<id>, which MLflow's database store would look up at the process-wide tracking URI.
        source=logged.artifact_location,
        run_id=run_id,
        tags=dict(tags),
        description=description,
        model_id=logged.model_id,
    )
    return str(created.version)


def _save(generator: MDCSRN, config: Mapping[str, Any], folder: Path, run_id: str, model_id: str) -> None:
    """Write the MLflow model to `folder`/model."""
    import mlflow.pytorch
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    files = write_weights(folder, config, generator.state_dict())
    volumes = TensorSpec(np.dtype(np.float32), (-1, 1, -1, -1, -1))
    packages = ("mlflow", "numpy", "torch")
    mlflow.pytorch.save_model(
        generator,
        str(folder / "model"),
        mlflow_model=Model(run_id=run_id, model_id=model_id),
        signature=ModelSignature(Schema([volumes]), Schema([volumes])),
        # Export makes a dimension dynamic only if it is greater than 1 in the example; a larger one is
        # megabytes of JSON.
        input_example=np.zeros((2, 1, 16, 16, 16), np.float32),
        serialization_format="pt2",
        extra_files=[str(file) for file in files],
        # Without the local part (+cpu), which package indices do not serve.
        pip_requirements=[f"{package}=={installed(package).partition('+')[0]}" for package in packages],
    )


def promote(
    name: str,
    version: str,
    uri: str,
    metric: str = "val_psnr",
    evaluate: Callable[[LoadedModel], Mapping[str, float]] | None = None,
    higher_is_better: bool = True,
) -> Promotion:
    """Give the alias `champion` to a version if there is no champion, or if its figure beats the champion's.

    Figures compare only on the same validation protocol and subjects (tags `protocol`,
    `validation_fingerprint`). Where the champion's differ, `evaluate` measures the champion anew on the
    candidate's protocol and data, and returns {metric: figure}; a champion that cannot be loaded stays. Equal is not
    better. One process at a time decides where the database is a local file. The
    decision and both figures become tags of the candidate (promotion, promotion_reason, ...), never of the
    champion.
    Raises ValueError for a candidate without the figure (or with nan), or a champion that cannot be compared
    without `evaluate`.
    """
    with deciding(uri):
        return _promote(name, version, uri, metric, evaluate, higher_is_better)


def _promote(
    name: str,
    version: str,
    uri: str,
    metric: str,
    evaluate: Callable[[LoadedModel], Mapping[str, float]] | None,
    higher_is_better: bool,
) -> Promotion:
    candidate = find(f"models:/{name}/{version}", uri)
    figure, present = candidate.figure(metric), champion(name, uri)
    if figure is None:
        raise ValueError(f"{candidate.uri} has no tag {metric!r} to compare by; it has {sorted(candidate.tags)}")
    if math.isnan(figure):
        raise ValueError(f"{candidate.uri}: its tag {metric!r} is nan; a diverged network is never the champion")
    old = None
    if present is None:
        promoted, reason = True, "there was no champion"
    elif present.version == candidate.version:
        old, promoted, reason = figure, False, "it is the champion already"
    else:
        try:
            old, how = _champion_figure(present, candidate, metric, evaluate, uri)
        except UnreadableModelError as error:
            # Somebody else's artifacts, say, that this machine cannot see.
            promoted, reason = False, f"version {present.version}, the champion, cannot be measured here: {error}"
        else:
            promoted = figure > old if higher_is_better else figure < old
            # A champion without a figure, as of a diverged network, is beaten by any that has one.
            promoted = promoted or math.isnan(old)
            verb = "beats" if promoted else "does not beat"
            reason = f"{metric} {figure:.6g} {verb} {old:.6g} of version {present.version} ({how})"
    decision = Promotion(promoted, reason, metric, candidate.version, figure, present.version if present else None, old)
    store = client(uri)
    for key, value in {
        "promotion": "promoted" if promoted else "kept",
        "promotion_reason": reason,
        "promotion_metric": metric,
        "promotion_figure": repr(figure),
        "promotion_champion_version": str(decision.champion_version),
        "promotion_champion_figure": repr(old),
    }.items():
        store.set_model_version_tag(name, candidate.version, key, value)
    if promoted:
        store.set_registered_model_alias(name, CHAMPION, candidate.version)
    return decision


def _champion_figure(
    present: ModelVersion,
    candidate: ModelVersion,
    metric: str,
    evaluate: Callable[[LoadedModel], Mapping[str, float]] | None,
    uri: str,
) -> tuple[float, str]:
    known = present.figure(metric)
    differing = [key for key in (PROTOCOL, FINGERPRINT) if present.tags.get(key) != candidate.tags.get(key)]
    if known is not None and not differing:
        return known, "same protocol and subjects"
    if evaluate is None:
        what = f"has no tag {metric!r}" if known is None else f"differs in {' and '.join(differing)}"
        raise ValueError(
            f"champion {present.uri} {what}, so the figures do not compare: pass `evaluate` to measure it anew"
        )
    return float(evaluate(load(present.uri, uri))[metric]), "measured anew"


def load_generator_weights(
    source: str | Path, uri: str | None = None
) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Weights from a file (see `read_weights_file`) or from the registry (`models:/...`, then `uri` is
    needed)."""
    if not str(source).startswith("models:/"):
        return read_weights_file(Path(source))
    if uri is None:
        raise ValueError(f"model {source!r}: a tracking URI is needed to read the registry")
    loaded = load(str(source), uri)
    return loaded.generator_config, loaded.generator.state_dict()
