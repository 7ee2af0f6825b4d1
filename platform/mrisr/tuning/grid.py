"""The full grid of a search space: its size, its points, and a sampler that tries each point once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna

from mrisr.config.spaces import Space, active

# The sampler holds all points in memory.
MOST_POINTS = 100_000


def grid_size(spaces: Sequence[Space], values: Mapping[str, Any], points: int) -> int:
    """The number of different experiments in the grid, counted without making them.

    spaces: a space comes after the spaces that its conditions depend on; values: the base value of every key; points:
    number of values per numeric range.
    """
    ways: Counter[tuple[tuple[str, Any], ...]] = Counter({(): 1})
    for place, space in enumerate(spaces):
        asked = {key for later in spaces[place + 1 :] for key, _ in later.when}
        after: Counter[tuple[tuple[str, Any], ...]] = Counter()
        for known, count in ways.items():
            kept = tuple(pair for pair in known if pair[0] in asked)
            if not active(space, {**values, **dict(known)}):
                after[kept] += count
            elif space.key in asked:
                for parameters in space.grid(points):
                    after[(*kept, (space.key, parameters[space.key]))] += count
            else:
                after[kept] += count * space.grid_count(points)
        ways = after
    return sum(ways.values())


def grid_points(spaces: Sequence[Space], values: Mapping[str, Any], points: int) -> Iterator[dict[str, Any]]:
    """The different experiments of the grid as sampler parameters. Arguments: see `grid_size`."""
    if not spaces:
        yield {}
        return
    space, later = spaces[0], spaces[1:]
    if not active(space, values):
        yield from grid_points(later, values, points)
        return
    asked = any(key == space.key for other in later for key, _ in other.when)
    for parameters in space.grid(points):
        known = {**values, space.key: parameters[space.key]} if asked else values
        for rest in grid_points(later, known, points):
            yield parameters | rest


class DistinctGrid(optuna.samplers.BaseSampler):
    """Tries every point once, in seeded order. Trials with the user attribute `foreign` do not count."""

    def __init__(self, points: Sequence[dict[str, Any]], seed: int, foreign: str) -> None:
        self._points = list(points)
        random.Random(seed).shuffle(self._points)
        self._foreign = foreign
        self._chosen: dict[int, dict[str, Any]] = {}

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        tried = {
            frozenset(other.params.items())
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number and self._foreign not in other.user_attrs
        }
        # A trial whose process was killed during the draw already has some of its parameters.
        drawn = trial.params.items()
        free = [p for p in self._points if drawn <= p.items() and frozenset(p.items()) not in tried]
        if not free:
            raise ValueError(f"trial {trial.number}: all {len(self._points)} points of the grid were tried")
        self._chosen[trial.number] = free[0]

    def infer_relative_search_space(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        return self._chosen[trial.number][param_name]
