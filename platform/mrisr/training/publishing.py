"""From the best weights of a run to a registered version, and to the champion if it is better."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from mrisr.evaluation.cluster_tasks import evaluate_on_cluster
from mrisr.evaluation.result import EvaluationResult
from mrisr.evaluation.subject import Evaluation
from mrisr.files import write_atomic
from mrisr.models.weights import trained_generator
from mrisr.tracking import registry
from mrisr.tracking import runs as tracking
from mrisr.tracking.addresses import check_address
from mrisr.tracking.promotion import promote
from mrisr.tracking.redaction import mask_secrets
from mrisr.training.run import TrainedRun
from mrisr.training.run_folder import RunFolder

NOT_COMPARED = "not compared yet"


class Published(NamedTuple):
    """A registered version. model_uri: models:/NAME/VERSION; decision: why it is or is not the champion."""

    model_uri: str
    name: str
    version: str
    promoted: bool
    decision: str
    best_step: int
    run_id: str
    tracking_uri: str

    def lines(self) -> list[str]:
        role = f"champion of {self.name!r}" if self.promoted else f"not the champion of {self.name!r}"
        return [
            f"registered {self.model_uri} (weights of step {self.best_step:,}): {role}; {self.decision}",
            f"tracked in run {self.run_id} at {mask_secrets(self.tracking_uri)}",
        ]


def publish(run: TrainedRun, tags: Mapping[str, str] | None = None) -> Published:
    """Evaluate a finished run on the whole volumes of its validation split, register it, and compare it.

    tags: further tags of the version. Done once per run: a second call, after a resumption that trained no further,
    returns what the first one did.
    """
    check_address(run.tracking_uri)
    evaluation = Evaluation.of(run.experiment, run.experiment.validation.split)
    published = _recorded(run)
    if published is None:
        published = _register(run, evaluation, tags or {})
        # Before the comparison: a process killed in it must not register the same weights again.
        _write_record(run, published)
    if published.decision == NOT_COMPARED:
        decision = promote(
            published.name, published.version, run.tracking_uri, f"val_{run.experiment.validation.metric}",
            evaluate=lambda loaded: evaluate_on_cluster(evaluation, loaded.generator).figures(),
        )  # fmt: skip
        published = published._replace(promoted=decision.promoted, decision=decision.reason)
    _write_record(run, published)  # also one of an older version, which kept credentials
    tracking.finish(run.tracking_uri, run.run_id)
    return published


def _recorded(run: TrainedRun) -> Published | None:
    """What an earlier call did with these weights."""
    record = RunFolder.of(run.experiment).published
    if not record.exists():
        return None
    done = Published(**{**json.loads(record.read_text()), "tracking_uri": run.tracking_uri})
    return done if done.best_step == run.best_step else None


def _register(run: TrainedRun, evaluation: Evaluation, tags: Mapping[str, str]) -> Published:
    experiment, name = run.experiment, run.experiment.tracking.model
    config = experiment.generator.architecture
    result = evaluate_on_cluster(evaluation, trained_generator(config, run.state))
    _log(run, result)
    described = registry.model_tags(
        result.protocol, result.degradation, result.fingerprint, evaluation.store.fingerprint(), result.figures()
    )
    version = registry.register(
        run.state, config, run.run_id, name,
        {**described, "trained_on": experiment.degradation.kind, "precision": experiment.training.precision, **tags},
        f"mDCSRN of run {experiment.name!r}, best weights of step {run.best_step:,}", run.tracking_uri,
    )  # fmt: skip
    uri = f"models:/{name}/{version}"
    return Published(uri, name, version, False, NOT_COMPARED, run.best_step, run.run_id, run.tracking_uri)


def _write_record(run: TrainedRun, published: Published) -> None:
    """Without credentials, which every reader gets from the configuration or the environment instead."""
    shown = published._replace(tracking_uri=mask_secrets(published.tracking_uri))
    write_atomic(RunFolder.of(run.experiment).published, json.dumps(shown._asdict(), indent=1))


def _log(run: TrainedRun, result: EvaluationResult) -> None:
    logger = tracking.RunLogger(run.tracking_uri, run.run_id)
    logger.metrics(run.step, {f"volumes/{key}": value for key, value in result.as_metrics().items()})
    for subject in result.subjects[:4]:
        logger.figure(run.step, f"volume-{subject.subject}", subject.picture())
