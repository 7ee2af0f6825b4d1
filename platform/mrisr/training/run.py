"""The driver's side of a run: check, plan, start the workers, and hand the best weights on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mrisr import cluster
from mrisr.config import Experiment
from mrisr.config.paths import home
from mrisr.data.checks import open_store
from mrisr.data.splits import settle_splits
from mrisr.engine.checkpoint import read_progress
from mrisr.files import write_atomic
from mrisr.tracking import runs as tracking
from mrisr.tracking.addresses import AddressUnreachable, check_address
from mrisr.tracking.availability import first_line
from mrisr.tracking.outbox import Outbox
from mrisr.tracking.redaction import mask_secrets
from mrisr.training.checkpoints import best_weights
from mrisr.training.outcome import Ending, Terminated, TrackingUnreachable
from mrisr.training.run_folder import RunFolder
from mrisr.training.stopping import stop_on_sigterm
from mrisr.training.warm_start import prepare_initial_weights
from mrisr.training.worker import LAST_DELIVERY_S, WorkerSettings, train_worker
from voxelstore import VolumeStore


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


def train(experiment: Experiment, host: Host = Host()) -> TrainedRun:
    """Train to the end of the schedule, or go on where an earlier start of the same run stopped.

    Raises ConfigError for an experiment that does not fit its store or its own earlier start, or a run that another
    process trains now; cluster.ResourceError for workers that can never be placed; TrainingStopped where a step, the
    disk or a damaged checkpoint stops it; Terminated after SIGTERM.
    """
    store = open_store(experiment)
    experiment = settle_splits(experiment, store)
    folder = RunFolder.of(experiment)
    folder.refuse_other(experiment, store)
    if (finished := _finished(experiment)) is not None:
        return finished
    _check_address(experiment)
    cluster.connect()
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.locked():
        return _train(experiment, store, host)


def _check_address(experiment: Experiment) -> None:
    folder = RunFolder.of(experiment)
    begun = folder.mlflow_run_id is not None and folder.continues(experiment)
    try:
        check_address(tracking.resolve_uri(experiment.tracking.uri, home()), creates=not begun)
    except AddressUnreachable as error:
        if not begun:  # a run that has begun goes on without MLflow; a new one has to be entered there
            raise TrackingUnreachable(str(error)) from None


def _train(experiment: Experiment, store: VolumeStore, host: Host) -> TrainedRun:
    import ray.train

    from mrisr.training.elastic import BatchSharingPolicy
    from mrisr.training.groups import StopRequested, SupervisedTrainer, WholeGroupPolicy, stopped_by

    total_cpus, gpus = cluster.available()
    nodes = cluster.nodes()
    cpus = total_cpus / host.runs - host.driver_cpus
    # Several runs at a time: the search has seen to it that they fit onto the machines together.
    share = cluster.divide(experiment, cpus, gpus // host.runs, nodes if host.runs == 1 else ())
    run_folder = RunFolder.of(experiment)
    run_folder.refuse_other_batchnorm(experiment, share.gpu)
    run_folder.begin(experiment, store)
    mend_ray_snapshot(run_folder)
    uri = tracking.resolve_uri(experiment.tracking.uri, home())
    initial = prepare_initial_weights(experiment, uri)
    run_id = _tracked_run(experiment, store, uri, host.parent_run_id)
    counts, elastic = experiment.worker_counts, experiment.resources.min_workers is not None
    node_cpus = max(1, int(min(cpus for cpus, _ in nodes) / host.runs))
    settings = WorkerSettings(experiment, uri, run_id, initial, share, node_cpus, host.runs, host.driver_cpus)
    scaling_config = ray.train.ScalingConfig(
        num_workers=(counts[-1], counts[0]) if elastic else counts[0],
        use_gpu=share.gpu,
        resources_per_worker={"CPU": share.cpus, **({"GPU": 1} if share.gpu else {})},
        elastic_resize_monitor_interval_s=experiment.resources.resize_every_s,
    )
    # The trials of a search share the cluster, so that one of them cannot tell from the nodes what it will get.
    patient, failures = host.runs == 1, experiment.training.max_failures
    task, folder = experiment.stream.cpus_per_task, experiment.run_folder
    scaling: BatchSharingPolicy | WholeGroupPolicy | None = None
    if elastic:
        scaling = BatchSharingPolicy(scaling_config, counts, task, folder)
    elif patient:
        scaling = WholeGroupPolicy(scaling_config, task, folder)
    trainer = SupervisedTrainer(
        train_worker,
        run_folder=folder,
        scaling=scaling,
        patient=patient or elastic,
        train_loop_config=settings._asdict(),
        scaling_config=scaling_config,
        run_config=ray.train.RunConfig(
            name=experiment.name,
            storage_path=str(experiment.output),
            failure_config=ray.train.FailureConfig(
                max_failures=failures,
                controller_failure_limit=failures if patient or elastic else 0,
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=experiment.training.keep_checkpoints),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            callbacks=list(host.callbacks),
        ),
    )
    try:
        with stop_on_sigterm(folder):
            result = trainer.fit()
    except (KeyboardInterrupt, SystemExit):
        tracking.finish_if_reachable(uri, run_id, "KILLED")
        raise
    except StopRequested as error:
        tracking.finish_if_reachable(uri, run_id, "KILLED")
        raise Terminated(str(error)) from None
    except Exception as error:
        tracking.finish_if_reachable(uri, run_id, "FAILED")
        if (stopped := stopped_by(error)) is not None:
            raise stopped from None
        raise
    ending: Ending = result.return_value
    if ending is not None:
        tracking.finish_if_reachable(uri, run_id, "KILLED" if isinstance(ending, Terminated) else "FAILED")
        raise ending
    _deliver_rest(experiment, uri, run_id)
    return outcome(experiment, run_id, uri, run_folder.checkpoints()[-1])


def _finished(experiment: Experiment) -> TrainedRun | None:
    """The run, if an earlier start has come to the schedule's end; what MLflow has missed of it is delivered now."""
    folder = RunFolder.of(experiment)
    checkpoints = folder.checkpoints()
    # One before the first validation that counts has no best weights to look for.
    if not checkpoints or read_progress(checkpoints[-1])["step"] < experiment.schedule.total_steps:
        return None
    uri, run_id = tracking.resolve_uri(experiment.tracking.uri, home()), folder.mlflow_run.read_text()
    run = outcome(experiment, run_id, uri, checkpoints[-1])
    _deliver_rest(experiment, uri, run_id)
    return run


