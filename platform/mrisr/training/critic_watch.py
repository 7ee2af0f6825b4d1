"""Detects a critic without gradient. Such a critic leaves the generator with the L1 loss only, without an error."""

from __future__ import annotations

# Norm of the critic's gradient at a patch. Good critics of 16^3 patches have 1e-3 or more, also with clipped weights.
SILENT = 1e-6
STEPS = 100


class CriticWatch:
    def __init__(self) -> None:
        self.silent_steps, self.warned = 0, False

    def after_step(self, norm: float, step: int) -> str | None:
        """A warning, once, after STEPS such steps in a row. norm: `interpolate_gradient_norm` of a critic step."""
        self.silent_steps = self.silent_steps + 1 if norm < SILENT else 0
        if self.warned or self.silent_steps < STEPS:
            return None
        self.warned = True
        return (
            f"step {step:,}: the critic is dead: for {STEPS} critic steps the norm of its gradient has been below "
            f"{SILENT:g} (now {norm:.1e}), so that the generator learns nothing from it; start a new run with another "
            "training.critic_lr, a larger critic.weight_clip, or critic.weight_clip=null training.gp_weight=10"
        )
