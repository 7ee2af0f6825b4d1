"""RRDBNet3D joins by its file and one table entry; what reads the table follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mrisr.config import ConfigError, load_experiment
from mrisr.config.networks import DEFAULT_GENERATOR as CONFIGURED
from mrisr.engine.compiling import compile_generator, different_units
from mrisr.engine.memory import MemorySettings, peak_bytes
from mrisr.engine.step_settings import StepConfig
from mrisr.inference.whole_volume import superresolve_array
from mrisr.models import DEFAULT_GENERATOR, build_generator, complete_config
from mrisr.models.rrdb import RRDBConfig, RRDBNet3D
from mrisr.models.weights import read_weights_file, trained_generator, write_weights

SMALL = {"kind": "rrdb", "features": 4, "growth_rate": 2, "blocks": 1}


@pytest.mark.parametrize("config", [RRDBConfig(), RRDBConfig(8, 4, 2)])
def test_parameter_count_is_exact(config: RRDBConfig) -> None:
    f, g = config.features, config.growth_rate
    dense = 27 * g * (4 * f + 6 * g) + 4 * g + 27 * f * (f + 4 * g) + f
    expected = 28 * f + 3 * config.blocks * dense + 2 * (27 * f * f + f) + 27 * f + 1
    assert sum(parameter.numel() for parameter in RRDBNet3D(config).parameters()) == expected
    assert config != RRDBConfig() or expected == 1_675_393


def test_recomputation_and_layout_change_nothing_and_seeds_decide() -> None:
    x = torch.rand(1, 1, 8, 9, 10, generator=torch.Generator().manual_seed(0))
    before = torch.random.get_rng_state()
    plain, other, again = (build_generator(SMALL, seed=seed) for seed in (1, 2, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    again.recompute = again.channels_last = True
    for network in (plain, other, again):
        network(x).square().mean().backward()
    for first, second, third in zip(plain.parameters(), again.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad)
        assert not first.ndim > 1 or not torch.equal(first, third)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert plain(x).dtype == torch.float32


def test_it_compiles_and_its_memory_is_estimated() -> None:
    generator = build_generator(SMALL, seed=1)
    assert different_units(generator) == 1
    assert compile_generator(generator, 1, 8, "fp32", backend="aot_eager") is not None
    kept, again = (
        peak_bytes(MemorySettings({**SMALL, "blocks": 3}, None, 32, StepConfig(recompute=recompute)))["pretrain"]
        for recompute in (False, True)
    )
    assert again < 0.8 * kept


def test_weights_files_carry_the_kind_and_whole_volumes_pass(tmp_path: Path) -> None:
    generator = build_generator(SMALL, seed=3)
    weights, _ = write_weights(tmp_path, SMALL, generator.state_dict())
    config, state = read_weights_file(weights)
    assert config == SMALL
    loaded = trained_generator(config, state)
    volume = np.random.default_rng(0).random((18, 17, 20)).astype(np.float32)
    outputs = [superresolve_array(one, volume) for one in (generator, loaded)]
    assert outputs[0].shape == volume.shape
    np.testing.assert_array_equal(*outputs)
    with pytest.raises(
        ValueError, match=r"do not fit RRDBConfig\(features=5.*first.weight is \(4, 1, 3, 3, 3\), expected"
    ):
        trained_generator({**SMALL, "features": 5}, state)


def test_the_keys_of_the_section_are_those_of_the_kind() -> None:
    assert CONFIGURED == DEFAULT_GENERATOR, "files without a kind mean what a configuration without one means"
    found = load_experiment(None, ["generator.kind=rrdb", "generator.features=8"])
    assert found.generator.architecture == {"kind": "rrdb", "features": 8, "growth_rate": 16, "blocks": 3}
    assert complete_config({"growth_rate": 4}) == {
        "kind": "mdcsrn", "growth_rate": 4, "blocks": 4, "units": 4, "residual": False,
    }  # fmt: skip
    for overrides, words in (
        (
            ["generator.kind=rrdb", "generator.units=3"],
            r"generator.units = 3: is a key of mdcsrn, not .*'rrdb'",
        ),
        (["generator.features=8"], r"generator.features = 8: is a key of rrdb, not .* leave it out"),
        (["generator.kind=rrdb", "generator.features=0"], r"generator.features = 0: .*greater than 0"),
        (["generator.kind=unet"], r"generator.kind = 'unet': unknown kind of generator; use one of mdcsrn, rrdb"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_experiment(None, overrides)
