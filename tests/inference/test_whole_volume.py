"""One pass over a whole volume, plane by plane, is the forward pass of the network on the volume in one piece."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mrisr.engine.plane_by_plane import forward_by_planes, longest_axis, runs_by_planes
from mrisr.inference.whole_volume import InferenceOptions, superresolve_array
from mrisr.models import build_generator
from mrisr.models.batchnorm import batchnorms
from mrisr.models.generator import Generator
from mrisr.training.validation import superresolve_cube

# Of each kind: its layers reach 4 to 20 voxels.
SMALL: tuple[dict[str, Any], ...] = (
    {"kind": "mdcsrn", "growth_rate": 3, "blocks": 1, "units": 3},
    {"kind": "mdcsrn", "growth_rate": 2, "blocks": 3, "units": 2, "residual": True},
    {"kind": "rrdb", "features": 3, "growth_rate": 2, "blocks": 1},
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _volume(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def _network(config: Mapping[str, Any], seed: int = 0) -> Generator:
    """With random statistics, scales and shifts, and a last layer that is not zero."""
    network, noise = build_generator(config, seed=seed).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.normal_(0, 0.5, generator=noise)
        for norm in batchnorms(network):
            assert isinstance(norm.running_mean, Tensor)
            assert isinstance(norm.running_var, Tensor)
            norm.running_mean.normal_(0, 0.3, generator=noise)
            norm.running_var.uniform_(0.5, 2, generator=noise)
    return network


@torch.no_grad()
def _in_one_piece(network: nn.Module, volume: np.ndarray) -> np.ndarray:
    return network(torch.from_numpy(volume)[None, None])[0, 0].numpy()


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@settings(deadline=None, max_examples=40)
@given(
    config=st.sampled_from(SMALL),
    shape=st.tuples(*[st.integers(1, 13)] * 3),
    longer=st.sampled_from([(0, 0), (0, 15), (1, 15), (2, 30)]),
    layout=st.booleans(),
    seed=st.integers(0, 99),
)
def test_one_pass_is_the_network_itself(
    config: dict[str, Any], shape: tuple[int, ...], longer: tuple[int, int], layout: bool, seed: int
) -> None:
    axis, more = longer
    shape = tuple(n + more * (axis == index) for index, n in enumerate(shape))
    network, volume = _network(config, seed), _volume(shape, seed)
    found = superresolve_array(network, volume, InferenceOptions(channels_last=layout))
    assert found.dtype == np.float32
    assert _distance(found, _in_one_piece(network, volume)) < 1e-5


@settings(deadline=None, max_examples=30)
@given(
    config=st.sampled_from(SMALL),
    shape=st.tuples(st.integers(1, 30), st.integers(1, 7), st.integers(1, 7)),
    planes=st.integers(1, 31),
)
def test_any_number_of_planes_at_a_time(config: dict[str, Any], shape: tuple[int, ...], planes: int) -> None:
    network, volume = _network(config), _volume(shape)
    assert runs_by_planes(network)
    with torch.no_grad():
        pieces = list(forward_by_planes(network, torch.from_numpy(volume), planes))
    assert max(len(piece) for piece in pieces) <= planes
    found = torch.cat(pieces).movedim(0, longest_axis(shape)).numpy()
    assert _distance(found, _in_one_piece(network, volume)) < 1e-5


def test_the_published_network() -> None:
    network, volume = _network({}), _volume((19, 40, 22))
    assert _distance(superresolve_array(network, volume), _in_one_piece(network, volume)) < 1e-5


@pytest.mark.parametrize("axes", [(0, 2, 1), (1, 2, 0), (2, 1, 0)])
def test_a_turned_volume_gives_the_turned_result(axes: tuple[int, ...]) -> None:
    """By a network with turned weights, the planes of the longest axis are the same ones."""
    network, volume = _network(SMALL[0]), _volume((24, 10, 8))
    expected = superresolve_array(network, volume).transpose(axes)
    turned = _network(SMALL[0])
    for parameter in turned.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.permute(0, 1, *(2 + axis for axis in axes))
    assert _distance(superresolve_array(turned, volume.transpose(axes)), expected) < 1e-5


def test_progress_counts_planes() -> None:
    calls: list[tuple[int, int]] = []
    superresolve_array(_network(SMALL[0]), _volume((6, 9, 5)), progress=lambda *call: calls.append(call))
    assert calls == [(plane, 9) for plane in range(1, 10)]


def test_an_identity_returns_its_input() -> None:
    volume = _volume((5, 9, 4))
    np.testing.assert_array_equal(superresolve_array(nn.Identity(), volume), volume)


class PerChannel(nn.Module):
    """A product of two images, a sum with itself and a scale per channel, between convolutions with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0]).view(1, 2, 1, 1, 1))
        self.first, self.second, self.last = (
            nn.Conv3d(1, 2, 3, padding=1),
            nn.Conv3d(2, 2, 3, padding=1),
            nn.Conv3d(4, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        wide = self.scale * self.first(x)
        gate = torch.sigmoid(self.second(wide + wide))
        return x - self.last(torch.cat([gate * wide, wide], 1))


def test_a_network_of_other_elementwise_functions() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PerChannel()
    volume = _volume((9, 5, 6))
    assert runs_by_planes(network.eval())
    assert _distance(superresolve_array(network, volume), _in_one_piece(network, volume)) < 1e-5


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(1, 1, 3, padding=1, padding_mode="replicate"),
        nn.Conv3d(1, 1, 5, padding=2),
        nn.InstanceNorm3d(1),
        nn.Sequential(nn.AvgPool3d(2, ceil_mode=True), nn.Upsample(scale_factor=2)),
        nn.Sequential(nn.MaxPool3d((2, 1, 1)), nn.Upsample(scale_factor=(2, 1, 1))),
    ],
)  # fmt: skip
def test_what_cannot_run_by_planes_gets_the_volume_in_one_piece(layer: nn.Module) -> None:
    volume = _volume((10, 8, 6))
    with torch.no_grad():
        assert not runs_by_planes(layer.eval())
    assert _distance(superresolve_array(layer, volume), _in_one_piece(layer, volume)) == 0


