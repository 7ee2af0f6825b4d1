"""The critics: their sizes, what they can see, and that no sample touches another."""

import pytest
import torch
from torch import Tensor, nn

from mrisr.models import CRITICS, build_critic

KINDS = tuple(CRITICS)


def random_patch(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_are_exact() -> None:
    full, pointwise, separable = (build_critic(kind) for kind in KINDS)
    assert count(full) == 31_155_777
    assert count(pointwise) == 17_628_929
    assert sum(count(part) for part in pointwise.modules() if isinstance(part, nn.LayerNorm)) == 16_580_608
    assert count(separable) == 1_090_049 <= 1_200_000


def test_the_width_scales_every_layer() -> None:
    """Biases and affine parameters grow linearly with the width, the products of two layers with its square."""
    for kind in KINDS:
        narrow, wide = (build_critic(kind, 16, width) for width in (8, 16))
        grown = [b.numel() / a.numel() for a, b in zip(narrow.parameters(), wide.parameters(), strict=True)]
        assert set(grown) == {1, 2, 4}  # 1: the bias of the score
        assert narrow(torch.zeros(2, 1, 16, 16, 16)).shape == (2,)


def test_separable_has_one_set_of_weights_for_every_patch_size() -> None:
    small, large = build_critic("separable", 16, seed=3), build_critic("separable", 40, seed=3)
    small.load_state_dict(large.state_dict())
    with torch.no_grad():
        for side in (16, 19, 24):
            assert small(random_patch(1, 2, 1, side, side, side)).shape == (2,)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_scored_alone(kind: str) -> None:
    critic = build_critic(kind, 16)
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in critic.modules())
    batch = random_patch(2, 3, 1, 16, 16, 16)
    with torch.no_grad():
        together, alone = critic(batch), torch.cat([critic(sample[None]) for sample in batch])
    assert together.shape == (3,)
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-6)


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(("kind", "share"), [("full", 1.0), ("separable", 1.0), ("pointwise", 27 / 4096)])
def test_share_of_voxels_that_reach_the_score_through_convolutions(kind: str, share: float) -> None:
    side = 16 if kind == "full" else 32
    critic = build_critic(kind, side)
    for index, layer in enumerate(critic.features):
        if isinstance(layer, (nn.LayerNorm, nn.GroupNorm)):  # their means tie every voxel to every other
            critic.features[index] = Identity()
    x = random_patch(3, 1, 1, side, side, side).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x)
    inner = gradient[..., 15:, 15:, 15:] if kind == "pointwise" else gradient  # one whole period and its halo
    seen = (inner[..., :16, :16, :16] != 0).float().mean().item()
    assert seen == pytest.approx(share)


@pytest.mark.parametrize("kind", ["full", "pointwise"])
def test_another_patch_size_is_an_error_that_names_it(kind: str) -> None:
    with pytest.raises(ValueError, match=r"patch_size is 40; .* multiple of 16"):
        build_critic(kind, 40)
    with pytest.raises(ValueError, match=r"patches of \(16, 16, 16\) and got \(32, 32, 32\)"):
        build_critic(kind, 16)(torch.zeros(1, 1, 32, 32, 32))


def test_bad_arguments_are_errors() -> None:
    with pytest.raises(ValueError, match=r"critic\.kind is 'patchgan'"):
        build_critic("patchgan")
    with pytest.raises(ValueError, match="patch_size is 8; the separable critic needs 16 or more"):
        build_critic("separable", 8)
    with pytest.raises(ValueError, match=r"16 or more, and got \(8, 8, 8\)"):
        build_critic("separable", 16)(torch.zeros(1, 1, 8, 8, 8))


def test_construction_is_seeded_and_leaves_the_global_state() -> None:
    before = torch.random.get_rng_state()
    first, second = build_critic("separable", 16, seed=1), build_critic("separable", 16, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
