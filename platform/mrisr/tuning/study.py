"""The Optuna study of a search: the one record of what was tried, which a killed search goes on from."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search.optuna import OptunaSearch

from mrisr.config import ConfigError
from mrisr.tracking.redaction import mask_secrets
from mrisr.tuning.grid import DistinctGrid
from mrisr.tuning.plan import SearchPlan
from mrisr.tuning.record import Record

if TYPE_CHECKING:
    from mrisr.config.tuning import Tuning

# User attributes: a trial's run; the search's folder; of a trial of another search, where it comes from.
RUN, FOLDER, LEARNT = "run", "folder", "learnt_from"
MODES = {"psnr": "max", "ssim": "max", "nrmse": "min"}


def open_storage(plan: SearchPlan) -> BaseStorage:
    """The storage of the search's study."""
    return storage_in(plan.folder, plan.base.tuning.storage)


def storage_in(folder: Path, where: str) -> BaseStorage:
    """study.db (where = sqlite) or study.journal (journal) in a search's folder, or the database of that address."""
    if where == "journal":
        return JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    return RDBStorage(f"sqlite:///{folder / 'study.db'}" if where == "sqlite" else where)


def build_sampler(plan: SearchPlan, trials_before: int) -> optuna.samplers.BaseSampler:
    """The sampler of `tuning.sampler`. trials_before: of an earlier start, so that draws are not repeated."""
    t, seed = plan.base.tuning, (plan.base.seed * 100_003 + trials_before) % 2**32  # numpy's limit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match t.sampler:
            case "grid":
                return DistinctGrid(list(plan.grid()), plan.base.seed, LEARNT)
            case "random":
                return optuna.samplers.RandomSampler(seed=seed)
            case "cmaes":
                # Of the trials that ASHA stops it would otherwise learn nothing, and those are most of them.
                return optuna.samplers.CmaEsSampler(
                    seed=seed, n_startup_trials=t.startup_trials, consider_pruned_trials=True,
                    warn_independent_sampling=False,
                )  # fmt: skip
            case _:
                together = t.sampler == "multivariate"
                # group: conditional spaces are modelled together where they exist, instead of falling back to random.
                return optuna.samplers.TPESampler(
                    seed=seed, n_startup_trials=t.startup_trials, multivariate=together, group=together
                )


def open_study(plan: SearchPlan, storage: BaseStorage) -> optuna.Study:
    """The search's study; a new one starts with the known-good points in its queue."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    t = plan.base.tuning
    directions = ["maximize" if MODES[metric] == "max" else "minimize" for metric in t.metrics]
    study = optuna.create_study(
        storage=storage, study_name=plan.folder.name, directions=directions, load_if_exists=True
    )  # fmt: skip
    if "://" in t.storage:
        _refuse_of_another_folder(plan, study)
        study.set_user_attr(FOLDER, str(plan.folder))
    name_metrics(study, t.metrics)
    if t.sampler != "grid":
        for point in plan.points:
            study.enqueue_trial(point, skip_if_exists=True)
    return study


def stored_study(plan: SearchPlan) -> optuna.Study | None:
    """The study as an earlier start has left it, whatever its settings were."""
    storage = open_storage(plan)
    if plan.folder.name not in optuna.get_all_study_names(storage):
        return None
    study = optuna.load_study(study_name=plan.folder.name, storage=storage)
    _refuse_of_another_folder(plan, study)
    return study


def _refuse_of_another_folder(plan: SearchPlan, study: optuna.Study) -> None:
    """A database may serve many searches; the trials of this one lie in this folder."""
    folder = study.user_attrs.get(FOLDER)
    if folder not in (None, str(plan.folder)):
        raise ConfigError(
            f"tuning.storage = {mask_secrets(plan.base.tuning.storage)!r}: its study {plan.folder.name!r} belongs to "
            f"the search in {folder}; use another name=..."
        )


def name_metrics(study: optuna.Study, metrics: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(metrics))


def begun(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were started, finished or not, in order."""
    return [t for t in study.get_trials(deepcopy=False) if t.state is not TrialState.WAITING and RUN in t.user_attrs]


class StudySearch(OptunaSearch):
    """OptunaSearch whose truth is the stored study, so that a search goes on after its driver was killed.

    Trials that the study has as running are handed out first, with the parameters that they have; their run's folder,
    named after the trial's number, makes them resume. Figures are stored under the training step instead of a count
    that starts anew, and a trial that was stopped early is stored as pruned, which is what TPE expects of one.
    """

    def __init__(self, plan: SearchPlan, storage: BaseStorage, study: optuna.Study) -> None:
        t: Tuning = plan.base.tuning
        modes = [MODES[metric] for metric in t.metrics]
        before = begun(study)
        super().__init__(
            space=_DefineByRun(plan),
            metric=list(t.metrics) if len(t.metrics) > 1 else t.metrics[0],
            mode=modes if len(modes) > 1 else modes[0],
            sampler=build_sampler(plan, len(before)),
            study_name=study.study_name,
            storage=storage,
        )
        self._metrics, self._total, self._folder = t.metrics, plan.trial_steps, plan.folder
        # Also one that was killed while it was drawn: the rest of it is drawn now, from its place in the queue.
        self._unfinished = [t.number for t in study.get_trials(deepcopy=False) if t.state is TrialState.RUNNING]

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: what Tune keeps of a searcher in its folder is not gone on from, and would hold the password of
        `tuning.storage`."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing, for the same reason."""

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if trial_id not in self._ot_trials and self._unfinished:
            number = self._unfinished.pop(0)
            frozen = self._ot_study.get_trials(deepcopy=False)[number]
            self._ot_trials[trial_id] = optuna.Trial(self._ot_study, frozen._trial_id)
        config: dict[str, Any] = super().suggest(trial_id)
        self._ot_trials[trial_id].set_user_attr(RUN, config[RUN])
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        trial, step = self._ot_trials[trial_id], result["step"]
        if (
            len(self._metrics) == 1
            and step not in self._ot_study.get_trials(deepcopy=False)[trial.number].intermediate_values
        ):
            trial.report(result[self._metrics[0]], step)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._ot_trials[trial_id]
        values = None if error or not result else [result.get(metric) for metric in self._metrics]
        run = self._ot_study.get_trials(deepcopy=False)[trial.number].user_attrs[RUN]
        if error and Record(self._folder / "trials" / run).interruption is not None:
            pass  # It stays as running, which the next start of the search goes on with.
        elif values is None or None in values:
            self._ot_study.tell(trial, state=TrialState.FAIL)
        elif result is not None and result["step"] < self._total and len(self._metrics) == 1:
            # Tune tells a searcher every result but the one that stops a trial; a pruned trial without a figure
            # counts as the worst there is, and all that are stopped at the first rung would count alike.
            self.on_trial_result(trial_id, result)
            self._ot_study.tell(trial, state=TrialState.PRUNED)
        else:
            self._ot_study.tell(trial, values)
        self._completed_trials.add(trial_id)


class _DefineByRun:
    """The plan's space as the function that OptunaSearch calls with a trial; returns what the trial's run is told."""

    def __init__(self, plan: SearchPlan) -> None:
        self.plan = plan

    def __call__(self, trial: Any) -> dict[str, Any]:
        values = self.plan.draw(trial)
        return {RUN: f"trial-{trial.number:04d}", "values": values}
