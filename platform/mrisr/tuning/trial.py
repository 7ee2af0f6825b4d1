"""One trial: a nested training run that tells Tune about every validation, and resumes where a killed one stopped."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from mrisr import cluster
from mrisr.config import Experiment, load_experiment
from mrisr.engine.checkpoint import read_progress
from mrisr.metrics import METRICS
from mrisr.training.best import score
from mrisr.training.outcome import SURROUNDINGS, TrainingStopped
from mrisr.training.run import Host, train
from mrisr.training.run_folder import RunFolder
from mrisr.tuning.groups import GroupRecord
from mrisr.tuning.plan import SearchPlan
from mrisr.tuning.record import Record
from mrisr.tuning.study import RUN

# A trial's driver only waits for its workers; Tune's default of one CPU would take the room of what it waits for.
DRIVER_CPUS = 0.01
# The run of `tuning.shared_pretraining`, beside the folder of the trials.
PRETRAINED = "pretrained"


class TrialSetting(NamedTuple):
    """What all trials of a search share.

    runs: trials at a time; initial: folder of the shared pretraining; environment: the driver's, where it says where
    things live, since a trial may run on a machine that would answer differently.
    """

    plan: SearchPlan
    runs: int
    parent_run_id: str
    initial: str | None
    environment: dict[str, str] = {}  # noqa: RUF012


def trials_folder(plan: SearchPlan) -> Path:
    return plan.folder / "trials"


def yardstick(plan: SearchPlan) -> dict[str, Any]:
    """Changes that make the best weights of a run those that the search scores highest."""
    t = plan.base.tuning
    return {"validation.metric": t.metrics[0], "validation.mean_over": t.protocols}


def in_begun_precision(plan: SearchPlan, experiment: Experiment, run: str = "") -> Experiment:
    """The experiment, with training.precision=auto as what it became in the trial `run`, or else in the search; auto if
    nothing has begun. Figures of two precisions would not be one search's, on whatever machine it goes on."""
    if experiment.training.precision != "auto":
        return experiment
    trials = trials_folder(plan)
    folders = [*([trials / run] if run else []), plan.folder / PRETRAINED, *sorted(trials.glob("*"))]
    known = next((known for folder in folders if (known := RunFolder(folder).precision()) is not None), "auto")
    return experiment.changed({"training.precision": known})


def configured(setting: TrialSetting, values: dict[str, Any]) -> Experiment:
    """The experiment that a trial of these values trains: the base's, from the shared weights where there are any.

    Weights before the first step are nobody's score, so they are never its best either.
    """
    plan = setting.plan
    experiment = plan.experiment(values)
    changes = yardstick(plan) | {
        "validation.further_protocols": (), "validation.start_counts": False, "tuning": {},
    }  # fmt: skip
    if setting.initial is not None:
        changes |= {
            "generator.init_from": setting.initial,
            "schedule.pretrain_steps": 0,
            "schedule.total_steps": experiment.schedule.total_steps - experiment.schedule.pretrain_steps,
        }
    return experiment.changed(changes)


def trial_experiment(setting: TrialSetting, run: str, values: dict[str, Any]) -> Experiment:
    """The experiment of a trial: as configured, with a checkpoint at every validation, in a folder of its own."""
    experiment, output = configured(setting, values), trials_folder(setting.plan)
    begun = RunFolder(output / run).settings
    if begun.exists() and experiment.training.precision == "auto":
        # It goes on as it was written down: another text would be another run until there is a checkpoint.
        experiment = experiment.changed({"training.precision": load_experiment(begun).training.precision})
    else:
        experiment = in_begun_precision(setting.plan, experiment)
    return experiment.changed({
        "name": run,
        "output": output,
        "training.checkpoint_every": experiment.validation.every,
        "training.keep_checkpoints": 1,
        "training.max_failures": setting.plan.base.tuning.max_failures,
    })  # fmt: skip


class ReportToTune(TuneReportCallback):
    """Keeps every validation in the run's record, and passes the best figures up to it on to Tune."""

    def __init__(self, folder: Path, metrics: tuple[str, ...], main: str, protocols: tuple[str, ...]) -> None:
        super().__init__()
        self.folder, self.metrics, self.main, self.protocols = folder, metrics, main, protocols

    def figures(self, validation: dict[str, Any]) -> dict[str, float]:
        """Every score that a search may have, of a validation's figures."""
        return {metric: score(validation, metric, self.main, self.protocols) for metric in METRICS}

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        reported = metrics[0]
        if reported.get("validated") != reported["step"]:
            return
        record = Record(self.folder)
        if record.add(int(reported["step"]), self.figures(reported)):
            told = record.results(self.metrics)[-1]
            super().after_report(run_context, [told], checkpoint)


def run_trial(config: dict[str, Any], setting: TrialSetting) -> None:
    """Run, or go on with, one trial inside Tune. An error fails this trial alone; its reason is kept in the record.

    Unless the disk, MLflow or the store stops it: then the record says so, and the search stops (see Progress).
    """
    os.environ.update(setting.environment)
    cluster.quiet()
    t = setting.plan.base.tuning
    experiment = trial_experiment(setting, config[RUN], config["values"])
    record = Record(experiment.run_folder)
    report = ReportToTune(experiment.run_folder, t.metrics, experiment.validation.protocol, t.protocols)
    for folder in RunFolder.of(experiment).checkpoints():
        # A killed run may have written checkpoints whose validations nobody heard of.
        latest = read_progress(folder)["latest"]
        if "validated" in latest:
            record.add(int(latest["validated"]), report.figures(latest))
    for told in record.results(t.metrics):
        tune.report(told)
    if record.step >= experiment.schedule.total_steps:
        return
    try:
        record.interrupt(None)
        callbacks = (report, GroupRecord(experiment.run_folder))
        train(experiment, Host(setting.runs, DRIVER_CPUS, callbacks, setting.parent_run_id))
    except Exception as error:
        if not _stopped():
            with suppress(OSError):  # a full disk takes no note either; what the trial met is the error to tell
                (record.interrupt if isinstance(error, SURROUNDINGS) else record.fail)(_reason(error))
        raise


def _stopped() -> bool:
    """Whether Tune has stopped this trial: what its thread meets then is the end of its own process, no failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no session any more, which is the question
        return tune.get_context().get_trial_name() is None


def _reason(error: BaseException) -> str:
    """In one line: what a worker raised, rather than how Ray wrapped it."""
    if isinstance(error, TrainingStopped):
        return str(error)
    failures = getattr(error, "worker_failures", None)
    lines = str(next(iter(failures.values())) if failures else error).strip().splitlines() or [""]
    if not failures:
        return f"{type(error).__name__}: {lines[-1]}"[:400]
    # A traceback ends with `package.module.Class: message`.
    name, colon, message = lines[-1].partition(": ")
    return f"{name.rsplit('.', 1)[-1]}{colon}{message}"[:400]
