"""The loss functions of the networks, each as one nn.Module.

The critic's whole objective, gradient penalty included, is the forward of ONE module: the second differentiation needs
gathered parameters, and FSDP2 gathers them only inside the sharded module's forward (pytorch issue 172543). Source:
Gulrajani et al. 2017, "Improved Training of Wasserstein GANs" (arXiv 1704.00028).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class CriticTerms(NamedTuple):
    """Scalars of one micro-batch; only `loss` has a graph."""

    loss: Tensor
    wasserstein: Tensor  # E[D(real)] - E[D(fake)], the estimate of the distance
    penalty: Tensor  # E[(norm - 1)^2], without its weight
    interpolate_gradient_norm: Tensor  # E[norm], which the penalty pulls to 1


class GeneratorTerms(NamedTuple):
    """Scalars of one micro-batch; only `loss` has a graph."""

    loss: Tensor
    l1: Tensor
    adversarial: Tensor  # -E[D(fake)], without its weight


class CriticObjective(nn.Module):
    """The critic and all computations that use it, so that it can be sharded as a single unit.

    critic: (B, 1, P, P, P) -> (B,) scores; samples must not influence each other's scores. gp_weight: with 0 the
    penalty is reported but is not part of the loss. samples_at_once: samples per pass of the critic, None for all. All
    computations use float32 or wider, also under autocast: the penalty differentiates twice.

    The gradient of the objective is a sum over samples and over two terms: the scores of real and fake, and the
    penalty. Forward differentiates each term immediately and frees its graph before the next; backward returns the sum.
    So the peak is the penalty's graph of `samples_at_once` samples. Real and fake share a pass, which is faster on
    small patches and needs less memory than the penalty.
    """

    def __init__(self, critic: nn.Module, gp_weight: float = 10.0, samples_at_once: int | None = 1) -> None:
        super().__init__()
        self.critic, self.gp_weight, self.samples_at_once = critic, gp_weight, samples_at_once

    def forward(
        self, fake: Tensor, real: Tensor | None = None, coefficients: Tensor | None = None
    ) -> CriticTerms | Tensor:
        """The critic's objective; without `real`, the scores of `fake` for the generator's objective.

        fake, real: (B, 1, P, P, P); coefficients: (B,) in [0, 1], the share of `real` in each interpolate. With `real`
        it returns CriticTerms, whose loss is E[D(fake)] - E[D(real)] + gp_weight * penalty, and `fake` gets no
        gradient. Without `real` it returns scores (B,); `fake` gets a gradient, and the critic's parameters get none.
        """
        with torch.autocast(fake.device.type, enabled=False):
            if real is None:
                return self._scores(at_least_float32(fake))
            assert coefficients is not None, "the penalty needs one interpolation coefficient per sample"
            return self._terms(at_least_float32(fake.detach()), at_least_float32(real), at_least_float32(coefficients))

    def _slices(self, count: int) -> list[slice]:
        size = self.samples_at_once or count
        return [slice(first, min(first + size, count)) for first in range(0, count, size)]

    def _scores(self, fake: Tensor) -> Tensor:
        # Detached views freeze the parameters. Changing requires_grad instead would have no effect on parameters that
        # FSDP2 has gathered, and would make DCP drop optimizer state.
        frozen = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        wanted = torch.is_grad_enabled() and fake.requires_grad
        scores: list[Tensor] = []
        gradients: list[Tensor] = []
        for part in self._slices(fake.shape[0]):
            x = fake[part].detach().requires_grad_(wanted)
            score: Tensor = functional_call(self.critic, frozen, (x,))
            if wanted:
                gradients += torch.autograd.grad(score.sum(), x)
            scores.append(score.detach())
        values = torch.cat(scores)
        if not wanted:
            return values
        known: Tensor = _KnownScores.apply(values, fake, torch.cat(gradients))
        return known

    def _terms(self, fake: Tensor, real: Tensor, coefficients: Tensor) -> CriticTerms:
        wanted, count = torch.is_grad_enabled(), real.shape[0]
        parameters = list(self.critic.parameters())
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        wasserstein, penalty, norm = (real.new_zeros(()) for _ in range(3))

        def accumulate(term: Tensor) -> None:
            if wanted:
                parts = torch.autograd.grad(term / count, parameters, allow_unused=True)
                for total, part in zip(gradients, parts, strict=True):
                    if part is not None:
                        total += part

        for part in self._slices(count):
            with torch.set_grad_enabled(wanted):
                scores = self.critic(torch.cat([real[part], fake[part]]))
                difference = scores[: len(scores) // 2].sum() - scores[len(scores) // 2 :].sum()
            accumulate(-difference)
            wasserstein += difference.detach()
            del scores, difference
            norms = self._interpolate_norms(fake[part], real[part], coefficients[part], wanted and self.gp_weight != 0)
            squares = (norms - 1).square().sum()
            if self.gp_weight:
                accumulate(self.gp_weight * squares)
            penalty += squares.detach()
            norm += norms.detach().sum()
            del norms, squares
        wasserstein, penalty, norm = wasserstein / count, penalty / count, norm / count
        loss = (self.gp_weight * penalty if self.gp_weight else 0.0) - wasserstein
        if wanted:
            loss = _KnownGradient.apply(loss, len(parameters), *parameters, *gradients)
        return CriticTerms(loss, wasserstein, penalty, norm)

    def _interpolate_norms(self, fake: Tensor, real: Tensor, coefficients: Tensor, create_graph: bool) -> Tensor:
        """The norm of the critic's gradient at each sample's interpolate, (B,)."""
        weight = coefficients.view(-1, *[1] * (real.ndim - 1))
        interpolate = torch.lerp(fake, real, weight).requires_grad_()
        with torch.enable_grad():
            # The gradient of the sum holds every sample's own gradient.
            (gradient,) = torch.autograd.grad(self.critic(interpolate).sum(), interpolate, create_graph=create_graph)
            return torch.linalg.vector_norm(gradient.flatten(1), dim=1)


class _KnownGradient(torch.autograd.Function):
    """A scalar whose gradient with respect to `count` tensors is known: value, count, *tensors, *gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[count:])
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        known = ctx.saved_tensors
        return (None, None, *(upstream * gradient for gradient in known), *[None] * len(known))


class _KnownScores(torch.autograd.Function):
    """Scores (B,) of independent samples (B, ...), with the known gradient of each score at its sample."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, samples: Tensor, gradients: Tensor) -> Tensor:
        ctx.save_for_backward(gradients)
        return scores.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor, None]:
        (gradients,) = ctx.saved_tensors
        return None, upstream.view(-1, *[1] * (gradients.ndim - 1)) * gradients, None


class PretrainObjective(nn.Module):
    """Mean absolute error of (B, 1, D, H, W) estimates, in float32 or wider."""

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:
        return (at_least_float32(estimate) - at_least_float32(reference)).abs().mean()


class GeneratorObjective(nn.Module):
    """L1 + adversarial_weight * -E[D(fake)]. A CriticObjective called without `real` gives the scores."""

    def __init__(self, adversarial_weight: float = 1e-3) -> None:
        super().__init__()
        self.adversarial_weight = adversarial_weight
        self.pixel = PretrainObjective()

    def forward(self, estimate: Tensor, reference: Tensor, scores: Tensor) -> GeneratorTerms:
        """estimate, reference: (B, 1, P, P, P); scores: (B,), the critic's scores of `estimate`."""
        l1 = self.pixel(estimate, reference)
        adversarial = -at_least_float32(scores).mean()
        return GeneratorTerms(l1 + self.adversarial_weight * adversarial, l1.detach(), adversarial.detach())
