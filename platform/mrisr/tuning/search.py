"""The search: as many nested runs at a time as fit, stopped early where they are bad, gone on with after a kill."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import optuna
import yaml
from filelock import FileLock, Timeout
from ray import tune
from rich.console import Console

from mrisr import cluster
from mrisr.config import ConfigError
from mrisr.config.paths import home
from mrisr.config.spaces import flat
from mrisr.data.checks import open_store
from mrisr.data.splits import settle_splits
from mrisr.files import write_atomic
from mrisr.tracking import runs as tracking
from mrisr.tracking.runs import Tracking
from mrisr.training.run import Host, train
from mrisr.training.run_folder import RunFolder
from mrisr.training.worker import LAST_DELIVERY_S, LAST_DELIVERY_WHEN_TERMINATED_S
from mrisr.tuning.concurrency import trials_at_once
from mrisr.tuning.earlier import DESCRIPTION, description, learn
from mrisr.tuning.ending import end_trials, ending_in_tracking, sigterm_interrupts, tune_interruptible
from mrisr.tuning.outcome import Outcome, collect, wanted_trials
from mrisr.tuning.plan import SearchPlan, extremes
from mrisr.tuning.progress import Progress
from mrisr.tuning.scheduler import build_scheduler, judged
from mrisr.tuning.searcher import StudySearcher
from mrisr.tuning.study import begun, open_storage, open_study, stored_study
from mrisr.tuning.trial import DRIVER_CPUS, PRETRAINED, TrialSetting, run_trial, trials_folder, yardstick
from voxelstore import VolumeStore

# Of a key that one side lacks, which is not the same as a key that is null.
_ABSENT = "(absent)"


class Search(NamedTuple):
    """A finished search. parent_run_id: its MLflow run; outcome: its trials."""

    plan: SearchPlan
    place: Tracking
    parent_run_id: str
    outcome: Outcome


@contextmanager
def search(plan: SearchPlan, console: Console) -> Iterator[Search]:
    """Run the search, or go on with it; the block publishes what it has found, and nobody else is at it until then.

    Raises ConfigError for what cannot start, KeyboardInterrupt if interrupted, Terminated after SIGTERM.
    """
    store = store_of(plan)
    cluster.connect()
    runs = trials_at_once(plan.base, *cluster.available(), cluster.nodes())
    with _alone(plan), sigterm_interrupts():
        claim(plan, store.fingerprint())
        uri = tracking.resolve_uri(plan.base.tracking.uri, home())
        place = tracking.prepare(uri, home() / "mlartifacts", plan.base.tracking.experiment)
        parent = _parent_run(plan, place, store)
        with ending_in_tracking(uri, parent):
            initial = _pretrain_once(plan, parent, console)
            environment = {"MRISR_HOME": str(home()), "MLFLOW_TRACKING_URI": uri}
            setting = TrialSetting(plan, runs, parent, initial, environment)
            try:
                _run_trials(plan, setting, store.fingerprint(), console)
            except BaseException:
                end_trials(uri, collect(plan), parent, LAST_DELIVERY_WHEN_TERMINATED_S)
                raise
            outcome = collect(plan)
            seconds = LAST_DELIVERY_WHEN_TERMINATED_S if outcome.missing else LAST_DELIVERY_S
            end_trials(uri, outcome, parent, seconds)
            if outcome.missing:
                raise KeyboardInterrupt
            yield Search(plan, place, parent, outcome)
        tracking.finish(uri, parent)


@contextmanager
def _alone(plan: SearchPlan) -> Iterator[None]:
    """One process at a time: two that go on with a search would both run its unfinished trials."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(plan.folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"name = {plan.base.name!r}: another process is at this search ({plan.folder}); wait for it, or use "
            "another name=..."
        ) from None
    try:
        yield
    finally:
        lock.release()


def store_of(plan: SearchPlan) -> VolumeStore:
    """The store that all trials share. Raises ConfigError if it lacks a split that the search needs."""
    store = open_store(plan.base)
    for key, value in extremes(plan):
        if key.startswith(("degradation.", "stream.")):
            try:
                open_store(plan.experiment({key: value}))
            except ConfigError as error:
                raise ConfigError(f"search space of {key}: {error}") from None
    if not store.subjects("test"):
        raise ConfigError(
            f"data.store: {store.path} has no subjects in split 'test', which the winner is evaluated on; convert more "
            "volumes, or convert with other --splits"
        )
    return store


