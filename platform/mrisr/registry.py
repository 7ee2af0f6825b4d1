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
from typing import Any

import numpy as np
from torch import Tensor, nn

from mrisr.model_lookup import CHAMPION, LoadedModel, ModelVersion, UnreadableModelError, champion, find, load
from mrisr.models import MDCSRN
from mrisr.tracking import client, deciding
from mrisr.weights import build_generator, read_weights_file, write_weights

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
