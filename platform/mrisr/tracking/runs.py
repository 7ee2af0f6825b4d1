"""MLflow runs: where they are stored, how they start and end, and what is logged to them.

Addresses and artifact locations are absolute, because Ray workers run in temporary copies of the working directory.
MLflow's global state (active run, tracking URI) is not used: every call names its run.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import yaml

from mrisr.tracking.availability import first_line, is_refusal, within
from mrisr.tracking.provenance import SOURCES, code_version, flatten, plain
from mrisr.tracking.redaction import mask_secrets

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.tracking import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]

_PARAMS_PER_CALL, _METRICS_PER_CALL = 100, 1000
# Seconds that a resumed run and an ending run wait for MLflow.
RESUME_S, FINISH_S = 10.0, 5.0


class Tracking(NamedTuple):
    """Where runs go: an absolute tracking URI and an experiment that exists."""

    uri: str
    experiment_id: str
    experiment: str


def client(uri: str) -> MlflowClient:
    """A client of one tracking server or database, which is its own model registry."""
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def importing(uri: str) -> Iterator[None]:
    """Import what a client of `uri` needs, 2 s of a core, in a thread while the block waits for something else."""

    def load() -> None:
        if uri.startswith("http"):
            import mlflow.tracking
        else:
            import mlflow.store.tracking.sqlalchemy_store

        assert mlflow

    thread = threading.Thread(target=load, name="import-mlflow", daemon=True)
    thread.start()
    yield
    thread.join()


def resolve_uri(uri: str | None, root: Path) -> str:
    """The absolute tracking URI: `uri`, else `MLFLOW_TRACKING_URI`, else `root`/mlflow.db. Raises ValueError for an
    in-memory database and for the file store, which MLflow 3 no longer serves.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.absolute() / 'mlflow.db'}"
    if "://" not in uri or uri.startswith("file:"):
        raise ValueError(f"tracking URI {uri!r}: MLflow has given up its file store; use sqlite:////absolute/mlflow.db")
    if uri.startswith("sqlite:"):
        path, _, query = uri.removeprefix("sqlite:///").partition("?")
        if not path or path.startswith((":memory:", "sqlite:")):
            raise ValueError(f"tracking URI {uri!r}: other processes cannot see it; use sqlite:////absolute/mlflow.db")
        uri = f"sqlite:///{Path(path).absolute()}" + (f"?{query}" if query else "")
    return uri


