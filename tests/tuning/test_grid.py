"""The full grid: what it holds is counted, and each point of it is run once."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import optuna
import pytest

from mrisr.config import ConfigError
from mrisr.tuning.plan import SearchPlan, plan_search
from mrisr.tuning.report import cost_lines
from mrisr.tuning.study import build_sampler, running_trial
from mrisr.tuning.summary import SearchSummary, TrialSummary

WEIGHT = "training.gp_weight={log_uniform: [0.1, 10]}"
INTERVAL = "degradation.fraction={interval: [0.1, 0.9]}"
KINDS = "degradation.kind={choice: [truncate, mixed, box], fixed: truncate}"
MIX = "degradation.mix={interval: [0, 1], when: {degradation.kind: mixed}}"
STEPS = "schedule.critic_per_generator={int: [1, 2]}"
CRITIC = (
    "critic.kind={choice: [full, separable], when: {degradation.kind: [mixed, box], schedule.critic_per_generator: 2}}"
)
CHAIN = "training.critic_lr={log_uniform: [1.0e-5, 1.0e-3], when: {critic.kind: separable}}"
GRIDS = [
    ([WEIGHT, "critic.kind={choice: [full, separable]}"], 6),
    ([INTERVAL], 7),
    ([KINDS, MIX], 2 + 7),
    ([KINDS, MIX, WEIGHT], 3 * (2 + 7)),
    ([STEPS, "tuning.grid_points=5"], 2),
    ([KINDS, MIX, STEPS, CRITIC, CHAIN], None),
    ([KINDS, MIX, STEPS, CRITIC, CHAIN, "tuning.grid_points=2"], None),
]  # fmt: skip


def different(plan: SearchPlan) -> list[str]:
    """The experiments that the product of all parameters' grid values makes, by brute force."""
    values: dict[str, list[float]] = {}
    for space in plan.spaces.values():
        for parameters in space.grid(plan.base.tuning.grid_points):
            for name, value in parameters.items():
                values.setdefault(name, [])
                values[name] += [] if value in values[name] else [value]
    full = (dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))
    return sorted({repr(plan.draw(optuna.trial.FixedTrial(parameters))) for parameters in full})


@pytest.mark.parametrize(("overrides", "size"), GRIDS)
def test_the_grid_holds_what_differs_and_its_sampler_runs_that_once(overrides: list[str], size: int | None) -> None:
    plan = plan_search(None, [*overrides, "tuning.sampler=grid", "tuning.trials=500"])
    wanted = different(plan)
    assert plan.grid_size == plan.trials == len(wanted)
    assert size in (None, len(wanted))
    study, found = optuna.create_study(), []
    for _ in range(plan.grid_size):
        study.sampler = build_sampler(plan, 0)  # of a new process, which knows the study alone
        found.append(repr(plan.draw(study.ask())))
    assert sorted(found) == wanted


def test_a_point_whose_trial_was_killed_while_it_was_drawn_is_run_once() -> None:
    plan = plan_search(None, [KINDS, MIX, WEIGHT, "tuning.sampler=grid"])
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, sampler=build_sampler(plan, 0))
    cut = study.ask()
    plan.spaces["degradation.kind"].suggest(cut)
    study.sampler = build_sampler(plan, 0)
    found = [repr(plan.draw(running_trial(study, storage, cut.number)))]
    found += [repr(plan.draw(study.ask())) for _ in range(plan.grid_size - 1)]
    assert sorted(found) == different(plan)


def test_a_grid_too_large_for_its_sampler_is_named_and_counted_for_others() -> None:
    many = [WEIGHT, INTERVAL, "training.critic_lr={log_uniform: [1.0e-6, 1.0e-3]}", "tuning.grid_points=100"]
    assert plan_search(None, many).grid_size == 100 * (100 * 99 + 1) * 100
    with pytest.raises(ConfigError, match=r"99,010,000 points.*grid_points = 100"):
        plan_search(None, [*many, "tuning.sampler=grid"])


def test_failed_trials_cost_steps_and_save_none_and_a_winner_trained_anew_costs_its_own() -> None:
    def trial(number: int, state: str, step: int) -> TrialSummary:
        frozen = optuna.trial.create_trial(value=0.0)
        return TrialSummary(number, "", state, {}, [], {}, step, None, None, Path(), frozen)

    small = ["schedule.total_steps=64", "schedule.pretrain_steps=0", "validation.every=4"]
    plan = plan_search(None, [WEIGHT, *small, "tuning.winner=retrain"])
    ended = [trial(0, "finished", 64), trial(1, "stopped early", 16)]
    assert cost_lines(plan, SearchSummary([*ended, trial(2, "failed", 4)], [], 0)) == [
        "3 trials: 1 finished, 1 stopped early, 1 failed",
        "cost: 84 steps run, 4 of them by failed trials; the other 2 trials to their end would be 128 (1.6x), "
        "a grid of 3 values per range 192 (2x)",
        "      and 64 steps to train the winner anew",
    ]
