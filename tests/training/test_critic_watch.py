"""A critic whose gradient has vanished is told once, with the keys that help."""

from mrisr.training.critic_watch import STEPS, CriticWatch


def test_a_dead_critic_is_told_once() -> None:
    watch = CriticWatch()
    told = [watch.after_step(3e-17, step) for step in range(2 * STEPS)]
    assert [step for step, line in enumerate(told) if line is not None] == [STEPS - 1]
    line = told[STEPS - 1]
    assert line is not None
    assert "the critic is dead" in line
    assert "critic.weight_clip=null training.gp_weight=10" in line


def test_a_living_critic_is_not_told_of() -> None:
    watch = CriticWatch()
    norms = [3e-17] * (STEPS - 1) + [0.1]
    assert not any(watch.after_step(norm, step) for step, norm in enumerate(norms * 3))
