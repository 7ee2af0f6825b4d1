"""The critics of the Wasserstein GAN: SRGAN-like pyramids that score a patch.

They have no BatchNorm: it mixes the samples of a batch, but the gradient penalty is defined for single samples.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from mrisr.models.depthwise import DepthwiseConv3d
from mrisr.models.seeding import initialise, uninitialised, uninitialised_conv3d

SLOPE = 0.2
#: (channels in, channels out, stride) of the layers between the first convolution and the head, in units of the width.
LAYERS = ((1, 1, 2), (1, 2, 1), (2, 2, 2), (2, 4, 1), (4, 4, 2), (4, 8, 1), (8, 8, 2))
#: Channels of the first convolution in the published critic.
WIDTH = 64


class Critic(nn.Module):
    """Scores patches: the more a patch looks like a real high-resolution one, the higher its score.

    Input (B, 1, P, P, P) float32, output (B,); samples do not influence each other's scores. A subclass is built as
    `Class(patch_size, width, seed=0)`, with `width` channels in its first convolution; its initial weights depend on
    the seed only.
    """

    least_patch: ClassVar[int] = 1
    patch_multiple: ClassVar[int] = 1

    @classmethod
    def unmet_patch_rule(cls, patch_size: int) -> str | None:
        """The rule for patch sizes, such as `a multiple of 16`, if this size breaks it; else None."""
        if patch_size >= cls.least_patch and patch_size % cls.patch_multiple == 0:
            return None
        return f"a multiple of {cls.patch_multiple}" if cls.patch_multiple > 1 else f"{cls.least_patch} or more"

    def __init__(self, patch_size: int, width: int = WIDTH, *, seed: int = 0) -> None:
        super().__init__()
        self.patch_size = patch_size


class _Pyramid(Critic):
    """Convolutions that halve a patch four times, then a head of 1x1x1 convolutions over the global average."""

    least_patch = 16

    def __init__(self, patch_size: int, width: int = WIDTH, *, seed: int = 0) -> None:
        super().__init__(patch_size)
        layers: list[nn.Module] = [uninitialised_conv3d(1, width, kernel_size=3, padding=1), nn.LeakyReLU(SLOPE)]
        side = patch_size
        for channels_in, channels_out, stride in LAYERS:
            side //= stride
            layers += [
                *self._convolutions(width * channels_in, width * channels_out, stride),
                self._norm(width * channels_out, side),
                nn.LeakyReLU(SLOPE),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool3d(1),
            uninitialised_conv3d(8 * width, 16 * width, kernel_size=1),
            nn.LeakyReLU(SLOPE),
            uninitialised_conv3d(16 * width, 1, kernel_size=1),
        )
        initialise(self, seed, negative_slope=SLOPE)

    @abstractmethod
    def _convolutions(self, channels_in: int, channels_out: int, stride: int) -> list[nn.Module]:
        """The convolutions of one layer."""

    def _norm(self, channels: int, side: int) -> nn.Module:
        return nn.LayerNorm([channels, side, side, side])

    def _check(self, size: tuple[int, ...]) -> None:
        if size != (self.patch_size,) * 3:
            raise ValueError(
                f"the critic was built for patches of {(self.patch_size,) * 3} and got {size}: its LayerNorm has one "
                "weight per voxel; build it with this patch_size, or choose critic.kind = separable"
            )

    def forward(self, x: Tensor) -> Tensor:
        self._check(tuple(x.shape[2:]))
        return self.head(self.features(x)).flatten()


class FullCritic(_Pyramid):
    """3x3x3 convolutions, LayerNorm over (C, D, H, W); 31,155,777 parameters at 64^3. Takes only P = patch_size."""

    patch_multiple = 16

    def _convolutions(self, channels_in: int, channels_out: int, stride: int) -> list[nn.Module]:
        return [uninitialised_conv3d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1)]


class PointwiseCritic(_Pyramid):
    """The critic of the project report: inner convolutions 1x1x1 without bias. Takes only P = patch_size.

    LayerNorm's affine per voxel has 16,580,608 of the 17,628,929 parameters. Strided convolutions read one of eight
    voxels.
    """

    patch_multiple = 16

    def _convolutions(self, channels_in: int, channels_out: int, stride: int) -> list[nn.Module]:
        return [uninitialised_conv3d(channels_in, channels_out, kernel_size=1, stride=stride, bias=False)]


class SeparableCritic(_Pyramid):
    """Depthwise 3x3x3 and pointwise convolutions; 1,090,049 parameters. Works with any patch size from 16 on."""

    def _convolutions(self, channels_in: int, channels_out: int, stride: int) -> list[nn.Module]:
        # No biases: the following normalisation has its own.
        return [
            uninitialised(DepthwiseConv3d, channels_in, stride=stride),
            uninitialised_conv3d(channels_in, channels_out, kernel_size=1, bias=False),
        ]

    def _norm(self, channels: int, side: int) -> nn.Module:
        return nn.GroupNorm(1, channels)

    def _check(self, size: tuple[int, ...]) -> None:
        if min(size) < self.least_patch:
            raise ValueError(f"the separable critic needs patches of {self.least_patch} or more, and got {size}")
