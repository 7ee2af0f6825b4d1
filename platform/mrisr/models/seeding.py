"""Initial weights from a seed only, without reading or changing the global random state."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import skip_init


def uninitialised(kind: type[nn.Conv3d], *arguments: Any, **options: Any) -> nn.Conv3d:
    """A convolution without initial weights, for `initialise`. PyTorch would draw them from the global random state."""
    conv = skip_init(kind, *arguments, **options)
    assert isinstance(conv, kind)
    return conv


def uninitialised_conv3d(in_channels: int, out_channels: int, **options: Any) -> nn.Conv3d:
    return uninitialised(nn.Conv3d, in_channels, out_channels, **options)


def initialise(module: nn.Module, seed: int, negative_slope: float = 0.0) -> None:
    """Fill every convolution in module order: weights by He's normal distribution (fan-in), biases with zeros.

    negative_slope: of the leaky ReLU after the convolutions. Normalisation layers keep PyTorch's ones and zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, a=negative_slope, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
