"""A forward pass plane by plane is the network's forward pass on the volume in one piece, on a CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mrisr.engine.plane_by_plane import forward_by_planes, longest_axis, runs_by_planes
from mrisr.models import build_generator
from mrisr.models.batchnorm import batchnorms
from mrisr.models.generator import Generator

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
# Of each kind: their layers reach 4 to 20 voxels.
SMALL: tuple[dict[str, Any], ...] = (
    {"kind": "mdcsrn", "growth_rate": 3, "blocks": 1, "units": 3},
    {"kind": "mdcsrn", "growth_rate": 2, "blocks": 3, "units": 2, "residual": True},
    {"kind": "rrdb", "features": 3, "growth_rate": 2, "blocks": 1},
)


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def _network(config: Mapping[str, Any], device: str = "cpu") -> Generator:
    """With random statistics, scales and shifts, and a last layer that is not zero."""
    network, noise = build_generator(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.normal_(0, 0.5, generator=noise)
        for norm in batchnorms(network):
            assert isinstance(norm.running_mean, Tensor)
            assert isinstance(norm.running_var, Tensor)
            norm.running_mean.normal_(0, 0.3, generator=noise)
            norm.running_var.uniform_(0.5, 2, generator=noise)
    return network.to(device)


def _volume(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def _by_planes(network: nn.Module, volume: Tensor, planes: int = 1) -> Tensor:
    """The result on the CPU, (D, H, W)."""
    with torch.no_grad():
        pieces = list(forward_by_planes(network, volume, planes))
    assert max(len(piece) for piece in pieces) <= planes
    return torch.cat(pieces).movedim(0, longest_axis(volume.shape)).float().cpu()


@torch.no_grad()
def _in_one_piece(network: nn.Module, volume: Tensor) -> Tensor:
    return network(volume.to(next(network.parameters()).device)[None, None])[0, 0].float().cpu()


def _distance(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("device", DEVICES)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=st.sampled_from(SMALL),
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    longer=st.sampled_from([(0, 0), (0, 15), (1, 15), (2, 30)]),
    planes=st.one_of(st.just(1), st.integers(1, 45)),
    layout=st.booleans(),
)
def test_the_result_is_that_of_one_piece(
    device: str, config: dict[str, Any], shape: tuple[int, ...], longer: tuple[int, int], planes: int, layout: bool
) -> None:
    """Also where the volume is smaller than the network's reach, along any axis."""
    axis, more = longer
    network, volume = _network(config, device), _volume(tuple(n + more * (axis == i) for i, n in enumerate(shape)))
    network.channels_last = layout
    assert _distance(_by_planes(network, volume, planes), _in_one_piece(network, volume)) < 1e-5


@pytest.mark.parametrize("device", DEVICES)
def test_the_published_network(device: str) -> None:
    network, volume = _network({}, device), _volume((19, 40, 22))
    network.channels_last = True
    assert _distance(_by_planes(network, volume), _in_one_piece(network, volume)) < 1e-5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", SMALL)
@pytest.mark.parametrize("layout", [False, True])
def test_bf16_is_as_near_to_fp32_as_in_one_piece(config: dict[str, Any], layout: bool, device: str) -> None:
    """Each sum over three planes is rounded twice more, to 8 bits like every other feature."""
    network, volume = _network(config, device), _volume((22, 20, 18))
    network.channels_last = layout
    full = _in_one_piece(network, volume)
    with torch.autocast(device, torch.bfloat16):
        errors = [(run(network, volume) - full).square().mean().sqrt() for run in (_by_planes, _in_one_piece)]
    assert 0 < errors[0] < 1.5 * errors[1]
    assert errors[0] < 5e-3 * full.abs().max()


class Gated(nn.Module):
    """A product of two images, a sum with itself and a scale per channel, between convolutions with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0]).view(1, 2, 1, 1, 1))
        self.first, self.gate = (nn.Conv3d(width, 2, 3, padding=1) for width in (1, 2))
        self.last = nn.Conv3d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.scale * self.first(x)
        gated = torch.sigmoid(self.gate(wide + wide)) * wide
        return x - self.last(torch.cat([gated, wide], 1))


def test_other_elementwise_functions() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Gated()
    volume = _volume((9, 5, 6))
    assert runs_by_planes(network)
    assert _distance(_by_planes(network, volume), _in_one_piece(network, volume)) < 1e-5


@pytest.mark.parametrize("config", SMALL)
def test_the_generators_run_by_planes(config: dict[str, Any]) -> None:
    assert runs_by_planes(_network(config))
    assert runs_by_planes(nn.Identity())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(1, 1, 3, padding=1, padding_mode="replicate"),
        nn.Conv3d(1, 1, 5, padding=2),
        nn.Conv3d(1, 1, 3, padding=2, dilation=2),
        nn.InstanceNorm3d(1),
        nn.Sequential(nn.AvgPool3d(2, ceil_mode=True), nn.Upsample(size=(7, 5, 6))),
        nn.MaxPool3d(3, stride=1, padding=1),
    ],
)  # fmt: skip
def test_what_mixes_planes_otherwise_does_not(layer: nn.Module) -> None:
    with torch.no_grad():
        assert not runs_by_planes(layer.eval())


def test_a_network_that_loses_planes_is_an_error() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, 1::2]

    with pytest.raises(ValueError, match="must keep the shape"):
        list(forward_by_planes(Half(), _volume((9, 5, 6))))
    with pytest.raises(ValueError, match=r"kernel \(3, 3, 3\), stride \(2, 2, 2\)"):
        list(forward_by_planes(nn.Conv3d(1, 1, 3, 2, 1), _volume((9, 5, 6))))
