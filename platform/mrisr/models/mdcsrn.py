"""The generator: mDCSRN, a multi-level densely connected super-resolution network.

Source: Chen et al. 2018, "Efficient and Accurate MRI Super-Resolution using a Generative Adversarial Network
and 3D Multi-Level Densely Connected Network" (arXiv 1803.01417). Layer names follow hz2538's public port, so
that its weights load.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mrisr.models.batchnorm import recomputation_contexts
from mrisr.models.seeding import initialise, uninitialised_conv3d


class PointwiseSums:
    """The 1x1x1 convolutions that read the concatenation of all parts made so far, without concatenating them.

    weights: one (C_out, C_in, 1, 1, 1) per convolution, input channels in the order of the parts; each reads as many
    leading parts as it has input channels for. A part is multiplied with its slab of every weight as soon as it exists.
    So no part is needed twice in a forward pass without gradients, and in the backward pass the gradient of a part
    arrives just before the block that made it runs, not for all parts at once (0.6 GiB less at 2 x 64^3 in float32).
    """

    def __init__(self, weights: list[Tensor]) -> None:
        self._weights, self._offset = weights, 0
        self._sums: list[Tensor | None] = [None] * len(weights)

    def add(self, part: Tensor) -> None:
        """The next part, (B, C, D, H, W)."""
        width = part.shape[1]
        for index, weight in enumerate(self._weights):
            if self._offset + width <= weight.shape[1]:
                slab = weight[:, self._offset : self._offset + width]
                last = index == len(self._weights) - 1
                product = _image(part, slab) if last else F.conv3d(part, slab)
                total = self._sums[index]
                self._sums[index] = product if total is None else total + product
        self._offset += width

    def take(self, index: int) -> Tensor:
        """Convolution `index` over all parts up to now: (B, C_out, D, H, W), as conv3d(cat(parts, 1), weight)."""
        total, self._sums[index] = self._sums[index], None
        assert total is not None
        return total


def _image(part: Tensor, weight: Tensor) -> Tensor:
    """A part's share of the output image, float32 also under autocast: bfloat16 has 128 grey levels from 1 to 2.

    Without gradients the products are float32 too; with them a float32 copy of every part would be kept for the
    backward pass, and only the sum is.
    """
    if torch.is_grad_enabled():
        product = F.conv3d(part, weight)
        return product.to(torch.promote_types(product.dtype, torch.float32))
    wide = torch.promote_types(part.dtype, torch.float32)
    with torch.autocast(part.device.type, enabled=False):
        return F.conv3d(part.to(wide), weight.to(wide))


class DenseUnit(nn.Module):
    """BatchNorm, ELU, 3x3x3 convolution without bias; its output joins its input: C -> C + growth_rate."""

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


class MDCSRN(nn.Module):
    """Maps low-resolution patches to high-resolution ones of the same shape.

    growth_rate: channels that each dense unit adds; conv0 and every block start from twice as many.
    blocks, units: dense blocks, and units in each (`b4u4` has 411,648 parameters at growth 16).
    residual: output = input + network, with a last layer that starts at zero; without it, the published
    network. seed: of the initial weights; the global random state is neither read nor changed.
    recompute: run each dense block again in the backward pass instead of keeping its inner activations (less
        memory, more time; numbers, gradients and running statistics stay the same).
    channels_last: keep activations in torch.channels_last_3d (the same numbers up to rounding).

    Input and output: (B, 1, D, H, W) float32, normalised intensities, any D, H, W.
    Raises ValueError for a width or depth below one.
    """

    def __init__(
        self,
        growth_rate: int = 16,
        blocks: int = 4,
        units: int = 4,
        residual: bool = False,
        *,
        seed: int = 0,
        recompute: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("growth_rate", growth_rate), ("blocks", blocks), ("units", units)):
            if value < 1:
                raise ValueError(f"generator.{name} is {value}; it must be 1 or more")
        self.growth_rate, self.blocks, self.units, self.residual = growth_rate, blocks, units, residual
        self.recompute, self.channels_last = recompute, channels_last
        width = 2 * growth_rate
        features = width
        self.conv0 = uninitialised_conv3d(1, width, kernel_size=3, padding=1, bias=False)
        for block in range(blocks):
            self.add_module(f"block{block}", DenseBlock(width, growth_rate, units))
            features += width + units * growth_rate
            if block < blocks - 1:
                self.add_module(f"comp{block}", uninitialised_conv3d(features, width, kernel_size=1, bias=False))
        self.recon = uninitialised_conv3d(features, 1, kernel_size=1, bias=False)
        initialise(self, seed)
        if residual:
            nn.init.zeros_(self.recon.weight)

    @property
    def config(self) -> dict[str, int | bool]:
        """The generator_config that rebuilds this architecture: `MDCSRN(**generator.config)`."""
        return {
            "growth_rate": self.growth_rate,
            "blocks": self.blocks,
            "units": self.units,
            "residual": self.residual,
        }

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv0(x)
        if self.channels_last:  # after conv0: for a single channel the two layouts cannot be told apart
            features = features.contiguous(memory_format=torch.channels_last_3d)
        names = [f"comp{block}.weight" for block in range(self.blocks - 1)]
        sums = PointwiseSums([*(self.get_parameter(name) for name in names), self.recon.weight])
        sums.add(features)
        for block in range(self.blocks):
            if block:
                features = sums.take(block - 1)
            sums.add(self._dense(self.get_submodule(f"block{block}"), features))
        out = sums.take(self.blocks - 1)
        return x + out if self.residual else out

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

    def load_reference_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the weights of hz2538's port (names conv0, block0.denselayer1.norm, ..., comp0, ..., recon),
        strictly.

        state_dict: name -> tensor; names may carry DataParallel's `module.` prefix; BatchNorm's
        `num_batches_tracked` may be absent, as in files older than PyTorch 0.4.1.
        Raises ValueError that names what is missing, unexpected or of another shape, or when this network is
        residual (the port has no path from its input to its output, so its weights would mean something else
        here).
        """
        if self.residual:
            raise ValueError(
                "reference weights belong to a network without a residual path: set generator.residual: false"
            )
        given = {name.removeprefix("module."): value for name, value in state_dict.items()}
        own = self.state_dict()
        missing = sorted(name for name in own.keys() - given.keys() if not name.endswith("num_batches_tracked"))
        unexpected = sorted(given.keys() - own.keys())
        shapes = [
            f"{name} is {tuple(given[name].shape)}, expected {tuple(own[name].shape)}"
            for name in own
            if name in given and given[name].shape != own[name].shape
        ]
        problems = [
            f"{what}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
            for what, names in (("missing", missing), ("unexpected", unexpected), ("shape", shapes))
            if names
        ]
        if problems:
            raise ValueError(
                f"the reference weights do not fit growth_rate {self.growth_rate}, blocks {self.blocks}, "
                f"units {self.units}: {'; '.join(problems)}; choose the size that the weights were trained with"
            )
        self.load_state_dict({**own, **given})
