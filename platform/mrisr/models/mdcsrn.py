"""The generator mDCSRN: a multi-level densely connected super-resolution network.

Source: Chen et al. 2018, "Efficient and Accurate MRI Super-Resolution using a Generative Adversarial Network and 3D
Multi-Level Densely Connected Network" (arXiv 1803.01417). Layer names are those of hz2538's public port.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mrisr.models.batchnorm import recomputation_contexts
from mrisr.models.generator import Generator, GeneratorConfig
from mrisr.models.seeding import initialise, uninitialised_conv3d
from mrisr.settings import setting


class PointwiseSums:
    """1x1x1 convolutions over the concatenation of parts, computed part by part without the concatenation.

    weights: one (C_out, C_in, 1, 1, 1) per convolution. A convolution reads the first parts, up to C_in channels. `add`
    multiplies a part with its slice of every weight and adds the products to the sums. This saves memory: without
    gradients a part is free after `add`. With gradients, a part's gradient is computed just before the backward of its
    block, so the gradients of all parts do not exist at once (0.6 GiB less at 2 x 64^3, float32).
    """

    def __init__(self, weights: list[Tensor]) -> None:
        self._weights, self._offset = weights, 0
        self._sums: list[Tensor | None] = [None] * len(weights)

    def add(self, part: Tensor) -> None:
        """Add the next part, (B, C, D, H, W)."""
        width = part.shape[1]
        for index, weight in enumerate(self._weights):
            if self._offset + width <= weight.shape[1]:
                own = weight[:, self._offset : self._offset + width]
                last = index == len(self._weights) - 1
                product = _image(part, own) if last else F.conv3d(part, own)
                total = self._sums[index]
                self._sums[index] = product if total is None else total + product
        self._offset += width

    def take(self, index: int) -> Tensor:
        """The result of convolution `index`, (B, C_out, D, H, W): conv3d(cat(its parts, 1), weight)."""
        total, self._sums[index] = self._sums[index], None
        assert total is not None
        return total


def _image(part: Tensor, weight: Tensor) -> Tensor:
    """A part's term of the output image, in float32 also under autocast: bfloat16 has 128 grey levels from 1 to 2.

    Without gradients the product is computed in float32. With gradients only the result is converted, because the
    backward pass would otherwise keep a float32 copy of every part.
    """
    if torch.is_grad_enabled():
        product = F.conv3d(part, weight)
        return product.to(torch.promote_types(product.dtype, torch.float32))
    wide = torch.promote_types(part.dtype, torch.float32)
    with torch.autocast(part.device.type, enabled=False):
        return F.conv3d(part.to(wide), weight.to(wide))


class DenseUnit(nn.Module):
    """BatchNorm, ELU, 3x3x3 convolution without bias. Concatenates output and input: C -> C + growth_rate channels."""

    def __init__(self, channels: int, growth_rate: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(channels)
        self.conv = uninitialised_conv3d(channels, growth_rate, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.elu(self.norm(x), inplace=True))], dim=1)


class DenseBlock(nn.Sequential):
    """`units` dense units in a row: C -> C + units * growth channels."""

    def __init__(self, channels: int, growth_rate: int, units: int) -> None:
        super().__init__()
        for unit in range(units):
            self.add_module(f"denselayer{unit + 1}", DenseUnit(channels + unit * growth_rate, growth_rate))


@dataclass(frozen=True)
class MDCSRNConfig(GeneratorConfig):
    """`b4u4` with growth 16 is the published network, 411,648 parameters."""

    growth_rate: int = setting(
        16, "channels that each dense unit adds; a block starts from twice as many", gt=0, le=128
    )
    blocks: int = setting(4, "dense blocks", gt=0, le=16)
    units: int = setting(4, "dense units per block", gt=0, le=16)
    residual: bool = setting(False, "output = input + network, last layer initialised to zero")


class MDCSRN(Generator):
    """The published network; residual=True starts as the identity. `recompute` repeats whole dense blocks."""

    Config = MDCSRNConfig
    config: MDCSRNConfig

    def __init__(self, config: MDCSRNConfig = MDCSRNConfig(), *, seed: int = 0) -> None:
        super().__init__(config)
        width = 2 * config.growth_rate
        features = width
        self.conv0 = uninitialised_conv3d(1, width, kernel_size=3, padding=1, bias=False)
        for block in range(config.blocks):
            self.add_module(f"block{block}", DenseBlock(width, config.growth_rate, config.units))
            features += width + config.units * config.growth_rate
            if block < config.blocks - 1:
                self.add_module(f"comp{block}", uninitialised_conv3d(features, width, kernel_size=1, bias=False))
        self.recon = uninitialised_conv3d(features, 1, kernel_size=1, bias=False)
        initialise(self, seed)
        if config.residual:
            nn.init.zeros_(self.recon.weight)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv0(x)
        if self.channels_last:  # after conv0: with a single channel both layouts have the same strides
            features = features.contiguous(memory_format=torch.channels_last_3d)
        blocks = self.config.blocks
        compressors = [self.get_parameter(f"comp{block}.weight") for block in range(blocks - 1)]
        sums = PointwiseSums([*compressors, self.recon.weight])
        sums.add(features)
        for block in range(blocks):
            if block:
                features = sums.take(block - 1)
            sums.add(self._dense(self.get_submodule(f"block{block}"), features))
        out = sums.take(blocks - 1)
        return x + out if self.config.residual else out

    def _dense(self, block: nn.Module, features: Tensor) -> Tensor:
        if not (self.recompute and torch.is_grad_enabled()):
            return block(features)
        return checkpoint(
            block,
            features,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: recomputation_contexts(block),
        )

    def compilable(self) -> list[nn.Module]:
        """The dense units. Recomputation works on whole blocks, so compiling does not affect it."""
        return [part for part in self.modules() if isinstance(part, DenseUnit)]

    def load_reference_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the weights of hz2538's port. Raises ValueError for a residual network: the port has no such path."""
        if self.config.residual:
            raise ValueError(
                "reference weights belong to a network without a residual path: set generator.residual: false"
            )
        super().load_reference_state_dict(state_dict)
