"""The search: it runs as many trials at the same time as fit, stops bad ones early, and resumes after a kill."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ray import tune
from ray.tune.schedulers import TrialScheduler
from rich.console import Console

from mrisr import cluster
from mrisr.config import ConfigError
from mrisr.config.paths import home
from mrisr.data.checks import open_store
from mrisr.data.splits import resolve_splits
from mrisr.files import locked, write_atomic
from mrisr.tracking import runs as tracking
from mrisr.tracking.addresses import check_address
from mrisr.tracking.outbox import LAST_DELIVERY_S, LAST_DELIVERY_WHEN_TERMINATED_S
from mrisr.training.run import Host, ending_in_tracking, tracked_run, train
from mrisr.training.run_folder import RunFolder
from mrisr.tuning.concurrency import trials_at_once
from mrisr.tuning.display import SearchDisplay
from mrisr.tuning.plan import SearchPlan, extremes
from mrisr.tuning.progress import Progress
from mrisr.tuning.resume import begin_or_resume, learn
from mrisr.tuning.scheduler import build_scheduler, judged_results
from mrisr.tuning.searcher import StudySearcher
from mrisr.tuning.shutdown import end_trials, sigterm_interrupts, tune_interruptible
from mrisr.tuning.study import open_storage, open_study
from mrisr.tuning.summary import SearchSummary, summarize
from mrisr.tuning.trial import DRIVER_CPUS, TrialSettings, run_trial, score_settings
from voxelstore import VolumeStore


class Search(NamedTuple):
    """A finished search. uri: of MLflow; parent_run_id: the search's MLflow run; dataset: the store's fingerprint."""

    plan: SearchPlan
    uri: str
    parent_run_id: str
    dataset: str
    summary: SearchSummary


@contextmanager
def search(plan: SearchPlan, console: Console) -> Iterator[Search]:
    """Run or resume the search. The search stays locked for other processes while the block publishes the winner.

    Raises ConfigError for a search that cannot start, KeyboardInterrupt if interrupted, Terminated after SIGTERM.
    """
    store = open_search_store(plan)
    uri = tracking.resolve_uri(plan.base.tracking.uri, home())
    check_address(uri, creates=True)
    if "://" in plan.base.tuning.storage:
        open_storage(plan)  # tried before Ray is started
    cluster.connect()
    concurrent = trials_at_once(plan.base, *cluster.available(), cluster.nodes())
    plan.folder.mkdir(parents=True, exist_ok=True)
    refusal = ConfigError(
        f"name = {plan.base.name!r}: another process is at this search ({plan.folder}); wait for it, or use "
        "another name=..."
    )
    with locked(plan.folder / ".lock", refusal), sigterm_interrupts():
        begin_or_resume(plan, store.fingerprint())
        config = resolve_splits(plan.base, store).model_dump(mode="json")
        config["space"] = {key: repr(space) for key, space in plan.spaces.items()}
        parent = tracked_run(config, store, uri, RunFolder(plan.folder), tags={"tuning.kind": "search"})
        with ending_in_tracking(uri, parent):
            if plan.base.tuning.shared_pretraining:
                _pretrain(plan, Host(parent_run_id=parent, dataset=store.fingerprint()), console)
            environment = {"MRISR_HOME": str(home()), "MLFLOW_TRACKING_URI": uri}
            try:
                _run_trials(TrialSettings(plan, concurrent, parent, store.fingerprint(), environment), console)
            except BaseException:
                end_trials(uri, summarize(plan), parent, LAST_DELIVERY_WHEN_TERMINATED_S)
                raise
            summary = summarize(plan)
            seconds = LAST_DELIVERY_WHEN_TERMINATED_S if summary.missing else LAST_DELIVERY_S
            end_trials(uri, summary, parent, seconds)
            if summary.missing:
                raise KeyboardInterrupt  # Tune returns after Ctrl-C as if it had finished
            yield Search(plan, uri, parent, store.fingerprint(), summary)
        tracking.finish(uri, parent)


def open_search_store(plan: SearchPlan) -> VolumeStore:
    """The store of all trials. Raises ConfigError if it does not fit the whole space, or has no test subjects."""
    store = open_store(plan.base)
    for key, value in extremes(plan):
        if key.startswith(("degradation.", "stream.")):
            try:
                open_store(plan.experiment(plan.searched_at(key, value)))
            except ConfigError as error:
                raise ConfigError(f"search space of {key}: {error}") from None
    if not store.subjects("test"):
        raise ConfigError(
            f"data.store: {store.path} has no subjects in split 'test', which the winner is evaluated on; convert more "
            "volumes, or convert with other --splits"
        )
    return store


def _run_trials(settings: TrialSettings, console: Console) -> None:
    plan = settings.plan
    study = open_study(plan)
    if learnt := learn(plan, settings.dataset, study):
        console.print(f"the sampler knows {learnt} trials of earlier searches")
    earlier = summarize(plan, study)
    done = sum(trial.ended for trial in earlier.trials)
    console.print(
        f"search {plan.folder.name}: {plan.trials} trials of at most {plan.trial_steps:,} steps, {settings.concurrent} "
        f"at a time, sampler {plan.base.tuning.sampler}, scheduler {plan.base.tuning.scheduler}"
        + (f"; {done} are done, {len(earlier.trials) - done} go on" if earlier.trials else ""),
        markup=False, soft_wrap=True,
    )  # fmt: skip
    if not earlier.missing:
        return
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    histories = {trial.run: judged_results(trial.ended, trial.results) for trial in earlier.trials}
    display = SearchDisplay(plan, earlier, console)
    with display.shown():
        _fit(settings, StudySearcher(plan, study), earlier.missing, build_scheduler(plan, histories), display)


def _fit(
    settings: TrialSettings, searcher: StudySearcher, trials: int, scheduler: TrialScheduler, display: SearchDisplay
) -> None:
    plan, progress = settings.plan, Progress(settings.plan, display)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, settings=settings), {"CPU": DRIVER_CPUS}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=trials,
            max_concurrent_trials=settings.concurrent,
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
    except tune.TuneError:
        # Tune passes on only the text of a callback's error.
        if progress.stopped is not None:
            raise progress.stopped from None
        raise


def _pretrain(plan: SearchPlan, host: Host, console: Console) -> None:
    steps, marker = plan.base.schedule.pretrain_steps, plan.pretrained_folder / "done.txt"
    if marker.exists():
        return
    console.print(f"pretraining once for all trials: {steps:,} L1 steps")
    name, output = plan.pretrained_folder.name, plan.pretrained_folder.parent
    changes = {"name": name, "output": output, "schedule.total_steps": steps, "tuning": {}}
    run = train(plan.base.changed(changes | score_settings(plan)), host)
    tracking.finish(run.tracking_uri, run.run_id)
    write_atomic(marker, f"step {run.best.step}: {run.best.figures}\n")
