"""What each network minimises, each as one nn.Module.

The critic's whole objective, gradient penalty included, is the forward of ONE module: with FSDP2 the second
differentiation must happen while the parameters are gathered, which holds inside the sharded module's forward
and nowhere else (pytorch issue 172543). Source: Gulrajani et al. 2017, "Improved Training of Wasserstein
GANs" (arXiv 1704.00028).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call


def widened(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class CriticTerms(NamedTuple):
    """Scalars of one micro-batch; only `loss` carries a graph."""

    loss: Tensor
    wasserstein: Tensor  # E[D(real)] - E[D(fake)], the estimate of the distance
    penalty: Tensor  # E[(norm - 1)^2], without its weight
    interpolate_gradient_norm: Tensor  # E[norm], which the penalty pulls to 1


class GeneratorTerms(NamedTuple):
    """Scalars of one micro-batch; only `loss` carries a graph."""

    loss: Tensor
    l1: Tensor
    adversarial: Tensor  # -E[D(fake)], without its weight


class CriticObjective(nn.Module):
    """The critic and all that is ever computed with it, so that it can be sharded as a single unit.

    critic: (B, 1, P, P, P) -> (B,) scores, without any coupling between samples. gp_weight: the penalty's
    weight. Everything runs in float32 or wider, whatever autocast says: the penalty differentiates twice.
    """

    def __init__(self, critic: nn.Module, gp_weight: float = 10.0) -> None:
        super().__init__()
        self.critic, self.gp_weight = critic, gp_weight

    def forward(
        self, fake: Tensor, real: Tensor | None = None, coefficients: Tensor | None = None
    ) -> CriticTerms | Tensor:
        """The critic's objective for fakes, reals and interpolation coefficients; for fakes alone, their
        scores.

        fake, real: (B, 1, P, P, P); coefficients: (B,) in [0, 1], one per sample, of `real` in the
        interpolate. With `real`: CriticTerms, whose loss is E[D(fake)] - E[D(real)] + gp_weight * penalty; no
        gradient reaches `fake`.
        Without: scores (B,) for the generator's objective; the gradient reaches `fake`, and no parameter of
        the critic.
        """
        with torch.autocast(fake.device.type, enabled=False):
            if real is None:
                # Detached views freeze the parameters, gathered or not, without flipping requires_grad, which
                # FSDP2 ignores once it has gathered them, and which makes DCP drop optimizer state.
                frozen = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
                scores: Tensor = functional_call(self.critic, frozen, (widened(fake),))
                return scores.clone()  # FSDP2 hangs its hooks on outputs, which must not be views
            assert coefficients is not None, "the penalty needs one interpolation coefficient per sample"
            return self._terms(widened(fake.detach()), widened(real), widened(coefficients))

    def _terms(self, fake: Tensor, real: Tensor, coefficients: Tensor) -> CriticTerms:
        wasserstein = self.critic(real).mean() - self.critic(fake).mean()
        weight = coefficients.view(-1, *[1] * (real.ndim - 1))
        interpolate = torch.lerp(fake, real, weight).requires_grad_()
        # The critic couples no samples, so the gradient of the sum holds every sample's own gradient.
        (gradient,) = torch.autograd.grad(self.critic(interpolate).sum(), interpolate, create_graph=True)
        norms = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        penalty = (norms - 1).square().mean()
        return CriticTerms(
            self.gp_weight * penalty - wasserstein,
            wasserstein.detach(),
            penalty.detach(),
            norms.mean().detach(),
        )


class PretrainObjective(nn.Module):
    """Mean absolute error of (B, 1, D, H, W) estimates, in float32 or wider."""

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:
        return (widened(estimate) - widened(reference)).abs().mean()


class GeneratorObjective(nn.Module):
    """L1 + adversarial_weight * -E[D(fake)]; the scores are a CriticObjective's, called with fakes alone."""

    def __init__(self, adversarial_weight: float = 1e-3) -> None:
        super().__init__()
        self.adversarial_weight = adversarial_weight
        self.pixel = PretrainObjective()

    def forward(self, estimate: Tensor, reference: Tensor, scores: Tensor) -> GeneratorTerms:
        """estimate, reference: (B, 1, P, P, P); scores: (B,), the critic's on `estimate`."""
        l1 = self.pixel(estimate, reference)
        adversarial = -widened(scores).mean()
        return GeneratorTerms(l1 + self.adversarial_weight * adversarial, l1.detach(), adversarial.detach())
