"""The search: as many nested runs at a time as fit, stopped early where they are bad, gone on with after a kill."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from ray import PlacementGroupID, tune
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from rich.console import Console

from mrisr import cluster, tracking
from mrisr.config import ConfigError, Experiment
from mrisr.config.schema import home
from mrisr.config.tuning_keys import Tuning
from mrisr.tracking import Status, Tracking
from mrisr.training.trainer import Host, open_store, train
from mrisr.tuning.outcome import Outcome, collect
from mrisr.tuning.plan import SearchPlan
from mrisr.tuning.scheduler import build_scheduler
from mrisr.tuning.study import StudySearch, begun, open_storage, open_study
from mrisr.tuning.trial import DRIVER_CPUS, GROUP, TrialSetting, run_trial

# Keys of a search that may differ when it goes on: how far and how fast, not what is compared.
_MAY_CHANGE = ("trials", "concurrent", "winner", "max_failures")
# How MLflow shows a trial, where not as finished; one that is still running here was interrupted.
_ENDS: dict[str, Status] = {"failed": "FAILED", "running": "KILLED"}


class Search(NamedTuple):
    """A finished search. parent_run_id: its MLflow run; outcome: its trials."""

    plan: SearchPlan
    place: Tracking
    parent_run_id: str
    outcome: Outcome


def trials_at_once(experiment: Experiment, cpus: float, gpus: float) -> int:
    """How many trials of this size a cluster runs at a time without taking the data tasks' room.

    Each has its workers, a data task and its own driver. Raises cluster.ResourceError, which says what would fit, for a
    trial or a `tuning.concurrent` that can never be placed.
    """
    t = experiment.tuning
    alone = cluster.divide(experiment, cpus - DRIVER_CPUS, gpus)

    def fits(count: int) -> cluster.Share | None:
        try:
            return cluster.divide(experiment, cpus / count - DRIVER_CPUS, gpus // count)
        except cluster.ResourceError:
            return None

    if t.concurrent is not None:
        if fits(t.concurrent) is None:
            most = max(count for count in range(1, t.concurrent) if fits(count) is not None)
            raise cluster.ResourceError(
                f"tuning.concurrent = {t.concurrent} trials of {experiment.resources.workers} workers do not fit into "
                f"{cpus:g} logical CPUs and {gpus:g} GPUs; what fits: tuning.concurrent={most} at most, or a smaller "
                "stream.cpus_per_task (0.5, say)"
            )
        return t.concurrent
    best = 1
    for count in range(2, t.trials + 1):
        share = fits(count)
        if share is None or share.gpu != alone.gpu or share.cpus < 0.9 * alone.cpus:
            break
        best = count
    return best


def search(plan: SearchPlan, console: Console) -> Search:
    """Run the search, or go on with it. Raises ConfigError for what cannot start, KeyboardInterrupt if interrupted."""
    store = open_store(plan.base)
    if not store.subjects("test"):
        raise ConfigError(f"data.store: {store.path} has no subjects in split 'test', which the winner is evaluated on")
    cluster.connect()
    runs = trials_at_once(plan.base, *cluster.available())
    _claim(plan, store.fingerprint())
    uri = tracking.resolve_uri(plan.base.tracking.uri, home())
    place = tracking.prepare(uri, home() / "mlartifacts", plan.base.tracking.experiment)
    parent = _parent_run(plan, place, store.fingerprint())
    initial = _pretrain_once(plan, parent, console)
    environment = {"MRISR_HOME": str(home()), "MLFLOW_TRACKING_URI": uri}
    _run_trials(plan, TrialSetting(plan, runs, parent, initial, environment), console)
    outcome = collect(plan)
    for trial in outcome.trials:
        if trial.mlflow_run_id is not None:
            tracking.finish(uri, trial.mlflow_run_id, _ENDS.get(trial.state, "FINISHED"))
            tracking.RunLogger(uri, trial.mlflow_run_id).tags({"tuning.state": trial.state, "tuning.search": parent})
    if outcome.missing:
        tracking.finish(uri, parent, "KILLED")
        raise KeyboardInterrupt
    return Search(plan, place, parent, outcome)


def _run_trials(plan: SearchPlan, setting: TrialSetting, console: Console) -> None:
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    t = plan.base.tuning
    storage = open_storage(plan)
    study = open_study(plan, storage)
    before = collect(plan, study)
    finished = [trial for trial in before.trials if trial.state != "running"]
    wanted = min(t.trials, plan.grid_size) if t.sampler == "grid" else t.trials
    left = wanted - len(finished)
    console.print(
        f"search {plan.folder.name}: {wanted} trials of at most {plan.trial_steps:,} steps, {setting.runs} at a time, "
        f"sampler {t.sampler}, scheduler {t.scheduler}"
        + (f"; {len(finished)} are done, {len(begun(study)) - len(finished)} go on" if begun(study) else ""),
        markup=False, soft_wrap=True,
    )  # fmt: skip
    if left <= 0:
        return
    histories = {trial.run: trial.results for trial in finished}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, setting=setting), {"CPU": DRIVER_CPUS}),
        tune_config=tune.TuneConfig(
            search_alg=StudySearch(plan, storage, study),
            scheduler=build_scheduler(plan, histories),
            num_samples=left,
            max_concurrent_trials=setting.runs,
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str(plan.folder / "tune"),
            failure_config=tune.FailureConfig(max_failures=0),
            callbacks=[_Progress(plan, len(finished), wanted)],
            verbose=0,
        ),
    )
    tuner.fit()


class _Progress(tune.Callback):
    """A line for every validation and for every trial's end."""

    def __init__(self, plan: SearchPlan, done: int, wanted: int) -> None:
        self.plan, self.done, self.wanted = plan, done, wanted

    def _say(self, text: str) -> None:
        print(text, flush=True)  # Tune pickles its callbacks, which a console would not survive.

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        values = ", ".join(f"{key}={_short(value)}" for key, value in trial.config["values"].items())
        self._say(f"{trial.config['run']} starts: {values}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        figures = ", ".join(f"{metric} {result[metric]:.4f}" for metric in self.plan.base.tuning.metrics)
        self._say(f"{trial.config['run']} step {result['step']:,}/{self.plan.trial_steps:,}: best {figures}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.done += 1
        release_workers((trial.last_result or {}).get(GROUP))
        step = (trial.last_result or {}).get("step", 0)
        how = "finished" if step >= self.plan.trial_steps else f"stopped early at step {step:,}"
        self._say(f"{trial.config['run']} {how}; {self.done} of {self.wanted} trials done")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.done += 1
        release_workers((trial.last_result or {}).get(GROUP))
        self._say(f"{trial.config['run']} failed; {self.done} of {self.wanted} trials done")


def release_workers(group: str | None) -> None:
    """Take back the room of a trial's workers, by the id of their placement group, if they still hold it.

    A trial that Tune stops dies with the controller of its training run. Ray Train has a watcher that gives the room
    back then, but it asks the dashboard who is alive: in a cluster without one the room is lost until the search ends.
    """
    if group is None or placement_group_table().get(group, {}).get("state") in (None, "REMOVED"):
        return
    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"[{', '.join(map(_short, value))}]" if isinstance(value, list | tuple) else str(value)


def _claim(plan: SearchPlan, fingerprint: str) -> None:
    """Write what is searched into the search's folder, or check it against what an earlier start wrote."""
    file = plan.folder / "search.yaml"
    description = plan.base.model_dump(mode="json")
    for key in _MAY_CHANGE:
        description["tuning"].pop(key)
    description.pop("tracking")
    description["space"] = {k: repr(s) for k, s in plan.spaces.items()}
    description["dataset"] = fingerprint
    text = yaml.safe_dump(description, sort_keys=False)
    if file.exists():
        if file.read_text() != text:
            before, now = yaml.safe_load(file.read_text()), yaml.safe_load(text)
            sections = [key for key in now if now[key] != before.get(key)] + [key for key in before if key not in now]
            raise ConfigError(
                f"name = {plan.base.name!r}: {plan.folder} holds a search of other settings (changed: "
                f"{', '.join(sections)}); use the same to go on with it, or another name=... for a new search"
            )
        return
    plan.folder.mkdir(parents=True, exist_ok=True)
    _write(file, text)


def _parent_run(plan: SearchPlan, place: Tracking, fingerprint: str) -> str:
    file: Path = plan.folder / "mlflow_run_id.txt"
    if file.exists():
        tracking.resume_run(place.uri, file.read_text())
        return file.read_text()
    config = plan.base.model_dump(mode="json") | {"space": {k: repr(s) for k, s in plan.spaces.items()}}
    run_id = tracking.start_run(
        place, config, name=plan.folder.name, dataset_fingerprint=fingerprint, tags={"tuning.kind": "search"}
    )
    _write(file, run_id)
    return run_id


def _pretrain_once(plan: SearchPlan, parent: str, console: Console) -> str | None:
    """Run the L1 stage once for all trials; returns the folder with its best weights, or None if it is not shared."""
    t, base = plan.base.tuning, plan.base
    if not t.shared_pretraining:
        return None
    schedule = base.schedule.model_copy(update={"total_steps": base.schedule.pretrain_steps})
    experiment = base.model_copy(
        update={"name": "pretrained", "output": plan.folder, "schedule": schedule, "tuning": Tuning()}
    )
    marker = experiment.run_folder / "done.txt"
    if not marker.exists():
        console.print(f"pretraining once for all trials: {schedule.total_steps:,} L1 steps")
        run = train(Experiment.model_validate(experiment.model_dump()), Host(parent_run_id=parent))
        tracking.finish(run.tracking_uri, run.run_id)
        _write(marker, f"step {run.best_step}: {run.figures}\n")
    return str(experiment.run_folder)


def _write(file: Path, text: str) -> None:
    part = file.with_name(f".{file.name}.part{os.getpid()}")
    part.write_text(text)
    part.replace(file)