def _deliver_rest(experiment: Experiment, uri: str, run_id: str) -> None:
    """Before the run is published, and MLflow shows it as finished: what the workers could not deliver."""
    folder = RunFolder.of(experiment).outbox
    if any(folder.glob("[0-9]*.json")):
        Outbox(uri, run_id, folder).close(LAST_DELIVERY_S)


def outcome(experiment: Experiment, run_id: str, uri: str, checkpoint: Path) -> TrainedRun:
    """What a run has come to at a checkpoint of it; experiment.training.precision is what it was computed in."""
    progress = read_progress(checkpoint)
    experiment, best = RunFolder.of(experiment).as_recorded(experiment), progress["best"]
    state = best_weights(checkpoint)
    return TrainedRun(experiment, run_id, uri, progress["step"], best["step"], best["figures"], state, checkpoint)


def _tracked_run(experiment: Experiment, store: VolumeStore, uri: str, parent: str | None) -> str:
    """The MLflow run's id: the one of an earlier start if there is one, so that its curves go on."""
    file = RunFolder.of(experiment).mlflow_run
    if file.exists():
        run_id = file.read_text()
        tracking.resume_if_reachable(uri, run_id, file)
        return run_id
    config = experiment.model_dump(mode="json")
    try:
        place = tracking.prepare(uri, home() / "mlartifacts", experiment.tracking.experiment)
        run_id = tracking.start_run(
            place, config, name=experiment.name, dataset_fingerprint=store.fingerprint(), parent_run_id=parent
        )
    except ValueError:
        raise  # an address or an experiment that cannot be used
    except Exception as error:  # a database raises its own errors, not MLflow's
        raise TrackingUnreachable(
            f"tracking.uri = {mask_secrets(uri)}: the run cannot be begun there ({first_line(error)}); start "
            "MLflow, or give another address"
        ) from error
    write_atomic(file, run_id)
    return run_id


def mend_ray_snapshot(folder: RunFolder) -> None:
    """Put Ray's own list of checkpoints aside if it is cut short or names one that is not whole."""
    snapshot = folder.path / "checkpoint_manager_snapshot.json"
    try:
        listed = [entry["checkpoint_dir_name"] for entry in json.loads(snapshot.read_text())["checkpoint_results"]]
        sound = {*listed} <= {found.name for found in folder.checkpoints()} and len({*listed}) == len(listed)
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        snapshot.replace(snapshot.with_suffix(".torn"))
