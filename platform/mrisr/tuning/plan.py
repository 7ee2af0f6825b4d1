"""A search plan: the experiment, its search spaces and known-good points, checked before the first trial."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna

from mrisr.config import ConfigError, Experiment
from mrisr.config.loading import load_search
from mrisr.config.networks import GENERATORS
from mrisr.config.reference import checked
from mrisr.config.spaces import Space, SpaceError, active, flat
from mrisr.tuning.conditions import check_conditions, without_excluded
from mrisr.tuning.grid import MOST_POINTS, grid_points, grid_size

# Number of checked draws: enough to find a combination that fails once in 50 draws.
_DRAWS = 256


@dataclass(frozen=True)
class SearchPlan:
    """A checked search. base: the experiment with its fixed values; points: sampler parameters to try first."""

    base: Experiment
    spaces: dict[str, Space]
    points: tuple[dict[str, Any], ...]

    @property
    def folder(self) -> Path:
        return self.base.output / f"{self.base.name}-search"

    @property
    def trials_folder(self) -> Path:
        return self.folder / "trials"

    @property
    def pretrained_folder(self) -> Path:
        return self.folder / "pretrained"

    @property
    def trials(self) -> int:
        """The number of trials of the finished search. A grid may have fewer points than the requested trials."""
        t = self.base.tuning
        return min(t.trials, self.grid_size) if t.sampler == "grid" else t.trials

    @property
    def trial_steps(self) -> int:
        """Steps of a trial without early stopping; the shared pretraining is not included."""
        schedule = self.base.schedule
        return schedule.total_steps - (schedule.pretrain_steps if self.base.tuning.shared_pretraining else 0)

    @property
    def values(self) -> dict[str, Any]:
        return flat(self.base.model_dump(mode="json"))

    @property
    def grid_size(self) -> int:
        return grid_size(list(self.spaces.values()), self.values, self.base.tuning.grid_points)

    def grid(self) -> Iterator[dict[str, Any]]:
        return grid_points(list(self.spaces.values()), self.values, self.base.tuning.grid_points)

    def draw(self, trial: Any) -> dict[str, Any]:
        """Draw a value for each key whose conditions the earlier draws meet: dotted key -> value."""
        values, drawn = self.values, {}
        for key, space in self.spaces.items():
            if active(space, values):
                values[key] = drawn[key] = space.suggest(trial)
        return drawn

    def experiment(self, values: Mapping[str, Any]) -> Experiment:
        """The experiment with these values. Raises ConfigError if they do not fit together."""
        generator, kind = self.base.generator, values.get("generator.kind")
        if kind in (None, generator.kind) or kind not in GENERATORS:
            return self.base.changed(values)
        searched = {key.removeprefix("generator.") for key in self.spaces}
        return self.base.changed({"generator": generator.of_kind(kind, searched), **values})

    def searched_at(self, key: str, value: Any) -> dict[str, Any]:
        """This value, and values of other keys under which the key is searched, if the base values do not allow it."""
        found, base = {key: value}, self.values
        for other, wanted in self.spaces[key].when:
            if base.get(other) not in wanted:
                found = (self.searched_at(other, wanted[0]) if other in self.spaces else {other: wanted[0]}) | found
        return found


def plan_search(path: Path | str | None, overrides: Sequence[str] = ()) -> SearchPlan:
    """Read an experiment file with search spaces, and check that its combinations are valid experiments.

    Raises ConfigError for: no space, an unknown key, an invalid end of a range, values that do not fit together, an
    impossible condition, a known-good point outside of the space.
    """
    raw, spaces = load_search(path, overrides)
    base = checked(Experiment, raw)
    overridden = {override.partition("=")[0].lstrip("-") for override in overrides}
    spaces = without_excluded(spaces, flat(base.model_dump(mode="json")), overridden)
    if not spaces:
        raise ConfigError(
            f"{path or 'the configuration'}: holds no search space; write one beside a key's value, e.g. "
            "training: {gp_weight: {log_uniform: [0.1, 100], fixed: 10}}"
        )
    plan, t = SearchPlan(base, spaces, ()), base.tuning
    if t.sampler == "cmaes" and len(t.metrics) > 1:
        raise ConfigError(f"tuning.sampler = 'cmaes' searches for one figure, not {list(t.metrics)}; use tpe or random")
    check_conditions(spaces, plan.values)
    _check_shared_pretraining(plan)
    if t.sampler == "grid" and plan.grid_size > MOST_POINTS:
        raise ConfigError(
            f"tuning.sampler = 'grid': its grid has {plan.grid_size:,} points, and {MOST_POINTS:,} are the most; use "
            f"fewer than tuning.grid_points = {t.grid_points} per range, fewer searched keys, or another sampler"
        )
    _check_values(plan)
    _check_together(plan)
    return replace(plan, points=tuple(_points(plan)))


def short(value: Any) -> str:
    """A value as text for tables and progress lines: three digits; an interval as `low to high`; None as ""."""
    if isinstance(value, list | tuple):
        return " to ".join(map(short, value))
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)


def _check_shared_pretraining(plan: SearchPlan) -> None:
    if not plan.base.tuning.shared_pretraining:
        return
    schedule = plan.base.schedule
    if not 0 < schedule.pretrain_steps < schedule.total_steps:
        raise ConfigError(
            f"tuning.shared_pretraining = true with schedule.pretrain_steps = {schedule.pretrain_steps} of "
            f"schedule.total_steps = {schedule.total_steps}: there must be L1 steps to share and others to search"
        )
    for key in plan.spaces:
        if key.startswith("generator.") or key in ("training.pretrain_lr", "schedule.pretrain_steps"):
            raise ConfigError(
                f"{key}: is searched, but tuning.shared_pretraining = true trains that stage once for all trials; "
                "give it one value, or set tuning.shared_pretraining=false"
            )


def extremes(plan: SearchPlan) -> Iterator[tuple[str, Any]]:
    """Every end and choice of every key that fits the other keys' base values."""
    for key, value in _extremes(plan):
        try:
            plan.experiment(plan.searched_at(key, value))
        except ConfigError:
            continue
        yield key, value


