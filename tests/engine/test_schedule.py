"""The schedule at its edges, and its counts against a plain walk through the steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrisr.engine.schedule import Phase, Schedule, UpdateCounts, phase, updates_before

PAPER = Schedule(total_steps=300_000)


def test_edges_of_the_published_schedule() -> None:
    assert phase(PAPER, 0) is Phase.PRETRAIN
    assert phase(PAPER, 249_999) is Phase.PRETRAIN
    assert {phase(PAPER, step) for step in range(250_000, 260_000)} == {Phase.CRITIC}
    first_cycle = [phase(PAPER, step) for step in range(260_000, 260_008)]
    assert first_cycle == [Phase.CRITIC] * 7 + [Phase.GENERATOR]
    for start in (260_000, 260_700, 261_400):
        generators = [step - start for step in range(start, start + 700) if phase(PAPER, step) is Phase.GENERATOR]
        assert generators == list(range(7, 496, 8))  # 62 of them within 500 steps, then 200 more for the critic
    assert phase(PAPER, PAPER.total_steps - 1) in Phase
    assert str(Phase.CRITIC) == "critic"


@pytest.mark.parametrize("step", [-1, 300_000])
def test_a_step_outside_is_an_error(step: int) -> None:
    with pytest.raises(ValueError, match=f"step {step} is outside"):
        phase(PAPER, step)


def test_without_boosts_the_cycle_runs_on() -> None:
    schedule = Schedule(2_000, 0, 0, 7, boost_every=500, boost_steps=0)
    assert [s for s in range(2_000) if phase(schedule, s) is Phase.GENERATOR] == list(range(7, 2_000, 8))


def test_a_run_that_only_pretrains_needs_no_critic() -> None:
    assert not Schedule(pretrain_steps=10, total_steps=10).needs_critic
    assert Schedule(pretrain_steps=10, total_steps=11).needs_critic


@given(
    st.builds(
        Schedule,
        pretrain_steps=st.integers(0, 12),
        critic_warmup_steps=st.integers(0, 6),
        critic_per_generator=st.integers(0, 4),
        boost_every=st.integers(5, 17),
        boost_steps=st.integers(0, 6),
        total_steps=st.integers(1, 80),
    )
)
def test_counts_are_those_of_a_walk(schedule: Schedule) -> None:
    seen = dict.fromkeys(Phase, 0)
    for step in range(schedule.total_steps):
        walked = UpdateCounts(seen[Phase.PRETRAIN], seen[Phase.CRITIC], seen[Phase.GENERATOR])
        assert updates_before(schedule, step) == walked
        seen[phase(schedule, step)] += 1
    assert updates_before(schedule, schedule.total_steps).critic == seen[Phase.CRITIC]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pretrain_steps": -1}, "schedule.pretrain_steps is -1"),
        ({"boost_every": 0}, "schedule.boost_every is 0"),
        ({"total_steps": 0}, "schedule.total_steps is 0"),
        ({"boost_every": 7}, "too short for a single generator step after 7 of the critic; make it 8"),
    ],
)
def test_impossible_schedules_are_errors(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**settings)
