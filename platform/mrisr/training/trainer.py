"""The driver's side of a run: check, plan, start the workers, and hand the best weights on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from safetensors.torch import load_file
from torch import Tensor

from mrisr import cluster, tracking
from mrisr.config import ConfigError, Experiment
from mrisr.config.loading import dump_experiment
from mrisr.config.schema import home
from mrisr.training.checkpoint import PROGRESS
from mrisr.training.initial import prepare_initial_weights
from mrisr.training.outcome import Terminated, TrainingStopped
from mrisr.training.saving import whole_checkpoints
from mrisr.training.stopping import stop_on_sigterm
from mrisr.training.worker import BEST_WEIGHTS, train_worker
from voxelstore import VolumeStore

# Keys that may differ between a run and its resumption: they change how and how far, not what is computed so far.
_MAY_CHANGE = (
    "resources", "schedule.total_steps", "training.max_failures", "training.keep_checkpoints", "tracking",
    "tuning",
    "generator.recompute", "critic.samples_at_once",
)  # fmt: skip


class Host(NamedTuple):
    """What a run is part of: a search that runs several at once and listens to each.

    runs: how many such runs share the cluster; driver_cpus: logical CPUs that each one's driver reserves itself;
    callbacks: of Ray Train; parent_run_id: the MLflow run above it.
    """

    runs: int = 1
    driver_cpus: float = 0.0
    callbacks: tuple[Any, ...] = ()
    parent_run_id: str | None = None


class TrainedRun(NamedTuple):
    """A finished run. figures: the best validation's; state: the best generator weights, plain CPU tensors."""

    experiment: Experiment
    run_id: str
    tracking_uri: str
    step: int
    best_step: int
    figures: dict[str, float]
    state: dict[str, Tensor]
    checkpoint: Path


def open_store(experiment: Experiment) -> VolumeStore:
    """The experiment's store, with subjects to train on and to validate on. Raises ConfigError otherwise."""
    try:
        store = VolumeStore.open(experiment.data.store)
    except ValueError as error:
        raise ConfigError(f"data.store = {experiment.data.store}: {error}") from None
    for key, split in (("data.splits", "train"), ("validation.split", experiment.validation.split)):
        if not store.subjects(split):
            sizes = ", ".join(f"{name}: {len(subjects)}" for name, subjects in store.splits().items()) or "none"
            raise ConfigError(
                f"{key}: the store {store.path} has no subjects in split {split!r} (it has {sizes}); "
                "convert more volumes, or convert with other --splits"
            )
    smallest = min((min(store.record(s).shape), s) for s in store.subjects())
    for key, patch in (("stream", experiment.stream.patch_size), ("validation", experiment.validation.patch_size)):
        if patch > smallest[0]:
            raise ConfigError(
                f"{key}.patch_size = {patch} is larger than the shortest axis of {smallest[1]}, {smallest[0]} voxels; "
                f"use at most {smallest[0]}"
            )
    return store


