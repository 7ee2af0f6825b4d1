"""The Optuna study of a search and its storage: the record of its trials, from which a killed search resumes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from mrisr.config import ConfigError
from mrisr.metrics import METRICS
from mrisr.tracking.addresses import CHECK_S, missing_driver
from mrisr.tracking.availability import first_line, within
from mrisr.tracking.redaction import mask_secrets, remember
from mrisr.tuning.grid import DistinctGrid
from mrisr.tuning.plan import SearchPlan

# User attributes: a trial's run, a study's search folder, a learnt trial's source.
RUN, FOLDER, LEARNT = "run", "folder", "learnt_from"


def open_storage(plan: SearchPlan) -> BaseStorage:
    return storage_in(plan.folder, plan.base.tuning.storage)


def storage_in(folder: Path, where: str) -> BaseStorage:
    """study.db (sqlite) or study.journal (journal) in a search's folder, or a database at the address `where`.

    Raises ConfigError for a database that cannot be used, after at most CHECK_S seconds.
    """
    if where == "journal":
        return JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    if where == "sqlite":
        return RDBStorage(f"sqlite:///{folder / 'study.db'}")
    remember(where)
    opened: list[BaseStorage] = []
    try:
        within(CHECK_S, lambda: opened.append(RDBStorage(where)))
    except Exception as error:  # Optuna, SQLAlchemy and a driver each raise their own
        cause: BaseException = error
        while (within_it := cause.__cause__ or cause.__context__) is not None:
            cause = within_it
        if isinstance(cause, ImportError):
            why = missing_driver(cause)
        else:
            why = f"cannot be used ({first_line(cause)}); start the database, correct the address, or use sqlite"
        raise ConfigError(f"tuning.storage = {mask_secrets(where)!r}: {why}") from None
    return opened[0]


def build_sampler(plan: SearchPlan, trials_before: int) -> optuna.samplers.BaseSampler:
    """The sampler of `tuning.sampler`. trials_before: trials of earlier starts, whose draws are not repeated."""
    t, seed = plan.base.tuning, (plan.base.seed * 100_003 + trials_before) % 2**32  # numpy's limit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match t.sampler:
            case "grid":
                return DistinctGrid(list(plan.grid()), plan.base.seed, LEARNT)
            case "random":
                return optuna.samplers.RandomSampler(seed=seed)
            case "cmaes":
                # By default it ignores trials that ASHA stops, which are most trials.
                return optuna.samplers.CmaEsSampler(
                    seed=seed, n_startup_trials=t.startup_trials, consider_pruned_trials=True,
                    warn_independent_sampling=False,
                )  # fmt: skip
            case _:
                multivariate = t.sampler == "multivariate"
                # group: without it, keys with conditions would be drawn at random.
                return optuna.samplers.TPESampler(
                    seed=seed, n_startup_trials=t.startup_trials, multivariate=multivariate, group=multivariate
                )


def create_study(metrics: tuple[str, ...], **options: Any) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = ["maximize" if METRICS[metric].higher_is_better else "minimize" for metric in metrics]
    study = optuna.create_study(directions=directions, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(metrics))
    return study


def open_study(plan: SearchPlan) -> optuna.Study:
    """The search's study. A new one has the known-good points in its queue. Raises ConfigError like `stored_study`."""
    t, storage = plan.base.tuning, open_storage(plan)
    stored_study(plan, storage)
    study = create_study(t.metrics, storage=storage, study_name=plan.folder.name, load_if_exists=True)
    if "://" in t.storage:
        study.set_user_attr(FOLDER, str(plan.folder))
    if t.sampler != "grid":
        for point in plan.points:
            study.enqueue_trial(point, skip_if_exists=True)
    return study


def stored_study(plan: SearchPlan, storage: BaseStorage) -> optuna.Study | None:
    """The study of an earlier start, whatever its settings, or None.

    Raises ConfigError if a study of this name in a shared database belongs to a search in another folder.
    """
    if plan.folder.name not in optuna.get_all_study_names(storage):
        return None
    study = optuna.load_study(study_name=plan.folder.name, storage=storage)
    folder = study.user_attrs.get(FOLDER)
    # If the recorded folder is gone and this folder holds a search, the search was moved.
    moved = folder is not None and not Path(folder).exists() and any(plan.folder.glob("*.yaml"))
    if folder not in (None, str(plan.folder)) and not moved:
        raise ConfigError(
            f"tuning.storage = {mask_secrets(plan.base.tuning.storage)!r}: its study {plan.folder.name!r} belongs to "
            f"the search in {folder}; use another name=..."
        )
    return study


def started_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that this search has started, finished or not, in order. Learnt trials are excluded."""
    return [t for t in study.get_trials(deepcopy=False) if t.state is not TrialState.WAITING and RUN in t.user_attrs]


def running_trial(study: optuna.Study, storage: BaseStorage, number: int) -> optuna.Trial:
    """A trial that was running when an earlier process ended. Missing parameters can be drawn."""
    study_id = storage.get_study_id_from_name(study.study_name)
    return optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, number))