def _database(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:") else None


def prepare(uri: str | None, artifact_root: Path, experiment: str) -> Tracking:
    """Create the database and the experiment if they are missing. The driver calls it before any worker starts.

    artifact_root: for figures, models and the default database; all machines of the cluster must see this folder. An
    MLflow server (http, https, databricks) decides itself where artifacts go. A new sqlite database that several
    processes migrate at once stays broken, so a file lock beside it (for other databases in `artifact_root`) admits one
    at a time. Raises ValueError for an unusable URI and for a deleted experiment.
    """
    from filelock import FileLock
    from mlflow.exceptions import MlflowException

    uri, root = resolve_uri(uri, artifact_root), artifact_root.absolute()
    served, database = uri.startswith(("http:", "https:", "databricks")), _database(uri)
    lock: AbstractContextManager[object] = nullcontext()
    if not served:
        for folder in (root, database.parent if database is not None else root):
            folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{database}.lock" if database is not None else root / ".mlflow.lock")
    with lock:
        store = client(uri)
        found = store.get_experiment_by_name(experiment)
        if found is None:
            location = None if served else (root / experiment).as_uri()
            try:
                return Tracking(uri, store.create_experiment(experiment, artifact_location=location), experiment)
            except MlflowException as error:
                # Another machine, without this file lock, has created it meanwhile.
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = store.get_experiment_by_name(experiment)
    if found is None or found.lifecycle_stage != "active":
        raise ValueError(
            f"MLflow experiment {experiment!r} is deleted: restore it (mlflow experiments restore), or use another name"
        )
    return Tracking(uri, found.experiment_id, experiment)


def registry_lock(uri: str) -> AbstractContextManager[object]:
    """A lock for comparing with the champion and replacing it; only for a sqlite database."""
    from filelock import FileLock

    database = _database(uri)
    return nullcontext() if database is None else FileLock(f"{database}.champion.lock")


def start_run(
    tracking: Tracking,
    config: Mapping[str, Any],
    *,
    name: str,
    dataset_fingerprint: str | None = None,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> str:
    """Create a run and log its resolved configuration. Returns the run's id, which the driver gives to the workers.

    config: nested mappings and sequences of plain values. They become parameters with dotted names (long values are
    shortened) and the complete artifact config.yaml; secrets are masked in both. Tags: code_version (git commit or hash
    of the sources), dataset_fingerprint, and `tags`.
    """
    from mlflow.entities import Param

    store, masked = client(tracking.uri), mask_secrets(plain(config))
    all_tags = {"code_version": code_version(), **mask_secrets(dict(tags or {}))}
    if not all_tags["code_version"].startswith(SOURCES):
        all_tags["mlflow.source.git.commit"] = all_tags["code_version"].removesuffix("-dirty")
    if dataset_fingerprint is not None:
        all_tags["dataset_fingerprint"] = dataset_fingerprint
    if parent_run_id is not None:
        all_tags["mlflow.parentRunId"] = parent_run_id
    run_id: str = store.create_run(tracking.experiment_id, run_name=name, tags=all_tags).info.run_id
    params = [Param(key, value) for key, value in flatten(masked).items()]
    for first in range(0, len(params), _PARAMS_PER_CALL):
        store.log_batch(run_id, params=params[first : first + _PARAMS_PER_CALL])
    store.log_text(run_id, yaml.safe_dump(masked, sort_keys=False, allow_unicode=True), "config.yaml")
    return run_id


def finish(uri: str, run_id: str, status: Status = "FINISHED") -> None:
    client(uri).set_terminated(run_id, status)


def finish_if_reachable(uri: str, run_id: str, status: Status) -> None:
    """`finish` for a run that ends with an error. A failure of MLflow is printed and neither hides nor delays it."""
    try:
        within(FINISH_S, lambda: finish(uri, run_id, status))
    except Exception as error:  # a locked database raises errors of its own
        how = "says no" if is_refusal(error) else "is away"
        print(f"MLflow at {mask_secrets(uri)} {how}: run {run_id} keeps its old status there ({first_line(error)})",
              file=sys.stderr, flush=True)  # fmt: skip


def resume_if_reachable(uri: str, run_id: str, file: Path) -> None:
    """Mark an ended run as running again, or warn if MLflow does not answer: the outbox delivers metrics later. file:
    holds the run's id. Raises ValueError if MLflow answers that it does not have the run.
    """
    place = mask_secrets(uri)
    try:
        within(RESUME_S, lambda: client(uri).update_run(run_id, status="RUNNING"))
    except Exception as error:
        if is_refusal(error):
            raise ValueError(
                f"tracking.uri = {place}: MLflow refuses run {run_id} ({first_line(error)}); use the address that the "
                f"run began with, restore the run, or delete {file} to go on in a new one"
            ) from None
        print(f"MLflow at {place} is away ({first_line(error)}); the run goes on, and its metrics are delivered later",
              file=sys.stderr, flush=True)  # fmt: skip


class RunLogger:
    """Writes to one existing run; used by one process at a time (rank 0). A resumed run computes some steps again;
    their metrics are not logged twice. One query reads the highest logged step of every key from the run.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        self._client = client(uri)
        latest = self._client.get_run(run_id).data.to_proto().metrics
        self._logged: dict[str, int] = {metric.key: metric.step for metric in latest}

    def is_active(self) -> bool:
        return bool(self._client.get_run(self.run_id).info.lifecycle_stage == "active")

    def next_step(self, keys: Iterable[str]) -> int:
        """The first step that none of the keys has, from 1 on."""
        return 1 + max((self._logged.get(key, 0) for key in keys), default=0)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of one step; steps must not decrease, and keys that have this step already are left out."""
        self.batch([(step, values, int(time.time() * 1000))])

    def batch(self, records: Iterable[tuple[int, Mapping[str, float], int]]) -> None:
        """Log several (step, values, time_ms) in order, as `metrics` does, in as few calls as possible."""
        from mlflow.entities import Metric

        new, logged = [], dict(self._logged)
        for step, values, time_ms in records:
            fresh = [key for key in values if step > logged.get(key, -1)]
            new += [Metric(key, float(values[key]), time_ms, step) for key in fresh]
            logged |= dict.fromkeys(fresh, step)
        for first in range(0, len(new), _METRICS_PER_CALL):
            part = new[first : first + _METRICS_PER_CALL]
            self._client.log_batch(self.run_id, metrics=part)
            self._logged |= {metric.key: metric.step for metric in part}

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Store a matplotlib figure as pictures/<step, 8 digits>-<name>.png; the same step and name replace it."""
        self._client.log_figure(self.run_id, figure, f"pictures/{step:08d}-{name}.png")

    def artifact(self, path: Path, folder: str | None = None) -> None:
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), folder or path.name)
        else:
            self._client.log_artifact(self.run_id, str(path), folder)

    def replace_tags(self, prefix: str, values: Mapping[str, str]) -> None:
        """Set the tags `prefix`KEY and delete all others with that prefix."""
        tags = {f"{prefix}{key}": value for key, value in values.items()}
        for key in self._client.get_run(self.run_id).data.tags:
            if key.startswith(prefix) and key not in tags:
                self._client.delete_tag(self.run_id, key)
        self.tags(tags)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run; secrets are masked."""
        for key, value in mask_secrets(dict(values)).items():
            self._client.set_tag(self.run_id, key, value)
