"""One pass over a whole volume, plane by plane, is the forward pass of the network on the volume in one piece."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mrisr.engine.plane_by_plane import runs_by_planes
from mrisr.inference.whole_volume import InferenceOptions, superresolve_array
from mrisr.models import build_generator
from mrisr.training.validation import superresolve_cube


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


SMALL = {"growth_rate": 3, "blocks": 2, "units": 2, "residual": False}


def _volume(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@torch.no_grad()
def _in_one_piece(network: nn.Module, volume: np.ndarray) -> np.ndarray:
    return network(torch.from_numpy(volume)[None, None])[0, 0].numpy()


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("shape", [(25, 9, 8), (4, 5, 3), (8, 7, 21)])
@pytest.mark.parametrize("layout", [False, True])
def test_one_pass_is_the_network_itself(shape: tuple[int, ...], layout: bool) -> None:
    network, volume = build_generator(SMALL).eval(), _volume(shape)
    found = superresolve_array(network, volume, InferenceOptions(channels_last=layout))
    assert found.dtype == np.float32
    assert _distance(found, _in_one_piece(network, volume)) < 1e-5


@pytest.mark.parametrize("axes", [(0, 2, 1), (1, 2, 0), (2, 1, 0)])
def test_a_turned_volume_gives_the_turned_result(axes: tuple[int, ...]) -> None:
    """By a network with turned weights, the planes of the longest axis are the same ones."""
    network, volume = build_generator(SMALL).eval(), _volume((24, 10, 8))
    expected = superresolve_array(network, volume).transpose(axes)
    turned = build_generator(SMALL).eval()
    for parameter in turned.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.permute(0, 1, *(2 + axis for axis in axes))
    assert _distance(superresolve_array(turned, volume.transpose(axes)), expected) < 1e-5


def test_progress_counts_planes() -> None:
    calls: list[tuple[int, int]] = []
    superresolve_array(build_generator(SMALL).eval(), _volume((6, 9, 5)), progress=lambda *call: calls.append(call))
    assert calls == [(plane, 9) for plane in range(1, 10)]


def test_an_identity_returns_its_input() -> None:
    volume = _volume((5, 9, 4))
    np.testing.assert_array_equal(superresolve_array(nn.Identity(), volume), volume)


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
    network = build_generator(SMALL).eval().train()
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
    network = build_generator(SMALL).eval()
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


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_training_validates_as_whole_volumes_are_evaluated(precision: str, tolerance: float) -> None:
    """A run's curve and its evaluation are figures of the same network."""
    network, cube = build_generator(SMALL).eval(), _volume((12, 12, 12))
    network.channels_last = True
    own = superresolve_cube(network, cube, torch.device("cpu"), precision)
    assert own.dtype == np.float32
    assert _distance(superresolve_array(network, cube, InferenceOptions(precision=precision)), own) < tolerance


def test_a_volume_has_three_axes() -> None:
    with pytest.raises(ValueError, match=r"\(D, H, W\)"):
        superresolve_array(nn.Identity(), _volume((1, 8, 8, 8)))