def test_modes_parameters_and_random_state_are_left_alone() -> None:
    network = _network(SMALL[0]).train()
    next(network.children()).eval()
    modes = [part.training for part in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.random.get_rng_state()
    results = [superresolve_array(network, _volume((20, 18, 17))) for _ in range(2)]
    np.testing.assert_array_equal(*results)
    assert [part.training for part in network.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


def test_whole_volumes_are_never_in_tf32() -> None:
    """Which torch allows a GPU's convolutions unless told otherwise; the setting can be read without a GPU."""
    seen: list[str] = []
    network = _network(SMALL[0])
    network.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision))
    before = torch.backends.cudnn.allow_tf32
    superresolve_array(network, _volume((8, 8, 8)))
    assert seen
    assert "tf32" not in seen
    assert torch.backends.cudnn.allow_tf32 == before


def test_modes_are_restored_after_an_error() -> None:
    network = nn.Sequential(nn.Conv3d(1, 1, 3)).train()
    with pytest.raises(ValueError, match="must keep the shape"):
        superresolve_array(network, _volume((8, 8, 8)))
    assert all(part.training for part in network.modules())


@pytest.mark.parametrize("config", SMALL)
@pytest.mark.parametrize("layout", [False, True])
def test_bf16_is_as_near_to_fp32_as_in_one_piece(config: dict[str, Any], layout: bool) -> None:
    """Each sum of three planes is rounded twice more, to 8 bits like every other feature."""
    network, volume = _network(config), _volume((22, 20, 18))
    full = _in_one_piece(network, volume)
    half = superresolve_array(network, volume, InferenceOptions(channels_last=layout, precision="bf16"))
    with torch.autocast("cpu", torch.bfloat16):
        whole = _in_one_piece(network, volume)
    assert half.dtype == np.float32
    errors = [float(np.square(one - full).mean()) ** 0.5 for one in (half, whole)]
    assert 0 < errors[0] < 1.5 * errors[1]
    assert errors[0] < 5e-3 * np.abs(full).max()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_training_validates_as_whole_volumes_are_evaluated(precision: str, tolerance: float) -> None:
    """A run's curve and its evaluation are figures of the same network."""
    network, cube = _network(SMALL[0]), _volume((12, 12, 12))
    network.channels_last = True
    own = superresolve_cube(network, cube, torch.device("cpu"), precision)
    assert own.dtype == np.float32
    assert _distance(superresolve_array(network, cube, InferenceOptions(precision=precision)), own) < tolerance


def test_a_volume_has_three_axes() -> None:
    with pytest.raises(ValueError, match=r"\(D, H, W\)"):
        superresolve_array(nn.Identity(), _volume((1, 8, 8, 8)))
