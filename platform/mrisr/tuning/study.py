"""The Optuna study of a search: the one record of what was tried, which a killed search goes on from."""

from __future__ import annotations

import warnings
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from mrisr.config import ConfigError
from mrisr.metrics import METRICS
from mrisr.tracking.redaction import mask_secrets
from mrisr.tuning.grid import DistinctGrid
from mrisr.tuning.plan import SearchPlan

# User attributes: a trial's run; the search's folder; of a trial of another search, where it comes from.
RUN, FOLDER, LEARNT = "run", "folder", "learnt_from"


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
    study = optuna.create_study(
        storage=storage, study_name=plan.folder.name, directions=directions(t.metrics), load_if_exists=True
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


def directions(metrics: tuple[str, ...]) -> list[str]:
    return ["maximize" if METRICS[metric].higher_is_better else "minimize" for metric in metrics]


def name_metrics(study: optuna.Study, metrics: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(metrics))


def begun(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were started, finished or not, in order."""
    return [t for t in study.get_trials(deepcopy=False) if t.state is not TrialState.WAITING and RUN in t.user_attrs]


def running_trial(study: optuna.Study, storage: BaseStorage, number: int) -> optuna.Trial:
    """The trial that an earlier process was at when it ended: its parameters stay, and those it lacks can be drawn."""
    study_id = storage.get_study_id_from_name(study.study_name)
    return optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, number))
