"""Whole-volume evaluation as Ray tasks: one subject per task, on a GPU where there is one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from mrisr import cluster
from mrisr.config import ConfigError
from mrisr.data.training_subjects import UNKNOWN, count_and_names, seen_in_training
from mrisr.degradation import describe
from mrisr.evaluation.result import EvaluationResult, SubjectResult
from mrisr.evaluation.subject import Evaluation, evaluate_subject
from mrisr.models.weights import TrainedOn
from mrisr.tracking.runs import RunLogger


def evaluate_on_cluster(
    evaluation: Evaluation,
    generator: nn.Module | None,
    console: Console | None = None,
    trained_on: TrainedOn = TrainedOn(complete=True),
) -> EvaluationResult:
    """Evaluate all subjects of the split, as many at a time as the cluster has room for; prints a line per subject.

    generator: a plain network on the CPU, or None for the input and the spline only; trained_on: its training volumes.
    Raises ConfigError for an empty split, and for training subjects unless they are allowed.
    """
    import ray

    store, split = evaluation.store, evaluation.split
    subjects = store.subjects(split)
    if not subjects:
        sizes = ", ".join(f"{name} ({len(names)})" for name, names in store.splits().items()) or "none"
        raise ConfigError(f"split = {split!r}: the store {store.path} has no subject in it; its splits: {sizes}")
    seen = seen_in_training(store, subjects, trained_on)
    if seen and not evaluation.allow_trained_on:
        raise ConfigError(
            f"split = {split!r}: {count_and_names(seen)} of its {len(subjects)} subjects in {store.path} are "
            "among those that the model was trained on, so its figures would say nothing about other people; evaluate "
            "another split or store, or mark them: --allow-trained-on (in training validation.allow_trained_on=true)"
        )
    console = console or Console()
    if not trained_on.complete:
        console.print(f"{UNKNOWN}; some of these subjects may be among them", soft_wrap=True)
    cluster.connect()
    cpus, total_gpus = cluster.available()
    gpus = int(total_gpus) if evaluation.gpu is not False else 0
    # A task must fit on a single machine.
    smallest = min(node_cpus for node_cpus, _ in cluster.nodes())
    parallel = max(1, min(len(subjects), gpus or int(cpus)))
    share = min(1.0 if gpus else max(1.0, cpus // parallel), smallest)
    cluster.wait_for_cpu(share, lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True))
    options = replace(evaluation.options, device="cuda" if gpus else "cpu")
    task = ray.remote(num_cpus=share, num_gpus=1 if gpus else 0)(_evaluate)
    shared = ray.put((replace(evaluation, options=options), generator))
    pending = [task.remote(shared, name, max(1, int(share))) for name in subjects]
    results: dict[str, SubjectResult] = {}
    volumes = f"{len(subjects)} whole volume{'s' if len(subjects) > 1 else ''}"
    with console.status(f"evaluating {volumes} of split {split!r} under {evaluation.protocol}"):
        while pending:
            (done,), pending = ray.wait(pending, num_returns=1)
            result = ray.get(done)
            results[result.subject] = result
            console.print(
                f"[{len(results)}/{len(subjects)}] {result.describe()}", markup=False, highlight=False, soft_wrap=True
            )
    ordered = tuple(results[name] for name in subjects)
    degradation = describe(evaluation.degradation)
    return EvaluationResult(evaluation.protocol, degradation, split, store.fingerprint(split), ordered, seen)


def _evaluate(shared: tuple[Evaluation, nn.Module | None], subject: str, threads: int) -> SubjectResult:
    evaluation, generator = shared
    if evaluation.options.device == "cuda" and not torch.cuda.is_available():
        evaluation = replace(evaluation, options=replace(evaluation.options, device="cpu"))
    if evaluation.options.device == "cpu":
        torch.set_num_threads(min(threads, os.cpu_count() or 1))
    return evaluate_subject(evaluation, subject, generator)


def log_evaluation(result: EvaluationResult, csv: Path, tracking_uri: str, run_id: str, version: str) -> str:
    """Add an evaluation to the MLflow run that made the model. Returns a line about it for the terminal.

    Metrics `SPLIT/PROTOCOL/version-V/FINGERPRINT/...` get a point for every evaluation of the version on these subjects
    (the first eight digits of their fingerprint). `SPLIT/PROTOCOL/...` gets one point per version, the first, with the
    version as the step; a version lower than one already logged gets none. The CSV becomes an artifact.
    """
    logger = RunLogger(tracking_uri, run_id)
    prefix, own = f"{result.split}/{result.protocol}", f"version-{version}/{result.fingerprint[:8]}"
    figures = result.as_metrics() | {"trained_on_subjects": float(len(result.trained_on))}
    logger.metrics(int(version), {f"{prefix}/{key}": value for key, value in figures.items()})
    keyed = {f"{prefix}/{own}/{key}": value for key, value in figures.items()}
    count = logger.next_step(keyed)
    logger.metrics(count, keyed)
    logger.artifact(csv, f"evaluation/{own}")
    return (
        f"logged to run {run_id}: metrics {prefix}/{own}/..., evaluation {count} of them; evaluation/{own}/{csv.name}"
    )
