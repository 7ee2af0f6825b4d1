"""The driver of a run: check and plan the experiment, start the workers, and return the best weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mrisr import cluster
from mrisr.config import Experiment
from mrisr.config.paths import home
from mrisr.data.checks import open_store
from mrisr.data.splits import resolve_splits
from mrisr.engine.progress import read_progress
from mrisr.files import write_atomic
from mrisr.tracking import runs as tracking
from mrisr.tracking.addresses import AddressUnreachable, check_address
from mrisr.tracking.availability import first_line
from mrisr.tracking.outbox import LAST_DELIVERY_S, Outbox
from mrisr.tracking.redaction import mask_secrets
from mrisr.training.checkpoints import best_of_stage, best_weights
from mrisr.training.display import shown
from mrisr.training.launcher import start_launcher
from mrisr.training.outcome import StoreChanged, Terminated, TrackingUnreachable
from mrisr.training.progress import ProgressLog
from mrisr.training.run_folder import RunFolder
from mrisr.training.worker_settings import WorkerSettings
from voxelstore import VolumeStore

if TYPE_CHECKING:
    from torch import Tensor


class Host(NamedTuple):
    """The search that a run belongs to. It runs several runs at once and listens to each.

    driver_cpus: logical CPUs that each run's driver reserves; callbacks: for Ray Train; parent_run_id: the search's
    MLflow run; dataset: the store's fingerprint when the search began; displays: whether the search shows the run's
    progress itself.
    """

    runs: int = 1
    driver_cpus: float = 0.0
    callbacks: tuple[Any, ...] = ()
    parent_run_id: str | None = None
    dataset: str | None = None
    displays: bool = False


class StageWeights(NamedTuple):
    """A stage's (Schedule.stage) best generator weights, as plain CPU tensors, and the validation that chose them."""

    stage: str
    step: int
    figures: dict[str, float]
    state: dict[str, Tensor]


class TrainedRun(NamedTuple):
    """best: the best of all weights of the run; others: the best weights of the other stages, if any."""

    experiment: Experiment
    run_id: str
    tracking_uri: str
    step: int
    best: StageWeights
    others: tuple[StageWeights, ...]
    checkpoint: Path


def train(experiment: Experiment, host: Host = Host()) -> TrainedRun:
    """Train to the end of the schedule. An earlier start of the same run is resumed.

    Raises ConfigError if the experiment does not fit its store or the earlier start, or if another process trains the
    run; StoreChanged and TrackingUnreachable; cluster.ResourceError if its workers can never be placed;
    TrainingStopped; Terminated after SIGTERM.
    """
    store = open_store(experiment)
    experiment = resolve_splits(experiment, store)
    folder = RunFolder.of(experiment)
    if host.dataset not in (None, store.fingerprint()):
        raise StoreChanged(
            f"data.store = {store.path}: its subjects or splits have changed since the search began, so that figures "
            "do not compare; use another name=... for a new search"
        )
    folder.refuse_other(experiment, store)
    if (finished := _finished(experiment)) is not None:
        return finished
    _check_address(experiment)
    with nullcontext() if host.displays else shown(experiment, folder.progress) as say:
        if say is not None:
            say(f"{experiment.name}: {experiment.schedule.describe()} in {folder.path}")
        return _train(experiment, store, host)


def _train(experiment: Experiment, store: VolumeStore, host: Host) -> TrainedRun:
    folder = RunFolder.of(experiment)
    uri = tracking.resolve_uri(experiment.tracking.uri, home())
    with tracking.importing(uri):
        cluster.connect()
    share = _share(experiment, host)
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.locked():
        folder.refuse_other_batchnorm(experiment, share.gpu)
        launcher = start_launcher()
        folder.begin(experiment, store)
        log = ProgressLog(folder.progress, "driver")
        initial = None
        if experiment.generator.init_from is not None:
            from mrisr.training.warm_start import prepare_initial_weights

            initial = prepare_initial_weights(experiment, store, uri, log.note)
        config = experiment.model_dump(mode="json")
        run_id = tracked_run(config, store, uri, folder, parent_run_id=host.parent_run_id)
        node_cpus = max(1, int(min(cpus for cpus, _ in cluster.nodes()) / host.runs))
        settings = WorkerSettings(
            experiment, uri, run_id, store.fingerprint(), initial, share, node_cpus, host.runs, host.driver_cpus
        )
        from mrisr.training.supervisor import Supervisor  # Ray Train takes 0.6 s, while the launcher starts

        with ending_in_tracking(uri, run_id):
            Supervisor(settings, host.callbacks, log.note, launcher).run()
        _deliver_rest(experiment, uri, run_id)
        return outcome(experiment, run_id, uri, folder.checkpoints()[-1])


