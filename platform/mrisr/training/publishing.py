"""Registers the best weights of a run as model versions, and makes better ones the champion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from rich.console import Console

from mrisr.data.training_subjects import trained_on
from mrisr.evaluation.cluster_tasks import evaluate_on_cluster
from mrisr.evaluation.result import EvaluationResult, combined
from mrisr.evaluation.subject import Evaluation
from mrisr.files import write_atomic
from mrisr.models.weights import TrainedOn, Weights, trained_generator
from mrisr.tracking import registry
from mrisr.tracking import runs as tracking
from mrisr.tracking.addresses import check_address
from mrisr.tracking.promotion import SEEN, promote
from mrisr.tracking.redaction import mask_secrets
from mrisr.training.run import StageWeights, TrainedRun
from mrisr.training.run_folder import RunFolder

NOT_COMPARED = "not compared yet"


class Published(NamedTuple):
    """model_uri: models:/NAME/VERSION. decision: why it is or is not a champion. stage: "" in old records. figures: on
    the whole validation volumes (EvaluationResult.figures), empty if an earlier start measured them.
    """

    model_uri: str
    name: str
    version: str
    promoted: bool
    decision: str
    best_step: int
    run_id: str
    tracking_uri: str
    stage: str = ""
    alias: str = registry.CHAMPION
    figures: dict[str, float] = {}  # noqa: RUF012

    def lines(self) -> list[str]:
        role = f"champion of {self.name!r} (@{self.alias})" if self.promoted else f"not the champion of {self.name!r}"
        stage = self.stage and f", stage {self.stage}"
        return [
            f"registered {self.model_uri} (weights of step {self.best_step:,}){stage}: {role}; {self.decision}",
            f"tracked in run {self.run_id} at {mask_secrets(self.tracking_uri)}",
        ]


def publish(run: TrainedRun, tags: Mapping[str, str] | None = None) -> list[Published]:
    """Register the best weights of a finished run and of its other stages. Those of the run come first in the result.

    All are measured on the whole volumes of the validation split, printed as one table, and compared with the champion.
    tags: further tags of the versions. A second call for the same weights returns the result of the first.
    """
    check_address(run.tracking_uri)
    evaluation = Evaluation.of(run.experiment, run.experiment.validation.split)
    folder = RunFolder.of(run.experiment)
    initial = folder.initial_weights if run.experiment.generator.init_from is not None else None
    seen = trained_on(evaluation.store, initial)
    recorded, console = _recorded(run), Console(highlight=False)
    versions: list[Published] = []
    results: dict[str, EvaluationResult] = {}
    for weights in (run.best, *run.others):
        found = recorded.get(weights.step) or _registered(run, weights)
        if found is None:
            console.print(
                f"measuring the best {weights.stage} weights, of step {weights.step:,}, on the whole volumes of split "
                f"{evaluation.split!r}",
                markup=False, soft_wrap=True,
            )  # fmt: skip
            generator = trained_generator(run.experiment.generator.architecture, weights.state)
            results[weights.stage] = evaluate_on_cluster(evaluation, generator, trained_on=seen)
            _log(run, weights, results[weights.stage])
            found = _register(run, weights, evaluation, results[weights.stage], seen, tags or {})
            found = found._replace(figures=results[weights.stage].figures())
        versions.append(found)
        _write_record(run, versions)
    if results:
        console.print(combined(results).table())
    for place, one in enumerate(versions):
        if one.decision == NOT_COMPARED:
            versions[place] = _compared(run, one, evaluation)
            _write_record(run, versions)
    _write_record(run, versions)  # also rewrites old records, which contained credentials
    tracking.finish(run.tracking_uri, run.run_id)
    return versions


def _recorded(run: TrainedRun) -> dict[int, Published]:
    """The versions that earlier calls registered, by the step of their weights. Old records hold a single version."""
    record = RunFolder.of(run.experiment).published
    if not record.exists():
        return {}
    found = json.loads(record.read_text())
    versions = found if isinstance(found, list) else [found]
    return {one["best_step"]: Published(**{**one, "tracking_uri": run.tracking_uri}) for one in versions}


def _registered(run: TrainedRun, weights: StageWeights) -> Published | None:
    """A version of these weights from an earlier call that was killed before it could record the version."""
    name = run.experiment.tracking.model
    found = registry.registered(name, run.run_id, {"weights_step": str(weights.step)}, run.tracking_uri)
    return None if found is None else _not_compared(run, weights, found.version)


def _register(
    run: TrainedRun,
    weights: StageWeights,
    evaluation: Evaluation,
    result: EvaluationResult,
    seen: TrainedOn,
    tags: Mapping[str, str],
) -> Published:
    experiment, options = run.experiment, evaluation.options
    described = registry.model_tags(
        result.protocol, result.degradation, result.fingerprint, evaluation.store.fingerprint(), result.figures()
    ) | {
        "trained_on": experiment.degradation.kind, "stage": weights.stage, "weights_step": str(weights.step),
        "precision": options.precision,
        "trained_on_subjects": str(len(evaluation.store.subjects("train"))), "trained_on_digest": seen.digest,
        "trained_on_complete": str(seen.complete).lower(), SEEN: str(len(result.trained_on)),
    }  # fmt: skip
    version = registry.register(
        Weights(experiment.generator.architecture, weights.state, seen, result.protocol), run.run_id,
        experiment.tracking.model,
        {**described, **tags},
        f"{experiment.generator.kind} of run {experiment.name!r}, {weights.stage} weights of step {weights.step:,}",
        run.tracking_uri,
    )  # fmt: skip
    return _not_compared(run, weights, version)


def _compared(run: TrainedRun, one: Published, evaluation: Evaluation) -> Published:
    def measure(old: registry.LoadedModel) -> dict[str, float]:
        return evaluate_on_cluster(evaluation, old.generator, trained_on=old.trained_on).figures()

    metric = f"val_{run.experiment.validation.metric}"
    decision = promote(one.name, one.version, run.tracking_uri, metric, measure)
    return one._replace(promoted=decision.promoted, decision=decision.reason, alias=decision.alias)


def _not_compared(run: TrainedRun, weights: StageWeights, version: str) -> Published:
    name = run.experiment.tracking.model
    uri = f"models:/{name}/{version}"
    return Published(uri, name, version, False, NOT_COMPARED, weights.step, run.run_id, run.tracking_uri, weights.stage)


def _write_record(run: TrainedRun, versions: list[Published]) -> None:
    """Write the record without credentials. Readers take them from the configuration or the environment."""
    shown = [one._replace(tracking_uri=mask_secrets(one.tracking_uri))._asdict() for one in versions]
    write_atomic(RunFolder.of(run.experiment).published, json.dumps(shown, indent=1))


def _log(run: TrainedRun, weights: StageWeights, result: EvaluationResult) -> None:
    """Log metrics: `volumes/...` for the run's best weights, `volumes/STAGE/...` for those of a stage."""
    logger = tracking.RunLogger(run.tracking_uri, run.run_id)
    best = weights.step == run.best.step
    for prefix in ([f"volumes/{weights.stage}"] if run.others else []) + (["volumes"] if best else []):
        logger.metrics(run.step, {f"{prefix}/{key}": value for key, value in result.as_metrics().items()})
    for subject in result.subjects[:4]:
        name = f"volume-{subject.subject}" if best else f"volume-{weights.stage}-{subject.subject}"
        logger.figure(run.step, name, subject.picture())
