"""The depthwise convolution against torch's own, in value and in first and second derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from mrisr.models.depthwise import DepthwiseConv3d

CASES = pytest.mark.parametrize(("stride", "side"), [(1, 5), (2, 6), (2, 7)])


def pair(channels: int, stride: int) -> tuple[DepthwiseConv3d, nn.Conv3d]:
    ours = DepthwiseConv3d(channels, stride, dtype=torch.float64)
    plain = nn.Conv3d(channels, channels, 3, stride, 1, groups=channels, bias=False, dtype=torch.float64)
    weight = torch.randn(channels, 1, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for module in (ours, plain):
        module.load_state_dict({"weight": weight})
    return ours, plain


def sample(channels: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, channels, side, side + 1, side, dtype=torch.float64, generator=generator).requires_grad_()


def penalty_gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The value, and the first and second derivatives of what a gradient penalty differentiates."""
    y = module(x)
    (slope,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    return [y, slope, *torch.autograd.grad(slope.square().sum(), [x, *module.parameters()])]


@CASES
def test_it_is_torchs_own_convolution_and_so_are_its_derivatives(stride: int, side: int) -> None:
    ours, plain = pair(3, stride)
    found, expected = (penalty_gradients(module, sample(3, side)) for module in (ours, plain))
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-10)


@CASES
def test_derivatives_are_those_of_finite_differences(stride: int, side: int) -> None:
    ours, _ = pair(2, stride)
    x, weight = sample(2, side), ours.weight.detach().requires_grad_()

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(ours, {"weight": weight}, (x,))

    assert gradcheck(convolve, (x, weight), fast_mode=True)
    assert gradgradcheck(convolve, (x, weight), fast_mode=True)


class Convolutions(TorchDispatchMode):
    """Notes the convolutions that run, backward ones by what they make: the gradient of the input or of the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[str] = []

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        if "convolution_backward" in str(func):
            self.ran += [what for what, made in zip(("input", "weight"), args[-1], strict=False) if made]
        elif "convolution" in str(func):
            self.ran.append("forward")
        return func(*args, **(kwargs or {}))  # type: ignore[operator]


def test_the_number_of_convolutions_does_not_depend_on_the_channels() -> None:
    ran = []
    for channels in (2, 16):
        with Convolutions() as convolutions:
            penalty_gradients(pair(channels, 1)[0], sample(channels, 5))
        ran.append(convolutions.ran)
    assert ran[0] == ran[1]


@pytest.mark.parametrize("leaf", [True, False])
def test_only_what_is_asked_for_is_computed(leaf: bool) -> None:
    """As torch's own does: the first differentiation of a penalty wants no weight's gradient."""
    for layer in pair(2, 1):
        x = sample(2, 6)
        net = nn.Sequential(layer, nn.GroupNorm(1, 2, dtype=torch.float64), layer)
        inner = x if leaf else x.sin()
        y = net(inner).square().sum()
        with Convolutions() as first:
            (slope,) = torch.autograd.grad(y, inner, create_graph=True)
        assert first.ran == ["input", "input"]
        with Convolutions() as alone:
            torch.autograd.grad(y, layer.weight, retain_graph=True)
        assert sorted(alone.ran) == ["input", "weight", "weight"]
        slope.square().sum().backward()
        assert layer.weight.grad is not None


def test_autocast_does_not_reach_any_derivative() -> None:
    ours, _ = pair(3, 1)
    ours.float()
    plain, cast = (sample(3, 6).detach().float().requires_grad_() for _ in range(2))
    expected = penalty_gradients(ours, plain)
    with torch.autocast("cpu", torch.bfloat16):
        found = penalty_gradients(ours, cast)
    for own, other in zip(found, expected, strict=True):
        assert torch.equal(own, other)
