"""Depthwise 3-D convolution whose derivatives of any order are single convolutions.

torch computes the second derivative of a grouped convolution with one small convolution per channel: 1,408 of them in
each pass of the separable critic's penalty. The three maps here are bilinear, and the derivatives of each are the other
two, so no derivative needs a loop.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mrisr.models.torch_private import wanted_gradients

_THREE_ZEROS, _NO_DILATION = [0, 0, 0], [1, 1, 1]


class DepthwiseConv3d(nn.Conv3d):
    """One 3x3x3 filter per channel, zero padding of one voxel, no bias. The state_dict equals that of such an
    nn.Conv3d.

    Input (B, C, D, H, W), output (B, C, ceil(D / stride), ...). Input and weight must have the same precision, and the
    output has it too; autocast has no effect. It supports torch.autograd, but not torch.func.
    """

    def __init__(
        self,
        channels: int,
        stride: int = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, channels, 3, stride, 1, groups=channels, bias=False, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = _Convolution.apply(input, self.weight, self.stride[0])
        return output


def _backward(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, wanted: int) -> Tensor:
    """The convolution's gradient with respect to its input (wanted 0) or weight (1)."""
    mask = [wanted == 0, wanted == 1, False]
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [stride] * 3, [1] * 3, _NO_DILATION, False, _THREE_ZEROS, weight.shape[0], mask
    )[wanted]
    return found


class _Convolution(torch.autograd.Function):
    """(x, w) -> x * w"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        with torch.autocast(x.device.type, enabled=False):
            return functional.conv3d(x, weight, stride=stride, padding=1, groups=weight.shape[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = wanted_gradients(ctx, 0, 1)
        return (
            _InputGradient.apply(gradient, x.detach(), weight, ctx.stride) if of_x else None,
            _WeightGradient.apply(gradient, x, weight.detach(), ctx.stride) if of_weight else None,
            None,
        )


class _InputGradient(torch.autograd.Function):
    """(g, w) -> g * w transposed, the gradient with respect to x; it reads only the shape of x."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(gradient, weight)
        ctx.stride = stride
        return _backward(gradient, x, weight, stride, 0)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        gradient, weight = ctx.saved_tensors
        of_gradient, of_weight = wanted_gradients(ctx, 0, 2)
        return (
            _Convolution.apply(upstream, weight, ctx.stride) if of_gradient else None,
            None,
            _WeightGradient.apply(gradient, upstream, weight.detach(), ctx.stride) if of_weight else None,
            None,
        )


class _WeightGradient(torch.autograd.Function):
    """(g, x) -> the gradient with respect to w; it reads only the shape of w."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(gradient, x)
        ctx.stride = stride
        return _backward(gradient, x, weight, stride, 1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        gradient, x = ctx.saved_tensors
        of_gradient, of_x = wanted_gradients(ctx, 0, 1)
        return (
            _Convolution.apply(x, upstream, ctx.stride) if of_gradient else None,
            _InputGradient.apply(gradient, x.detach(), upstream, ctx.stride) if of_x else None,
            None,
            None,
        )
