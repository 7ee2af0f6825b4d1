"""Which network a step updates, as a pure function of the step number. A step is one update of one network."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from mrisr.settings import check_bounds, setting

L1, ADVERSARIAL = "l1", "wgan-gp"  # stages


class Phase(StrEnum):
    """What a step updates: the generator on L1 only, the critic, or the generator on L1 and scores."""

    PRETRAIN = "pretrain"
    CRITIC = "critic"
    GENERATOR = "generator"


@dataclass(frozen=True)
class Schedule:
    """pretrain_steps, then critic_warmup_steps, then periods of boost_every + boost_steps up to total_steps.

    In the first boost_every steps of a period, critic_per_generator critic steps precede each generator step. The other
    boost_steps are critic steps. boost_steps = 0 switches the boosts off, and the cycle is then not interrupted.
    Source: Chen et al. 2018 (arXiv 1803.01417), section 3. Raises ValueError for counts that make no schedule.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    total_steps: int = setting(750_000, "length of the run; a step is one update of one network", gt=0)
    pretrain_steps: int = setting(250_000, "L1 steps of the generator before the adversarial stage", ge=0)
    critic_warmup_steps: int = setting(10_000, "critic steps before the generator moves again", ge=0)
    critic_per_generator: int = setting(7, "critic steps for each adversarial generator step", ge=0)
    boost_every: int = setting(500, "after this many alternating steps ...", gt=0)
    boost_steps: int = setting(200, "... come this many steps of the critic alone", ge=0)

    def __post_init__(self) -> None:
        check_bounds(self, "schedule")
        if self.boost_steps and self.boost_every <= self.critic_per_generator:
            raise ValueError(
                f"schedule.boost_every is {self.boost_every}, too short for a single generator step after "
                f"{self.critic_per_generator} of the critic; make it {self.critic_per_generator + 1} or more"
            )

    @property
    def adversarial_start(self) -> int:
        """The first step after pretraining and the critic's warm-up."""
        return self.pretrain_steps + self.critic_warmup_steps

    def stage(self, step: int) -> str:
        """The stage that made the generator's weights after `step` steps: `start` (no step yet), `l1` or `wgan-gp`."""
        if step > self.adversarial_start + self.critic_per_generator:  # the first adversarial step of the generator
            return ADVERSARIAL
        return L1 if self.pretrain_steps else "start"

    def describe(self) -> str:
        """`1,050 steps, the first 1,000 of them L1, then WGAN-GP`."""
        if not self.needs_critic:
            return f"{self.total_steps:,} steps, all L1"
        first = f", the first {self.pretrain_steps:,} of them L1, then" if self.pretrain_steps else " of"
        return f"{self.total_steps:,} steps{first} WGAN-GP"

    @property
    def needs_critic(self) -> bool:
        """Whether any step uses the critic; false for pretraining only."""
        return self.total_steps > self.pretrain_steps


class UpdateCounts(NamedTuple):
    """How many updates of each kind precede a step."""

    pretrain: int
    critic: int
    generator: int


def phase(schedule: Schedule, step: int) -> Phase:
    """What step `step` (counted from 0) updates. Raises ValueError outside [0, total_steps)."""
    if not 0 <= step < schedule.total_steps:
        raise ValueError(f"step {step} is outside the schedule of {schedule.total_steps} steps")
    if step < schedule.pretrain_steps:
        return Phase.PRETRAIN
    if step < schedule.adversarial_start:
        return Phase.CRITIC
    place = step - schedule.adversarial_start
    if schedule.boost_steps:
        place %= schedule.boost_every + schedule.boost_steps
        if place >= schedule.boost_every:
            return Phase.CRITIC
    cycle = schedule.critic_per_generator + 1
    return Phase.GENERATOR if place % cycle == cycle - 1 else Phase.CRITIC


def updates_before(schedule: Schedule, step: int) -> UpdateCounts:
    """The updates of the steps before `step`. Raises ValueError outside [0, total_steps]."""
    if not 0 <= step <= schedule.total_steps:
        raise ValueError(f"step {step} is outside the schedule of {schedule.total_steps} steps")
    pretrain = min(step, schedule.pretrain_steps)
    cycle = schedule.critic_per_generator + 1
    place = max(0, step - schedule.adversarial_start)
    if schedule.boost_steps:
        periods, place = divmod(place, schedule.boost_every + schedule.boost_steps)
        generator = periods * (schedule.boost_every // cycle) + min(place, schedule.boost_every) // cycle
    else:
        generator = place // cycle
    return UpdateCounts(pretrain, step - pretrain - generator, generator)
