"""Learning rates per step against the schedule walked step by step, and the rate that an optimizer steps with."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrisr.engine.learning_rate import LR_SCHEDULES
from mrisr.engine.networks import build_networks
from mrisr.engine.schedule import Phase, Schedule, phase
from mrisr.engine.step import set_learning_rate, train_step
from mrisr.engine.step_settings import StepConfig
from mrisr.models import build_generator


def test_constant_rates_are_those_of_the_configuration() -> None:
    config, schedule = StepConfig(pretrain_lr=1e-3, generator_lr=2e-4, critic_lr=3e-5), Schedule(40, 10, 5, 3)
    rates = {Phase.PRETRAIN: 1e-3, Phase.GENERATOR: 2e-4, Phase.CRITIC: 3e-5}
    assert all(config.learning_rate(schedule, step) == rates[phase(schedule, step)] for step in range(40))


def test_cosine_over_each_optimizers_own_updates() -> None:
    config = StepConfig(pretrain_lr=1.0, generator_lr=1.0, critic_lr=1.0, lr_schedule="cosine")
    schedule = Schedule(900, 300, 50, 3, boost_every=100, boost_steps=20)
    total, done = Counter(phase(schedule, step) for step in range(900)), Counter[Phase]()
    for step in range(900):
        now = phase(schedule, step)
        rise = math.ceil(0.02 * total[now])
        place = done[now] - rise
        expected = (
            (done[now] + 1) / (rise + 1) if place < 0 else math.cos(math.pi / 2 * place / (total[now] - rise)) ** 2
        )
        assert config.learning_rate(schedule, step) == pytest.approx(expected, abs=1e-12)
        done[now] += 1


@given(st.sampled_from(sorted(LR_SCHEDULES)), st.integers(1, 5000))
def test_factors_are_above_0_and_reach_1_at_most(name: str, updates: int) -> None:
    factors = [LR_SCHEDULES[name](update, updates) for update in {0, updates // 50, updates // 2, updates - 1}]
    assert all(0 < factor <= 1 for factor in factors)


def test_an_update_moves_weights_by_the_rate_of_its_step() -> None:
    """Adam's first update moves every weight by the rate, up to its epsilon."""
    config = StepConfig(batch_size=1, pretrain_lr=1e-2)
    generator = build_generator({"growth_rate": 2, "blocks": 1, "units": 1})
    networks = build_networks(generator, None, config, torch.device("cpu"), "single")
    before = {name: value.clone() for name, value in networks.generator.named_parameters()}
    set_learning_rate(networks, Phase.PRETRAIN, 3e-4)
    train_step(networks, config, Phase.PRETRAIN, 0, torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8))
    moved = max(
        float((value - before[name]).abs().max().detach()) for name, value in networks.generator.named_parameters()
    )
    assert moved == pytest.approx(3e-4, rel=1e-2)


def test_an_unknown_schedule_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"training\.lr_schedule is 'linear'; choose one of constant, cosine"):
        StepConfig(lr_schedule="linear")
