"""Learning-rate schedules. The rate of a step is a pure function of its number, so resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable

from mrisr.engine.schedule import Schedule, phase, updates_before

# Share of an optimizer's updates over which `cosine` rises before it falls.
RISE = 0.02


def constant(update: int, updates: int) -> float:
    return 1.0


def cosine(update: int, updates: int) -> float:
    """A linear rise over the first RISE of the updates, then half a cosine towards 0 (Loshchilov and Hutter 2017,
    arXiv 1608.03983, without restarts).
    """
    rise = math.ceil(RISE * updates)
    if update < rise:
        return (update + 1) / (rise + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (update - rise) / (updates - rise)))


#: (update, counted from 0; number of updates) -> factor of the learning rate, in (0, 1].
LR_SCHEDULES: dict[str, Callable[[int, int], float]] = {"constant": constant, "cosine": cosine}


def lr_factor(name: str, schedule: Schedule, step: int) -> float:
    """The factor at `step`. L1 updates, critic updates and adversarial updates of the generator are counted separately,
    and each kind runs through the whole curve.
    """
    now = phase(schedule, step)
    before, total = (updates_before(schedule, at) for at in (step, schedule.total_steps))
    return LR_SCHEDULES[name](getattr(before, now), getattr(total, now))
