"""One trial: a training run inside Tune, which reports every validation and resumes after a kill."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from typing import Any, NamedTuple

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from mrisr import cluster
from mrisr.config import Experiment, load_experiment
from mrisr.config.tuning import Tuning
from mrisr.engine.progress import read_progress
from mrisr.metrics import METRICS
from mrisr.training.outcome import OUTSIDE_CAUSES, reason
from mrisr.training.run import Host, train
from mrisr.training.run_folder import RunFolder
from mrisr.training.state import score
from mrisr.tuning.history import TrialHistory
from mrisr.tuning.plan import SearchPlan
from mrisr.tuning.study import RUN

# A trial's driver only waits for its workers. Tune's default of one CPU would leave them too few CPUs.
DRIVER_CPUS = 0.01


class TrialSettings(NamedTuple):
    """dataset: the store's fingerprint; environment: the search's addresses and folders, for other machines."""

    plan: SearchPlan
    concurrent: int
    parent_run_id: str
    dataset: str
    environment: dict[str, str]


def score_settings(plan: SearchPlan) -> dict[str, Any]:
    """Changed settings, so that a run chooses its best weights by the score that the search uses."""
    t = plan.base.tuning
    return {"validation.metric": t.metrics[0], "validation.mean_over": t.protocols}


def with_known_precision(plan: SearchPlan, experiment: Experiment, run: str = "") -> Experiment:
    """Replace training.precision=auto by the choice of the trial `run`, or else of any run of the search.

    Figures of different precisions do not compare, so one search uses one precision. It stays auto until a run has
    begun.
    """
    if experiment.training.precision != "auto":
        return experiment
    runs = [*([plan.trials_folder / run] if run else []), plan.pretrained_folder, *sorted(plan.trials_folder.glob("*"))]
    known = next((known for folder in runs if (known := RunFolder(folder).precision()) is not None), "auto")
    return experiment.changed({"training.precision": known})


def searched_experiment(plan: SearchPlan, values: dict[str, Any]) -> Experiment:
    """The experiment with these values and the search's score, after the shared pretraining if there is one."""
    experiment = plan.experiment(values)
    # The weights before the first step are not the trial's own, so they do not count.
    changes = score_settings(plan) | {"validation.further_protocols": (), "validation.start_counts": False}
    if plan.base.tuning.shared_pretraining:
        changes |= {
            "generator.init_from": str(plan.pretrained_folder),
            "schedule.pretrain_steps": 0,
            "schedule.total_steps": experiment.schedule.total_steps - experiment.schedule.pretrain_steps,
        }
    return experiment.changed(changes | {"tuning": {}})


def trial_experiment(plan: SearchPlan, run: str, values: dict[str, Any]) -> Experiment:
    """The experiment of a trial, in its own folder and with a checkpoint at every validation."""
    experiment, settings = searched_experiment(plan, values), RunFolder(plan.trials_folder / run).settings
    if settings.exists() and experiment.training.precision == "auto":
        # The same text as at its start: without a checkpoint, another text would restart the run.
        experiment = experiment.changed({"training.precision": load_experiment(settings).training.precision})
    else:
        experiment = with_known_precision(plan, experiment)
    return experiment.changed({
        "name": run,
        "output": plan.trials_folder,
        "training.checkpoint_every": experiment.validation.every,
        "training.keep_checkpoints": 2,  # the newest may hold a validation that Tune has not heard of
        "training.max_failures": plan.base.tuning.max_failures,
    })  # fmt: skip


class ReportToTune(TuneReportCallback):
    """Adds every validation to the trial's history, and reports the best figures so far to Tune."""

    def __init__(self, experiment: Experiment, tuning: Tuning) -> None:
        super().__init__()
        self.folder, self.main_protocol = experiment.run_folder, experiment.validation.protocol
        self.metrics, self.protocols = tuning.metrics, tuning.protocols

    def scores(self, validation: dict[str, Any]) -> dict[str, float]:
        return {metric: score(validation, metric, self.main_protocol, self.protocols) for metric in METRICS}

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        reported = metrics[0]
        if reported.get("validated") != reported["step"]:
            return
        history = TrialHistory(self.folder)
        if history.add(int(reported["step"]), self.scores(reported)):
            super().after_report(run_context, [history.results(self.metrics)[-1]], checkpoint)


def run_trial(config: dict[str, Any], settings: TrialSettings) -> None:
    """Start or resume one trial inside Tune.

    An error fails this trial only, and its history records the reason. If the cause is the disk, MLflow or the store,
    the history records an interruption instead, and the search stops (see Progress).
    """
    os.environ.update(settings.environment)
    cluster.quiet()
    tuning = settings.plan.base.tuning
    experiment = trial_experiment(settings.plan, config[RUN], config["values"])
    history, report = TrialHistory(experiment.run_folder), ReportToTune(experiment, tuning)
    for folder in RunFolder.of(experiment).checkpoints():
        # A killed run may have saved a checkpoint whose validation was not reported.
        latest = read_progress(folder)["latest"]
        if "validated" in latest:
            history.add(int(latest["validated"]), report.scores(latest))
    for result in history.results(tuning.metrics):
        tune.report(result)
    if history.step >= experiment.schedule.total_steps:
        return
    try:
        history.resume()
        host = Host(settings.concurrent, DRIVER_CPUS, (report,), settings.parent_run_id, settings.dataset)
        train(experiment, host._replace(displays=True))
    except Exception as error:
        if not _is_stopped():
            with suppress(OSError):  # a full disk may refuse the note too; the trial's own error matters more
                (history.interrupt if isinstance(error, OUTSIDE_CAUSES) else history.fail)(reason(error))
        raise


def _is_stopped() -> bool:
    """Whether Tune has stopped this trial. Its process is ending, so errors in its thread are not failures."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Tune warns that there is no session, which is what is asked here
        return tune.get_context().get_trial_name() is None
