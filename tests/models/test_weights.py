"""Weights files are told apart by their content, whatever their name."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from mrisr.config import ConfigError, load_experiment
from mrisr.inference.model import load_model
from mrisr.models import GENERATORS, MDCSRN, build_generator
from mrisr.models.mdcsrn import MDCSRNConfig
from mrisr.models.weights import read_weights_file, write_weights
from mrisr.training.warm_start import read_initial_weights

CONFIG = {"growth_rate": 2, "blocks": 2, "units": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One state dict in every format, in files whose names say nothing or the wrong thing."""
    folder = tmp_path_factory.mktemp("weights")
    state = MDCSRN(MDCSRNConfig(**CONFIG), seed=3).state_dict()
    found = {
        "zip": folder / "pretrained_G_step250000",
        "legacy": folder / "G.safetensors",
        "safetensors": folder / "weights.2026.pth",
    }
    torch.save(state, found["zip"])
    torch.save(state, found["legacy"], _use_new_zipfile_serialization=False)
    shutil.move(write_weights(folder, CONFIG, state)[0], found["safetensors"])
    (folder / "generator.json").unlink()
    return found


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_the_content_decides(form: str, files: dict[str, Path]) -> None:
    config, state = read_weights_file(files[form])
    assert config == (CONFIG if form == "safetensors" else None)
    for key, value in MDCSRN(MDCSRNConfig(**CONFIG), seed=3).state_dict().items():
        assert torch.equal(state[key], value)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_run_starts_from_a_file_of_any_name(form: str, files: dict[str, Path]) -> None:
    experiment = load_experiment(None, [f"generator.{key}={value}" for key, value in CONFIG.items()])
    state = read_initial_weights(experiment, str(files[form]), "").state
    for key, value in MDCSRN(MDCSRNConfig(**CONFIG), seed=3).state_dict().items():
        np.testing.assert_array_equal(state[key], value)


def test_the_published_network_is_a_model_without_a_suffix(tmp_path: Path) -> None:
    torch.save(build_generator({}).state_dict(), tmp_path / "pretrained_G_step250000")
    assert load_model(str(tmp_path / "pretrained_G_step250000"), None).run_id is None


def test_a_file_names_the_protocol_of_its_validation(tmp_path: Path) -> None:
    """`superresolve` dims the input of a network that was validated under report160 by it."""
    for protocol in ("report160", None):
        file, _ = write_weights(tmp_path, CONFIG, build_generator(CONFIG).state_dict(), protocol=protocol)
        assert load_model(str(file), None).protocol == protocol


@pytest.mark.parametrize("name", ["w", "w.pt", "w.pth", "w.safetensors"])
def test_anything_else_is_a_line_with_the_remedy(name: str, tmp_path: Path, files: dict[str, Path]) -> None:
    zipped, safe = files["zip"].read_bytes(), files["safetensors"].read_bytes()
    legacy = files["legacy"].read_bytes()
    contents = {
        "empty": b"", "text": b"hello", "page": b"<html>404</html>", "pointer": b"version https://git-lfs.github.com/spec/v1\n",
        "gzip": b"\x1f\x8b\x08" + bytes(40), "zeros": bytes(4096), "cut zip": zipped[: len(zipped) // 2],
        "cut safetensors": safe[: len(safe) // 2], "header alone": safe[:40], "cut legacy": legacy[: len(legacy) // 2],
        "pickle": pickle.dumps({"weights": [1, 2]}), "code": pickle.dumps(print), "short pickle": b"\x80\x02",
        "long header": (2**40).to_bytes(8, "little") + b"{}", "zip of text": b"PK\x03\x04" + bytes(100),
    }  # fmt: skip
    for what, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=str(tmp_path / name)) as error:
            read_weights_file(tmp_path / name)
        assert "\n" not in str(error.value), what
        assert any(word in str(error.value) for word in ("give", "save", "expected a state dict", "damaged")), what


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("value", [0, 99_999_999, 10**18, 1e18, 4.0, "16", [1], {}, None, True])
def test_no_header_asks_for_an_impossible_network(kind: str, value: Any) -> None:
    """Without bounds, 99,999,999 blocks were built for minutes, and other types ended in errors of torch."""
    for setting in fields(GENERATORS[kind].Config):
        if type(setting.default) is int:
            with pytest.raises(ValueError, match=rf"^generator\.{setting.name} is .*; it must be .*$"):
                build_generator({"kind": kind, setting.name: value})


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"kind": 5}, "generator.kind is 5; choose one of"), ({"kind": ["rrdb"]}, "choose one of"),
        ({"depth": 3}, "generator.depth is no setting of mdcsrn; it has growth_rate"),
        ({"blocks": 99_999_999}, "generator.blocks is 99999999; it must be less than or equal to 16"),
        ({"growth_rate": 2}, "do not fit MDCSRNConfig(growth_rate=2"), ([], "configuration is damaged"),
        ("[" * 100_000, "configuration is damaged"),
    ],
)  # fmt: skip
def test_a_header_of_something_else_is_a_line(header: Any, problem: str, tmp_path: Path) -> None:
    text = header if isinstance(header, str) else json.dumps(header)
    (tmp_path / "w").write_bytes(save({"a": torch.zeros(1)}, metadata={"generator_config": text, "trained_on": text}))
    with pytest.raises(ConfigError) as error:
        load_model(str(tmp_path / "w"), None)
    assert problem in str(error.value)
    assert "\n" not in str(error.value)
