"""The critics of the Wasserstein GAN: SRGAN-like pyramids that score a patch.

None of them has BatchNorm: the gradient penalty is a statement about single samples, and BatchNorm couples
them.
"""

from __future__ import annotations

from torch import Tensor, nn

from mrisr.models.depthwise import DepthwiseConv3d
from mrisr.models.seeding import initialise, uninitialised, uninitialised_conv3d

KINDS = ("full", "pointwise", "separable")
SLOPE = 0.2
#: (channels in, channels out, stride) of the layers between the first convolution and the head.
LAYERS = (
    (64, 64, 2),
    (64, 128, 1),
    (128, 128, 2),
    (128, 256, 1),
    (256, 256, 2),
    (256, 512, 1),
    (512, 512, 2),
)
DOWNSCALE = 16


class Critic(nn.Module):
    """A score for each patch: the higher, the more like a real high-resolution one.

    kind `full`: 3x3x3 convolutions, LayerNorm over (C, D, H, W); 31,155,777 parameters at 64^3.
    kind `pointwise`: as the project report built it, inner convolutions 1x1x1 without bias; 17,628,929
        parameters, of which LayerNorm's per-voxel affine 16,580,608. Its strided 1x1x1 convolutions skip 7 of
        8 voxels each.
    kind `separable`: a depthwise 3x3x3 and a pointwise convolution per layer, one affine pair per channel:
        every voxel reaches the score through its neighbourhood, and one set of weights serves any patch size
        from 16 on.
    seed: of the initial weights; the global random state is neither read nor changed.

    Input (B, 1, P, P, P) float32; output (B,). `full` and `pointwise` take only P = patch_size, a multiple of
    16. Raises ValueError for an unknown kind, or a patch size that the kind cannot take.
    """

    def __init__(self, kind: str, patch_size: int = 64, *, seed: int = 0) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"critic.kind is {kind!r}; choose one of {', '.join(KINDS)}")
        if patch_size < DOWNSCALE or (kind != "separable" and patch_size % DOWNSCALE):
            rule = f"{DOWNSCALE} or more" if kind == "separable" else f"a multiple of {DOWNSCALE}"
            raise ValueError(f"patch_size is {patch_size}; the {kind} critic needs {rule}")
        self.kind, self.patch_size = kind, patch_size
        layers: list[nn.Module] = [uninitialised_conv3d(1, 64, kernel_size=3, padding=1), nn.LeakyReLU(SLOPE)]
        side = patch_size
        for wide_in, wide_out, stride in LAYERS:
            side //= stride
            layers += [
                *self._convolutions(wide_in, wide_out, stride),
                self._norm(wide_out, side),
                nn.LeakyReLU(SLOPE),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool3d(1),
            uninitialised_conv3d(512, 1024, kernel_size=1),
            nn.LeakyReLU(SLOPE),
            uninitialised_conv3d(1024, 1, kernel_size=1),
        )
        initialise(self, seed, negative_slope=SLOPE)

    def _convolutions(self, wide_in: int, wide_out: int, stride: int) -> list[nn.Module]:
        if self.kind == "full":
            return [uninitialised_conv3d(wide_in, wide_out, kernel_size=3, stride=stride, padding=1)]
        if self.kind == "pointwise":
            return [uninitialised_conv3d(wide_in, wide_out, kernel_size=1, stride=stride, bias=False)]
        # No biases: the normalisation behind them has its own.
        return [
            uninitialised(DepthwiseConv3d, wide_in, stride=stride),
            uninitialised_conv3d(wide_in, wide_out, kernel_size=1, bias=False),
        ]

    def _norm(self, channels: int, side: int) -> nn.Module:
        if self.kind == "separable":
            return nn.GroupNorm(1, channels)
        return nn.LayerNorm([channels, side, side, side])

    def forward(self, x: Tensor) -> Tensor:
        expected = (self.patch_size,) * 3
        if self.kind != "separable" and tuple(x.shape[2:]) != expected:
            raise ValueError(
                f"the {self.kind} critic was built for patches of {expected} and got {tuple(x.shape[2:])}: "
                f"its LayerNorm has one weight per voxel; build it with this patch_size, or choose `separable`"
            )
        if min(x.shape[2:]) < DOWNSCALE:
            raise ValueError(f"the separable critic needs patches of {DOWNSCALE} or more, and got {tuple(x.shape[2:])}")
        return self.head(self.features(x)).flatten()


def build_critic(kind: str, patch_size: int = 64, *, seed: int = 0) -> Critic:
    """The critic of that kind (full, pointwise, separable) for patches of patch_size^3; see `Critic`."""
    return Critic(kind, patch_size, seed=seed)
