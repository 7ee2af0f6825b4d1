"""RRDBNet3D: residual-in-residual dense blocks in 3-D, the generator of ESRGAN without its upsampling.

Source: Wang et al. 2018, "ESRGAN" (arXiv 1809.00219). Input and output have the same grid here, so the first
convolution works at full resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mrisr.models.generator import Generator, GeneratorConfig
from mrisr.models.seeding import initialise, uninitialised_conv3d
from mrisr.settings import setting

SLOPE, RESIDUAL_SCALE = 0.2, 0.2


@dataclass(frozen=True)
class RRDBConfig(GeneratorConfig):
    """The defaults have 1,675,393 parameters."""

    features: int = setting(32, "channels between the blocks", gt=0, le=256)
    growth_rate: int = setting(16, "channels that each convolution of a dense block adds", gt=0, le=128)
    blocks: int = setting(3, "residual-in-residual blocks, of three dense blocks each", gt=0, le=32)


def _conv(channels_in: int, channels_out: int) -> nn.Conv3d:
    return uninitialised_conv3d(channels_in, channels_out, kernel_size=3, padding=1)


class ResidualDenseBlock(nn.Module):
    """Five convolutions. Each reads the input and all earlier outputs; the scaled result is added to the input."""

    def __init__(self, features: int, growth_rate: int) -> None:
        super().__init__()
        widths = [features + index * growth_rate for index in range(5)]
        self.convs = nn.ModuleList([*(_conv(width, growth_rate) for width in widths[:4]), _conv(widths[4], features)])

    def forward(self, x: Tensor) -> Tensor:
        whole = x
        for conv in self.convs[:4]:
            whole = torch.cat([whole, F.leaky_relu(conv(whole), SLOPE)], dim=1)
        return x + RESIDUAL_SCALE * self.convs[4](whole)


class RRDB(nn.Module):
    """Three dense blocks. Their scaled result is added to the input."""

    def __init__(self, features: int, growth_rate: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(*(ResidualDenseBlock(features, growth_rate) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL_SCALE * self.dense(x)


class RRDBNet3D(Generator):
    """The ESRGAN generator. With `recompute` each RRDB runs again in the backward pass, with equal results."""

    Config = RRDBConfig

    def __init__(self, config: RRDBConfig = RRDBConfig(), *, seed: int = 0) -> None:
        super().__init__(config)
        self.first = _conv(1, config.features)
        self.body = nn.ModuleList(RRDB(config.features, config.growth_rate) for _ in range(config.blocks))
        self.trunk = _conv(config.features, config.features)
        self.high = _conv(config.features, config.features)
        self.last = _conv(config.features, 1)
        initialise(self, seed, negative_slope=SLOPE)
        with torch.no_grad():  # the paper's small initial weights within the residual blocks
            for parameter in self.body.parameters():
                parameter.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        if self.channels_last:
            first = first.contiguous(memory_format=torch.channels_last_3d)
        features = first
        for block in self.body:
            if self.recompute and torch.is_grad_enabled():
                features = checkpoint(block, features, use_reentrant=False, preserve_rng_state=False)
            else:
                features = block(features)
        features = F.leaky_relu(self.high(first + self.trunk(features)), SLOPE)
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 has too few grey levels for an image
            return self.last(features.to(self.last.weight.dtype))

    def compilable(self) -> list[nn.Module]:
        return [part for part in self.modules() if isinstance(part, ResidualDenseBlock)]