def train(experiment: Experiment, host: Host = Host()) -> TrainedRun:
    """Train to the end of the schedule, or go on where an earlier start of the same run stopped.

    Raises ConfigError for an experiment that does not fit its store or its own earlier start, cluster.ResourceError
    for workers that can never be placed, TrainingStopped where a step or the disk stops it, Terminated after SIGTERM.
    """
    store = open_store(experiment)
    cluster.connect()
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    total_cpus, gpus = cluster.available()
    cpus = total_cpus / host.runs - host.driver_cpus
    share = cluster.divide(experiment, cpus, gpus // host.runs)
    _claim(experiment, store)
    _mend_ray_snapshot(experiment.run_folder)
    uri = tracking.resolve_uri(experiment.tracking.uri, home())
    initial = prepare_initial_weights(experiment, uri)
    run_id = _tracked_run(experiment, store, uri, host.parent_run_id)
    workers = experiment.resources.workers
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    settings = {
        "experiment": experiment.model_dump(mode="json"),
        "tracking_uri": uri,
        "mlflow_run_id": run_id,
        "initial": None if initial is None else str(initial),
        "node_cpus": max(1, int(min(node.get("CPU", 1) for node in nodes if node.get("CPU")) / host.runs)),
        "data_cpus": share.data_cpus,
    }
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=settings,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=share.gpu,
            resources_per_worker={"CPU": share.cpus, **({"GPU": 1} if share.gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=experiment.name,
            storage_path=str(experiment.output),
            failure_config=ray.train.FailureConfig(
                max_failures=experiment.training.max_failures, controller_failure_limit=0
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=experiment.training.keep_checkpoints),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            callbacks=list(host.callbacks),
        ),
    )
    try:
        with stop_on_sigterm(experiment.run_folder):
            result = trainer.fit()
    except KeyboardInterrupt:
        tracking.finish_if_reachable(uri, run_id, "KILLED")
        raise
    except Exception:
        tracking.finish_if_reachable(uri, run_id, "FAILED")
        raise
    if stopped := result.return_value["stopped"]:
        kind, message = stopped
        tracking.finish_if_reachable(uri, run_id, "KILLED" if kind == "terminated" else "FAILED")
        raise Terminated(message) if kind == "terminated" else TrainingStopped(message)
    return outcome(experiment, run_id, uri, whole_checkpoints(experiment.run_folder)[-1])


def outcome(experiment: Experiment, run_id: str, uri: str, checkpoint: Path) -> TrainedRun:
    """What a run has come to at a checkpoint of it."""
    progress = json.loads((checkpoint / PROGRESS).read_text())
    best = progress["best"]
    state = load_file(checkpoint / BEST_WEIGHTS)
    return TrainedRun(experiment, run_id, uri, progress["step"], best["step"], best["figures"], state, checkpoint)


def _claim(experiment: Experiment, store: VolumeStore) -> None:
    """Write the resolved configuration into the run's folder before the first step, or check what is there."""
    folder, file = experiment.run_folder, experiment.run_folder / "experiment.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    if file.exists():
        before, now = _flat(yaml.safe_load(file.read_text())), _flat(experiment.model_dump(mode="json"))
        changed = sorted(
            key for key in before.keys() | now.keys()
            if before.get(key) != now.get(key) and not key.startswith(_MAY_CHANGE)
        )  # fmt: skip
        if changed:
            lines = [f"  {key}: was {before.get(key)!r}, now {now.get(key)!r}" for key in changed]
            raise ConfigError(
                f"name = {experiment.name!r}: {folder} holds a run of another configuration:\n"
                + "\n".join(lines)
                + "\nUse the same values to resume it, or another name=... to start a new run"
            )
        data = folder / "dataset.txt"
        if data.exists() and data.read_text() != store.fingerprint():
            raise ConfigError(
                f"data.store = {store.path}: its subjects or splits have changed since run {experiment.name!r} began, "
                "so that it cannot be resumed exactly; use another name=... to start a new run"
            )
        return
    (folder / "dataset.txt").write_text(store.fingerprint())
    _write_whole(file, dump_experiment(experiment))


def _mend_ray_snapshot(folder: Path) -> None:
    """Put Ray's own list of checkpoints aside if it was cut short: Ray writes it in place, and would refuse to start.

    The checkpoints are found without it; the workers report the newest to Ray again.
    """
    snapshot = folder / "checkpoint_manager_snapshot.json"
    try:
        listed = json.loads(snapshot.read_text())["checkpoint_results"]
        sound = all((folder / entry["checkpoint_dir_name"]).is_dir() for entry in listed)
    except FileNotFoundError:
        return
    except (json.JSONDecodeError, KeyError, TypeError):
        sound = False
    if not sound:
        snapshot.replace(snapshot.with_suffix(".torn"))


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        k: v for name, child in node.items() for k, v in _flat(child, f"{prefix}.{name}" if prefix else name).items()
    }


def _tracked_run(experiment: Experiment, store: VolumeStore, uri: str, parent: str | None) -> str:
    """The MLflow run's id: the one of an earlier start if there is one, so that its curves go on."""
    place = tracking.prepare(uri, home() / "mlartifacts", experiment.tracking.experiment)
    file = experiment.run_folder / "mlflow_run_id.txt"
    if file.exists():
        run_id = file.read_text()
        tracking.resume_run(uri, run_id)
        return run_id
    config = experiment.model_dump(mode="json")
    run_id = tracking.start_run(
        place, config, name=experiment.name, dataset_fingerprint=store.fingerprint(), parent_run_id=parent
    )
    _write_whole(file, run_id)
    return run_id


def _write_whole(file: Path, text: str) -> None:
    part = file.with_name(f".{file.name}.part{os.getpid()}")
    part.write_text(text)
    part.replace(file)
