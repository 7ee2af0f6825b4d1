"""Sliding-window inference: what goes in comes out, whatever the shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mrisr.inference.sliding_window import InferenceOptions, superresolve_array, window_count
from mrisr.models import MDCSRN
from mrisr.models.mdcsrn import MDCSRNConfig
from mrisr.training.validation import superresolve_cube


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _volume(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def _network() -> MDCSRN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MDCSRN(MDCSRNConfig(growth_rate=4, blocks=2, units=2))


@pytest.mark.parametrize("shape", [(33, 41, 29), (16, 16, 16), (7, 40, 5), (3, 3, 3), (50, 16, 17)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_identity_returns_the_input(shape: tuple[int, ...], overlap: float) -> None:
    volume = _volume(shape)
    calls: list[tuple[int, int]] = []
    result = superresolve_array(
        nn.Identity(),
        volume,
        InferenceOptions(16, overlap, batch_size=3),
        progress=lambda *a: calls.append(a),
    )
    assert (result.shape, result.dtype) == (shape, np.float32)
    np.testing.assert_allclose(result, volume, atol=1e-5)
    total = window_count(shape, 16, overlap)
    assert calls[-1] == (total, total)


def test_one_window_is_the_network_itself() -> None:
    network, volume = _network().eval(), _volume((12, 12, 12))
    with torch.no_grad():
        direct = network(torch.from_numpy(volume)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(superresolve_array(network, volume, InferenceOptions(patch_size=12)), direct, atol=1e-5)


def test_windows_do_not_show() -> None:
    network, volume = _network().eval(), _volume((70, 44, 61))
    with torch.no_grad():
        direct = network(torch.from_numpy(volume)[None, None])[0, 0].numpy()
    found = superresolve_array(network, volume, InferenceOptions(patch_size=40, batch_size=2))
    # The network's reach is 5 voxels; MONAI's own weights leave errors of the size of the signal here.
    assert np.abs(found - direct).max() < 0.1 * direct.std()
    assert np.abs(found - direct).mean() < 0.002 * direct.std()


def test_modes_parameters_and_random_state_are_left_alone() -> None:
    network = _network().train()
    first = next(network.children())
    first.eval()
    modes = [part.training for part in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.random.get_rng_state()
    results = [superresolve_array(network, _volume((20, 18, 17)), InferenceOptions(patch_size=12)) for _ in range(2)]
    np.testing.assert_array_equal(*results)
    assert [part.training for part in network.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


def test_whole_volumes_are_never_in_tf32() -> None:
    """Which torch allows a GPU's convolutions unless told otherwise; the setting can be read without a GPU."""
    seen: list[str] = []
    network = _network()
    network.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision))
    before = torch.backends.cudnn.allow_tf32
    superresolve_array(network, _volume((8, 8, 8)), InferenceOptions(patch_size=8))
    assert seen
    assert "tf32" not in seen
    assert torch.backends.cudnn.allow_tf32 == before


def test_modes_are_restored_after_an_error() -> None:
    network = nn.Sequential(nn.Conv3d(1, 1, 3)).train()
    with pytest.raises(ValueError, match="must keep the shape"):
        superresolve_array(network, _volume((8, 8, 8)), InferenceOptions(patch_size=8))
    assert all(part.training for part in network.modules())


@pytest.mark.parametrize("channels_last", [False, True])
def test_bf16_stays_near_fp32(channels_last: bool) -> None:
    network, volume = _network(), _volume((20, 20, 20))
    full = superresolve_array(network, volume, InferenceOptions(patch_size=16, channels_last=channels_last))
    half = superresolve_array(
        network, volume, InferenceOptions(patch_size=16, channels_last=channels_last, precision="bf16")
    )
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).max() < 0.05


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_validates_as_whole_volumes_are_evaluated(precision: str) -> None:
    """One cube in one piece is one window: a run's curve and its evaluation are figures of the same network."""
    network, cube = _network().eval(), _volume((12, 12, 12))
    network.channels_last = True
    own = superresolve_cube(network, cube, torch.device("cpu"), precision)
    assert own.dtype == np.float32
    np.testing.assert_allclose(
        own, superresolve_array(network, cube, InferenceOptions(patch_size=12, precision=precision)), atol=1e-5
    )


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"\(D, H, W\)"):
        superresolve_array(nn.Identity(), _volume((1, 8, 8, 8)))
    with pytest.raises(ValueError, match="overlap"):
        superresolve_array(nn.Identity(), _volume((8, 8, 8)), InferenceOptions(overlap=1.0))
