"""Searches that came before: the description by which one is known again, and what a new one learns from them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import TrialState

from mrisr.config import ConfigError
from mrisr.config.spaces import flat
from mrisr.tracking.redaction import MASK, mask_secrets
from mrisr.tuning.plan import SearchPlan
from mrisr.tuning.study import LEARNT, begun, storage_in

DESCRIPTION = "search.yaml"
# Keys of a search that may differ when it goes on: how far and how fast, not what is compared.
_MAY_CHANGE = ("trials", "concurrent", "winner", "max_failures")
_SECTIONS_THAT_MAY_CHANGE = ("tracking", "resources")


def description(plan: SearchPlan, fingerprint: str) -> dict[str, Any]:
    """What makes two starts the same search: the experiment, its space, its data; fingerprint: of the store.

    Credentials are masked: they may change, and the description is a file.
    """
    found = plan.base.model_dump(mode="json")
    for key in _MAY_CHANGE:
        found["tuning"].pop(key)
    for section in _SECTIONS_THAT_MAY_CHANGE:
        found.pop(section)
    found["space"] = {key: repr(space) for key, space in plan.spaces.items()}
    found["dataset"] = fingerprint
    return dict(mask_secrets(found))


def learn(plan: SearchPlan, fingerprint: str, study: optuna.Study) -> int:
    """Tell a new study what the searches of `tuning.learn_from` found; returns how many trials it knows from them.

    They count for the sampler alone: they are no trials of this search, and none of them can win it. Trials outside of
    this search's space are left out. Raises ConfigError for a folder that holds no search, or a search of another
    experiment, whose figures would mislead.
    """
    if begun(study):
        return _learnt(study)
    known = {trial.user_attrs.get(LEARNT) for trial in study.get_trials(deepcopy=False)}
    for entry in plan.base.tuning.learn_from:
        folder = Path(entry).expanduser().absolute()
        for trial in begun(_study_of(plan, folder, fingerprint)):
            source = f"{folder}/{trial.number}"
            fixed = optuna.trial.FixedTrial(trial.params)
            if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED) or source in known:
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # of a value out of range, which is an error below
                    plan.draw(fixed)
                same = optuna.trial.create_trial(
                    state=trial.state, values=trial.values, params=trial.params, distributions=fixed.distributions,
                    intermediate_values=trial.intermediate_values, user_attrs={LEARNT: source},
                )  # fmt: skip
            except ValueError:
                continue  # a key that it lacks, a value out of range, or a key that was searched and is fixed now
            study.add_trial(same)
    return _learnt(study)


def _learnt(study: optuna.Study) -> int:
    return sum(LEARNT in trial.user_attrs for trial in study.get_trials(deepcopy=False))


def _study_of(plan: SearchPlan, folder: Path, fingerprint: str) -> optuna.Study:
    key = f"tuning.learn_from: {folder}"
    try:
        before = yaml.safe_load((folder / DESCRIPTION).read_text())
    except OSError:
        raise ConfigError(f"{key}: holds no {DESCRIPTION}; give the folder of a search, OUTPUT/NAME-search") from None
    now = description(plan, fingerprint)
    searched = {*now.pop("space"), *before.pop("space")}
    scored = ("metrics", "protocols", "shared_pretraining")
    for side in (now, before):
        side["tuning"] = {name: side["tuning"][name] for name in scored}
        del side["name"], side["output"]
    then, here = flat(before), flat(now)
    changed = sorted(k for k in then.keys() | here.keys() if k not in searched and then.get(k) != here.get(k))
    if changed:
        raise ConfigError(f"{key}: is a search of another experiment (differs in {', '.join(changed)}): its figures do "
                          "not compare")  # fmt: skip
    return optuna.load_study(study_name=folder.name, storage=storage_in(folder, _address(plan, key, folder)))


def _address(plan: SearchPlan, key: str, folder: Path) -> str:
    """Where an earlier search keeps its study. Its password is not in its folder: it must be this search's too."""
    kept: str = yaml.safe_load((folder / DESCRIPTION).read_text())["tuning"]["storage"]
    if MASK not in kept:
        return kept
    own = plan.base.tuning.storage
    if mask_secrets(own) != kept:
        raise ConfigError(
            f"{key}: its study is at {kept}, whose credentials are not kept in its folder; give this search the same "
            "tuning.storage, with credentials"
        )
    return own