def _run_trials(plan: SearchPlan, setting: TrialSetting, fingerprint: str, console: Console) -> None:
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    t = plan.base.tuning
    storage = open_storage(plan)
    study = open_study(plan, storage)
    if learnt := learn(plan, fingerprint, study):
        console.print(f"the sampler knows {learnt} trials of earlier searches")
    before = collect(plan, study)
    finished = [trial for trial in before.trials if trial.state != "running"]
    wanted = wanted_trials(plan)
    left = wanted - len(finished)
    console.print(
        f"search {plan.folder.name}: {wanted} trials of at most {plan.trial_steps:,} steps, {setting.runs} at a time, "
        f"sampler {t.sampler}, scheduler {t.scheduler}"
        + (f"; {len(finished)} are done, {len(begun(study)) - len(finished)} go on" if begun(study) else ""),
        markup=False, soft_wrap=True,
    )  # fmt: skip
    if left <= 0:
        return
    histories = {trial.run: judged(trial.state != "running", trial.results) for trial in before.trials}
    progress = Progress(plan, len(finished), wanted)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, setting=setting), {"CPU": DRIVER_CPUS}),
        tune_config=tune.TuneConfig(
            search_alg=StudySearcher(plan, storage, study),
            scheduler=build_scheduler(plan, histories),
            num_samples=left,
            max_concurrent_trials=setting.runs,
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str(plan.folder / "tune"),
            failure_config=tune.FailureConfig(max_failures=0),
            callbacks=[progress],
            verbose=0,
        ),
    )
    try:
        with tune_interruptible():
            tuner.fit()
    except tune.TuneError as error:
        # Tune hands on the text of what a callback raises.
        if progress.stopped is not None:
            raise progress.stopped from None
        raise error


def claim(plan: SearchPlan, fingerprint: str) -> None:
    """Write what is searched into the search's folder, or check it against what an earlier start wrote.

    Raises ConfigError for the folder of another search that has trained something.
    """
    file = plan.folder / DESCRIPTION
    text = yaml.safe_dump(description(plan, fingerprint), sort_keys=False)
    if file.exists():
        same = file.read_text() == text
        if not _began(plan):
            _forget(plan)
        elif same:
            return
        else:
            before, now = yaml.safe_load(file.read_text()), yaml.safe_load(text)
            was, is_now = flat(before), flat(now)
            changed = [key for key in {**was, **is_now} if was.get(key, _ABSENT) != is_now.get(key, _ABSENT)]
            lines = [f"  {key}: was {was.get(key, _ABSENT)!r}, now {is_now.get(key, _ABSENT)!r}" for key in changed]
            if list(before["space"]) != list(now["space"]):
                lines.append("  the order of the searched keys, in which values are drawn")
            if not lines:
                return  # written by a version that orders or folds its text differently
            raise ConfigError(
                f"name = {plan.base.name!r}: {plan.folder} holds a search of other settings; changed:\n"
                + "\n".join(lines)
                + "\nUse the same to go on with it, or another name=... for a new search"
            )
    write_atomic(file, text)


def _began(plan: SearchPlan) -> bool:
    """Whether an earlier start of a search of this name came to train anything; its folders may have been deleted."""
    if any(folder.exists() for folder in (trials_folder(plan), plan.folder / PRETRAINED)):
        return True
    study = stored_study(plan)
    return study is not None and bool(begun(study))


def _forget(plan: SearchPlan) -> None:
    """A start that failed before its first step, by a wrong address, say, has no claim to the name: its study, which
    may have known points of other spaces in its queue, goes, and its MLflow run stays as it ended."""
    if stored_study(plan) is not None:
        optuna.delete_study(study_name=plan.folder.name, storage=open_storage(plan))
    RunFolder(plan.folder).mlflow_run.unlink(missing_ok=True)


def _parent_run(plan: SearchPlan, place: Tracking, store: VolumeStore) -> str:
    file: Path = RunFolder(plan.folder).mlflow_run
    if file.exists():
        run_id = file.read_text()
        tracking.resume_if_reachable(place.uri, run_id, file)
        return run_id
    space = {key: repr(space) for key, space in plan.spaces.items()}
    config = settle_splits(plan.base, store).model_dump(mode="json") | {"space": space}
    run_id = tracking.start_run(
        place, config, name=plan.folder.name, dataset_fingerprint=store.fingerprint(), tags={"tuning.kind": "search"}
    )
    write_atomic(file, run_id)
    return run_id


def _pretrain_once(plan: SearchPlan, parent: str, console: Console) -> str | None:
    """Run the L1 stage once for all trials; returns the folder with its best weights, or None if it is not shared."""
    t, base = plan.base.tuning, plan.base
    if not t.shared_pretraining:
        return None
    steps = base.schedule.pretrain_steps
    experiment = base.changed({
        "name": PRETRAINED, "output": plan.folder, "schedule.total_steps": steps, "tuning": {}, **yardstick(plan),
    })  # fmt: skip
    marker = experiment.run_folder / "done.txt"
    if not marker.exists():
        console.print(f"pretraining once for all trials: {steps:,} L1 steps")
        run = train(experiment, Host(parent_run_id=parent))
        tracking.finish(run.tracking_uri, run.run_id)
        write_atomic(marker, f"step {run.best_step}: {run.figures}\n")
    return str(experiment.run_folder)
