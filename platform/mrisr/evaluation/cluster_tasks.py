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
from mrisr.degradation import PROTOCOLS, Degradation
from mrisr.engine.precision import Precision
from mrisr.evaluation.result import EvaluationResult, SubjectResult
from mrisr.evaluation.subject import evaluate_subject
from mrisr.inference.sliding_window import InferenceOptions
from mrisr.tracking.runs import RunLogger
from voxelstore import VolumeStore


def protocol_named(name: str) -> Degradation:
    """The fixed degradation of that name. Raises ConfigError listing those that exist."""
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol = {name!r}: unknown; use one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def evaluate_on_cluster(
    store: VolumeStore,
    split: str,
    protocol: str,
    generator: nn.Module | None,
    patch_size: int = 64,
    overlap: float = 0.25,
    precision: Precision = "auto",
    consistency: bool = False,
    console: Console | None = None,
    gpu: bool | None = None,
) -> EvaluationResult:
    """Evaluate all subjects of a split under a named protocol, as many at a time as the cluster has room for.

    generator: a plain network on the CPU, or None for the input and the spline alone. gpu: a GPU per task; None: where
    the cluster has GPUs that torch can use. Prints a line per subject.
    Raises ConfigError for an empty split or an unknown protocol.
    """
    import ray

    degradation = protocol_named(protocol)
    subjects = store.subjects(split)
    if not subjects:
        sizes = ", ".join(f"{name} ({len(names)})" for name, names in store.splits().items()) or "none"
        raise ConfigError(f"split = {split!r}: the store {store.path} has no subject in it; its splits: {sizes}")
    cluster.connect()
    cpus, total_gpus = cluster.available()
    gpus = int(total_gpus) if gpu is not False else 0
    parallel = max(1, min(len(subjects), gpus or int(cpus)))
    options = InferenceOptions(
        patch_size=patch_size, overlap=overlap, precision=precision, device="cuda" if gpus else "cpu"
    )
    # A task runs on one machine, however many CPUs all of them have together.
    smallest = min(node_cpus for node_cpus, _ in cluster.nodes())
    share = min(max(1.0, cpus // parallel), smallest) if not gpus else min(1.0, smallest)
    task = ray.remote(num_cpus=share, num_gpus=1 if gpus else 0)(_evaluate)
    shared = ray.put(generator)
    console = console or Console()
    pending = [
        task.remote(store, name, degradation, shared, options, consistency, max(1, int(share))) for name in subjects
    ]
    results: dict[str, SubjectResult] = {}
    with console.status(f"evaluating {len(subjects)} subjects under {protocol}"):
        while pending:
            (done,), pending = ray.wait(pending, num_returns=1)
            result = ray.get(done)
            results[result.subject] = result
            console.print(
                f"[{len(results)}/{len(subjects)}] {result.describe()}", markup=False, highlight=False, soft_wrap=True
            )
    ordered = tuple(results[name] for name in subjects)
    return EvaluationResult(protocol, degradation.describe(), split, store.fingerprint(split), ordered)


def _evaluate(
    store: VolumeStore,
    subject: str,
    degradation: Degradation,
    generator: nn.Module | None,
    options: InferenceOptions,
    consistency: bool,
    threads: int,
) -> SubjectResult:
    if options.device == "cuda" and not torch.cuda.is_available():
        options = replace(options, device="cpu")
    if options.device == "cpu":
        torch.set_num_threads(min(threads, os.cpu_count() or 1))
    return evaluate_subject(store, subject, degradation, generator, options, consistency)


def log_evaluation(result: EvaluationResult, csv: Path, tracking_uri: str, run_id: str, version: str) -> None:
    """Add an evaluation to the MLflow run that made the model: metrics `SPLIT/PROTOCOL/...`, and the CSV.

    A run can have several versions; a version's number takes the place of the metrics' step.
    """
    logger = RunLogger(tracking_uri, run_id)
    prefix = f"{result.split}/{result.protocol}"
    logger.metrics(int(version), {f"{prefix}/{key}": value for key, value in result.as_metrics().items()})
    logger.artifact(csv, f"evaluation/version-{version}")