def _check_address(experiment: Experiment) -> None:
    folder = RunFolder.of(experiment)
    begun = folder.mlflow_run_id is not None and folder.continues(experiment)
    try:
        check_address(tracking.resolve_uri(experiment.tracking.uri, home()), creates=not begun)
    except AddressUnreachable as error:
        if not begun:  # a resumed run continues without MLflow; a new one must be registered there
            raise TrackingUnreachable(str(error)) from None


def _share(experiment: Experiment, host: Host) -> cluster.Share:
    cpus, gpus = cluster.available()
    # The search has checked that its runs fit onto the machines.
    nodes = cluster.nodes() if host.runs == 1 else ()
    return cluster.divide(experiment, cpus / host.runs - host.driver_cpus, gpus // host.runs, nodes)


@contextmanager
def ending_in_tracking(uri: str, run_id: str) -> Iterator[None]:
    """On an error or an interruption in the block, mark the MLflow run as failed or killed."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, Terminated):
        tracking.finish_if_reachable(uri, run_id, "KILLED")
        raise
    except Exception:
        tracking.finish_if_reachable(uri, run_id, "FAILED")
        raise


def _finished(experiment: Experiment) -> TrainedRun | None:
    """The run, if an earlier start reached the end of the schedule. Sends MLflow the records that it still lacks."""
    folder = RunFolder.of(experiment)
    checkpoints = folder.checkpoints()
    # A checkpoint before the first validation that counts has no best weights.
    if not checkpoints or read_progress(checkpoints[-1])["step"] < experiment.schedule.total_steps:
        return None
    uri, run_id = tracking.resolve_uri(experiment.tracking.uri, home()), folder.mlflow_run.read_text()
    run = outcome(experiment, run_id, uri, checkpoints[-1])
    _deliver_rest(experiment, uri, run_id)
    return run


def _deliver_rest(experiment: Experiment, uri: str, run_id: str) -> None:
    """Send MLflow the records that the workers could not deliver, before the run is published and shown as finished."""
    folder = RunFolder.of(experiment).outbox
    if any(folder.glob("[0-9]*.json")):
        Outbox(uri, run_id, folder).close(LAST_DELIVERY_S)


def outcome(experiment: Experiment, run_id: str, uri: str, checkpoint: Path) -> TrainedRun:
    """The result of a run at a checkpoint. experiment.training.precision must be the run's actual precision."""
    progress = read_progress(checkpoint)
    experiment = RunFolder.of(experiment).as_recorded(experiment)
    stage = experiment.schedule.stage(progress["best"]["step"])
    best = StageWeights(stage, **progress["best"], state=best_weights(checkpoint))
    others = tuple(
        StageWeights(other, **found, state=best_weights(checkpoint, best_of_stage(other)))
        for other, found in progress.get("best_of_stage", {}).items()
        if other != stage and found["step"] is not None
    )
    return TrainedRun(experiment, run_id, uri, progress["step"], best, others, checkpoint)


def tracked_run(config: dict[str, Any], store: VolumeStore, uri: str, folder: RunFolder, **options: Any) -> str:
    """The MLflow run's id. A resumed run keeps its id, so its curves continue.

    config: the resolved configuration as plain values; folder: of a run or a search; options: of `tracking.start_run`.
    Raises TrackingUnreachable.
    """
    if (run_id := folder.mlflow_run_id) is not None:
        tracking.resume_if_reachable(uri, run_id, folder.mlflow_run)
        return run_id
    options |= {"name": folder.path.name, "dataset_fingerprint": store.fingerprint()}
    try:
        place = tracking.prepare(uri, home() / "mlartifacts", config["tracking"]["experiment"])
        run_id = tracking.start_run(place, config, **options)
    except ValueError:
        raise  # an address or an experiment that cannot be used
    except Exception as error:  # a database raises its own errors, not MLflow's
        raise TrackingUnreachable(
            f"tracking.uri = {mask_secrets(uri)}: the run cannot be begun there ({first_line(error)}); start "
            "MLflow, or give another address"
        ) from error
    write_atomic(folder.mlflow_run, run_id)
    return run_id
