"""The objectives against numbers worked out by hand, and which parameters they reach."""

import pytest
import torch
from torch import Tensor, nn

from mrisr.engine.objectives import CriticObjective, CriticTerms, GeneratorObjective, PretrainObjective
from mrisr.models import build_critic


class Linear(nn.Module):
    """D(x) = slope * sum(x): its gradient's norm is slope * sqrt(voxels), whatever the interpolation."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x.flatten(1).sum(1)


class Quadratic(nn.Module):
    """D(x) = w/2 * |x|^2: the gradient is w * x, so the penalty shows where it was taken."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, x: Tensor) -> Tensor:
        return self.w / 2 * x.flatten(1).square().sum(1)


def random_patch(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_signs_of_the_wasserstein_terms() -> None:
    real, fake = torch.full((2, 1, 2, 2, 2), 3.0), torch.full((2, 1, 2, 2, 2), 1.0)
    terms = CriticObjective(Linear(0.5), gp_weight=0.0)(fake, real, torch.tensor([0.2, 0.7]))
    assert isinstance(terms, CriticTerms)
    assert terms.wasserstein.item() == pytest.approx(0.5 * (24 - 8))  # the critic likes the real ones better
    assert terms.loss.item() == pytest.approx(-terms.wasserstein.item())  # and is rewarded for it


def test_the_penalty_has_one_norm_per_sample_over_all_its_dimensions() -> None:
    slope, side = 0.25, 4
    real, fake = random_patch(1, 3, 1, side, side, side), random_patch(2, 3, 1, side, side, side)
    terms = CriticObjective(Linear(slope), gp_weight=10.0)(fake, real, torch.tensor([0.0, 0.5, 1.0]))
    norm = slope * side**1.5
    assert terms.interpolate_gradient_norm.item() == pytest.approx(norm)
    assert terms.penalty.item() == pytest.approx((norm - 1) ** 2)
    assert terms.loss.item() == pytest.approx(10 * (norm - 1) ** 2 - terms.wasserstein.item(), rel=1e-5)


def test_the_interpolate_takes_one_given_coefficient_per_sample() -> None:
    real, fake = random_patch(3, 2, 1, 3, 3, 3), random_patch(4, 2, 1, 3, 3, 3)
    coefficients = torch.tensor([0.25, 0.9])
    objective = CriticObjective(Quadratic(2.0), gp_weight=10.0)
    terms = objective(fake, real, coefficients)
    norms = [float((2.0 * (c * r + (1 - c) * f)).norm()) for c, r, f in zip(coefficients, real, fake, strict=True)]
    assert terms.penalty.item() == pytest.approx(sum((n - 1) ** 2 for n in norms) / 2, rel=1e-5)
    # Second differentiation: with x_i the interpolates, d/dw mean (w |x_i| - 1)^2 = mean 2 (w |x_i| - 1) |x_i|.
    terms.loss.backward()
    by_hand = 10 * sum(2 * (n - 1) * n / 2.0 for n in norms) / 2
    by_hand += (fake.square().sum() - real.square().sum()).item() / 2 / 2
    assert objective.critic.w.grad.item() == pytest.approx(by_hand, rel=1e-4)


def test_the_critics_objective_reaches_no_fake_and_the_generators_no_parameter() -> None:
    objective = CriticObjective(build_critic("separable", 16, seed=1))
    fake, real = random_patch(5, 2, 1, 16, 16, 16).requires_grad_(), random_patch(6, 2, 1, 16, 16, 16)
    objective(fake, real, torch.tensor([0.5, 0.5])).loss.backward()
    assert fake.grad is None
    # Only the head's last bias has no say: it is the same for fakes and reals, and vanishes in the penalty.
    assert all(parameter.grad is not None for parameter in objective.parameters())
    objective.zero_grad(set_to_none=True)
    scores = objective(fake)
    with torch.no_grad():
        assert torch.allclose(scores, objective.critic(fake))
    GeneratorObjective(1.0)(fake, real, scores).loss.backward()
    assert fake.grad is not None
    assert all(parameter.grad is None and parameter.requires_grad for parameter in objective.parameters())


def test_the_generators_objective_rewards_high_scores() -> None:
    estimate, reference = torch.zeros(2, 1, 2, 2, 2), torch.full((2, 1, 2, 2, 2), 0.5)
    terms = GeneratorObjective(0.1)(estimate, reference, torch.tensor([4.0, 6.0]))
    assert terms.l1.item() == pytest.approx(0.5)
    assert terms.adversarial.item() == pytest.approx(-5.0)
    assert terms.loss.item() == pytest.approx(0.5 - 0.1 * 5.0)
    assert PretrainObjective()(estimate, reference).item() == pytest.approx(0.5)


def test_everything_is_float32_under_autocast() -> None:
    objective = CriticObjective(build_critic("pointwise", 16, seed=1))
    fake, real = random_patch(7, 1, 1, 16, 16, 16), random_patch(8, 1, 1, 16, 16, 16)
    plain = objective(fake, real, torch.tensor([0.3]))
    with torch.autocast("cpu", torch.bfloat16):
        cast = objective(fake, real, torch.tensor([0.3]))
        scores = objective(fake.bfloat16())
    assert torch.equal(plain.loss, cast.loss)
    assert scores.dtype is torch.float32


@pytest.mark.parametrize("at_once", [1, 2, None])
@pytest.mark.parametrize("gp_weight", [10.0, 0.0])
def test_one_term_at_a_time_gives_the_gradient_of_the_plain_formula(at_once: int | None, gp_weight: float) -> None:
    """The formula of the paper, written out and differentiated by autograd in one piece."""
    critic = build_critic("separable", 16, seed=2).double()
    fake, real = (random_patch(seed, 3, 1, 16, 16, 16).double() for seed in (9, 10))
    weight = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    mixed = torch.lerp(fake, real, weight.view(3, 1, 1, 1, 1)).requires_grad_()
    (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    loss = critic(fake).mean() - critic(real).mean() + gp_weight * penalty
    expected = torch.autograd.grad(0.5 * loss, list(critic.parameters()), allow_unused=True)

    terms = CriticObjective(critic, gp_weight, at_once)(fake, real, weight)
    (0.5 * terms.loss).backward()
    assert terms.loss.item() == pytest.approx(loss.item(), rel=1e-9)
    assert terms.penalty.item() == pytest.approx(penalty.item(), rel=1e-9)
    for parameter, gradient in zip(critic.parameters(), expected, strict=True):
        assert gradient is not None
        assert torch.allclose(parameter.grad, gradient, rtol=1e-8, atol=1e-11)

    estimate = fake.clone().requires_grad_()
    scores = CriticObjective(critic, gp_weight, at_once)(estimate)
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (found,) = torch.autograd.grad((scores * upstream).sum(), estimate)
    plain = fake.clone().requires_grad_()
    (wanted,) = torch.autograd.grad((critic(plain) * upstream).sum(), plain)
    assert torch.allclose(found, wanted, rtol=1e-8, atol=1e-12)
