"""Earlier searches: whether this start resumes one, and what a new search learns from others."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from mrisr.config import ConfigError, Experiment
from mrisr.config.paths import after_move
from mrisr.config.spaces import flat
from mrisr.files import write_atomic
from mrisr.tracking.redaction import MASK, mask_secrets
from mrisr.training.run_folder import RunFolder
from mrisr.tuning.plan import SearchPlan
from mrisr.tuning.study import LEARNT, open_storage, started_trials, storage_in, stored_study

DESCRIPTION = "search.yaml"
# Keys that may differ when a search is resumed: they do not change what is compared.
_MAY_CHANGE = ("trials", "concurrent", "winner", "max_failures")
_SECTIONS_THAT_MAY_CHANGE = ("tracking", "resources")
# Marks a missing key; None is a value.
_ABSENT = "(absent)"


def description(plan: SearchPlan, fingerprint: str) -> dict[str, Any]:
    """The experiment, its space and the store's fingerprint, with masked credentials: they are written to a file."""
    found = plan.base.model_dump(mode="json")
    for key in _MAY_CHANGE:
        found["tuning"].pop(key)
    for section in _SECTIONS_THAT_MAY_CHANGE:
        found.pop(section)
    found["space"] = {key: repr(space) for key, space in plan.spaces.items()}
    found["dataset"] = fingerprint
    return dict(mask_secrets(found))


def begin_or_resume(plan: SearchPlan, fingerprint: str) -> None:
    """Write the search's description into its folder, or compare it with that of an earlier start.

    If the earlier start trained nothing, it is deleted. Raises ConfigError if it trained with other settings.
    """
    file = plan.folder / DESCRIPTION
    text = yaml.safe_dump(description(plan, fingerprint), sort_keys=False)
    if file.exists() and not _has_trained(plan):
        _forget(plan)
    elif file.exists():
        # Masked again: older versions masked less.
        before, now = (mask_secrets(yaml.safe_load(one)) for one in (file.read_text(), text))
        if lines := _differences(before, now, plan.folder):
            raise ConfigError(
                f"name = {plan.base.name!r}: {plan.folder} holds a search of other settings; changed:\n"
                + "\n".join(lines)
                + "\nUse the same to go on with it, or another name=... for a new search"
            )
        return
    write_atomic(file, text)


def _differences(before: dict[str, Any], now: dict[str, Any], folder: Path) -> list[str]:
    changes = _changes(before, now, partial(after_move, was=before["output"], now=folder.parent))
    lines = [f"  {key}: was {was!r}, now {is_now!r}" for key, was, is_now in changes]
    if list(before["space"]) != list(now["space"]):
        lines.append("  the order of the searched keys, in which values are drawn")
    return lines


def _changes(
    before: dict[str, Any], now: dict[str, Any], moved: Callable[[Any], Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Each key whose values differ, with both values. A key that an older mrisr did not have gets its default.

    moved: converts an earlier path after the search's folder was moved.
    """
    defaults = flat(Experiment().model_dump(mode="json"))
    left, right = flat(before), flat(now)
    for key in {**left, **right}:
        was, is_now = left.get(key, defaults.get(key, _ABSENT)), right.get(key, _ABSENT)
        if is_now not in (was, moved(was)):
            yield key, was, is_now


def _has_trained(plan: SearchPlan) -> bool:
    """Whether an earlier start trained anything. The study knows this even if the folders were deleted."""
    if plan.trials_folder.exists() or plan.pretrained_folder.exists():
        return True
    study = stored_study(plan, open_storage(plan))
    return study is not None and bool(started_trials(study))


def _forget(plan: SearchPlan) -> None:
    """Delete the study, since its queue may hold points of another space. Keep the MLflow run with its final status."""
    storage = open_storage(plan)
    if stored_study(plan, storage) is not None:
        optuna.delete_study(study_name=plan.folder.name, storage=storage)
    RunFolder(plan.folder).mlflow_run.unlink(missing_ok=True)


def learn(plan: SearchPlan, fingerprint: str, study: optuna.Study) -> int:
    """Add the results of the searches in `tuning.learn_from` to a new study. Returns how many learnt trials it holds.

    They inform the sampler only and cannot win. Raises ConfigError for a folder without a search, or with a search of
    another experiment, because those figures do not compare.
    """
    if not started_trials(study):
        known = {trial.user_attrs.get(LEARNT) for trial in study.get_trials(deepcopy=False)}
        for entry in plan.base.tuning.learn_from:
            folder = Path(entry).expanduser().absolute()
            for trial in started_trials(_earlier_study(plan, folder, fingerprint)):
                source = f"{folder}/{trial.number}"
                ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
                if ended and source not in known and (copy := _in_this_space(plan, trial, source)) is not None:
                    study.add_trial(copy)
    return sum(LEARNT in trial.user_attrs for trial in study.get_trials(deepcopy=False))


def _in_this_space(plan: SearchPlan, trial: FrozenTrial, source: str) -> FrozenTrial | None:
    """The trial in this search's space; None if a key is missing, no longer searched, or out of range."""
    fixed = optuna.trial.FixedTrial(trial.params)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about a value out of range, which create_trial refuses
            plan.draw(fixed)
        return optuna.trial.create_trial(
            state=trial.state, values=trial.values, params=trial.params, distributions=fixed.distributions,
            intermediate_values=trial.intermediate_values, user_attrs={LEARNT: source},
        )  # fmt: skip
    except ValueError:
        return None


def _earlier_study(plan: SearchPlan, folder: Path, fingerprint: str) -> optuna.Study:
    key = f"tuning.learn_from: {folder}"
    try:
        before = yaml.safe_load((folder / DESCRIPTION).read_text())
    except OSError:
        raise ConfigError(f"{key}: holds no {DESCRIPTION}; give the folder of a search, OUTPUT/NAME-search") from None
    storage, now = before["tuning"]["storage"], description(plan, fingerprint)
    searched = {*now.pop("space"), *before.pop("space")}
    moved = partial(after_move, was=before["output"], now=folder.parent)
    for side in (now, before):
        side["tuning"] = {name: side["tuning"][name] for name in ("metrics", "protocols", "shared_pretraining")}
        del side["name"], side["output"]
    if changed := sorted(key for key, _, _ in _changes(before, now, moved) if key not in searched):
        raise ConfigError(
            f"{key}: is a search of another experiment (differs in {', '.join(changed)}): its figures do not compare"
        )
    if MASK in storage:
        # The password is not in the folder, so it must be that of this search.
        if mask_secrets(plan.base.tuning.storage) != storage:
            raise ConfigError(
                f"{key}: its study is at {storage}, whose credentials are not kept in its folder; give this search the "
                "same tuning.storage, with credentials"
            )
        storage = plan.base.tuning.storage
    return optuna.load_study(study_name=folder.name, storage=storage_in(folder, storage))