def _extremes(plan: SearchPlan) -> Iterator[tuple[str, Any]]:
    for space in plan.spaces.values():
        values = list(space.options)
        if space.kind == "interval":
            values = [[low, low] for low in space.options] + [list(space.options)]
        elif space.kind in ("uniform", "log_uniform"):
            # An integer key accepts both ends, but not real values between them.
            values.append(space.options[0] + (space.options[1] - space.options[0]) / math.pi)
        yield from ((space.key, value) for value in values)


def _check_values(plan: SearchPlan) -> None:
    for key, value in _extremes(plan):
        try:
            plan.experiment(plan.searched_at(key, value))
        except ConfigError as error:
            if str(error).startswith(f"{key} ") or len(plan.spaces) == 1:
                raise ConfigError(f"search space of {key}: {error}") from None


def _check_together(plan: SearchPlan) -> None:
    """Check random draws: a draw that fails here would fail as a trial."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    draws = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(_DRAWS):
        values = plan.draw(draws.ask())
        try:
            plan.experiment(values)
        except ConfigError as error:
            text = ", ".join(f"{key}={value}" for key, value in values.items())
            raise ConfigError(
                f"the search space allows an experiment that is not valid: {error}\n(at {text}); narrow the space"
            ) from None


def _points(plan: SearchPlan) -> Iterator[dict[str, Any]]:
    """The fixed values as one point, then `tuning.points`, as sampler parameters."""
    fixed = {key: space.fixed for key, space in plan.spaces.items() if space.has_fixed}
    for number, point in enumerate(([fixed] if fixed else []) + list(plan.base.tuning.points)):
        values = plan.values
        parameters: dict[str, Any] = {}
        for key in point:
            if key not in plan.spaces:
                raise ConfigError(f"tuning.points: {key!r} is not searched; it is one of {', '.join(plan.spaces)}")
        for key, space in plan.spaces.items():
            if key in point and active(space, values):
                values[key] = point[key]
                try:
                    parameters |= space.parameters(point[key])
                except SpaceError as error:
                    raise ConfigError(f"tuning.points, number {number}: {error}") from None
        yield parameters
