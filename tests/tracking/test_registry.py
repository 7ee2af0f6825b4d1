"""The registry on a real MLflow database: what is registered loads everywhere, and only a better one is the
champion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import mlflow.artifacts
import pytest
import torch
from torch import Tensor

from mrisr.models import MDCSRN
from mrisr.models.mdcsrn import MDCSRNConfig
from mrisr.models.weights import TrainedOn, Weights, write_weights
from mrisr.tracking import registry
from mrisr.tracking import runs as tracking
from mrisr.tracking.promotion import promote

TRAINED_ON = TrainedOn(frozenset({"a1", "b2"}), complete=True)
CONFIG = {"growth_rate": 4, "blocks": 2, "units": 2, "residual": False}


@dataclass(frozen=True)
class Registered:
    uri: str
    experiment_id: str
    run_id: str
    generators: dict[str, MDCSRN]


def _tags(psnr: float, fingerprint: str = "subjects-a", protocol: str = "chen2018") -> dict[str, str]:
    figures = {"val_psnr": psnr, "val_ssim": 0.9, "val_nrmse": 3 / psnr}
    figures |= {"baseline_psnr": 20.0, "baseline_ssim": 0.5, "baseline_nrmse": 0.5}
    return registry.model_tags(protocol, "truncate, f=0.5", fingerprint, "data", figures)


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    """Three versions of `brain` and one of `other`, logged for real; tags are set by the tests that need
    others."""
    torch.set_num_threads(1)
    store = tracking.prepare(None, tmp_path_factory.mktemp("registry of models"), "registry")
    run_id = tracking.start_run(store, {}, name="r")
    generators = {}
    for index, name in enumerate(("brain", "brain", "other")):
        generator = MDCSRN(MDCSRNConfig(**CONFIG), seed=index).train()
        generator(torch.rand(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(index)))
        weights = Weights(CONFIG, generator.state_dict(), TRAINED_ON)
        version = registry.register(weights, run_id, name, _tags(30.0 + index), "a test", store.uri)
        generators[f"{name}/{version}"] = generator
    return Registered(store.uri, store.experiment_id, run_id, generators)


def _again(registered: Registered, name: str, tags: dict[str, str]) -> str:
    """A further version of the same files, which costs no export."""
    store = tracking.client(registered.uri)
    source = store.get_model_version("brain", "1").source
    if name not in {model.name for model in store.search_registered_models()}:
        store.create_registered_model(name)
    return str(store.create_model_version(name, source, run_id=registered.run_id, tags=tags).version)


def _input(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5))


def test_load_gives_back_the_same_network(registered: Registered) -> None:
    generator = registered.generators["brain/1"]
    loaded = registry.load("models:/brain/1", registered.uri)
    assert (loaded.version, loaded.name, loaded.run_id) == ("1", "brain", registered.run_id)
    assert loaded.generator_config == CONFIG
    assert loaded.tags["val_psnr"] == "30.0"
    assert not loaded.generator.training
    state = loaded.generator.state_dict()
    assert all(torch.equal(state[key], value) for key, value in generator.state_dict().items())
    config, weights, trained_on, _ = registry.load_generator_weights("models:/brain/1", registered.uri)
    assert config == CONFIG
    assert weights.keys() == state.keys()
    assert trained_on == loaded.trained_on == TRAINED_ON


def test_registering_leaves_the_run_and_the_callers_network_alone(registered: Registered) -> None:
    run = tracking.client(registered.uri).get_run(registered.run_id)
    assert run.info.status == "RUNNING"
    assert registered.generators["other/1"].training
    assert all(p.requires_grad for p in registered.generators["other/1"].parameters())
    logged = tracking.client(registered.uri).search_logged_models([registered.experiment_id])
    assert {str(model.status) for model in logged} == {"READY"}
    assert {model.source_run_id for model in logged} == {registered.run_id}


def test_a_process_without_our_code_loads_it(registered: Registered, tmp_path: Path) -> None:
    volume = _input((3, 1, 9, 20, 13))
    with torch.no_grad():
        expected = registered.generators["brain/1"].eval()(volume)
    torch.save({"volume": volume, "expected": expected}, tmp_path / "case.pt")
    tracking.client(registered.uri).set_registered_model_alias("brain", "probe", "1")
    code = (
        "import importlib.util, sys, torch, mlflow.pytorch, mlflow.pyfunc\n"
        "assert importlib.util.find_spec('mrisr') is None\n"
        "case = torch.load(sys.argv[1])\n"
        "with torch.no_grad():\n"
        "    found = mlflow.pytorch.load_model('models:/brain@probe')(case['volume'])\n"
        "assert torch.allclose(found, case['expected'], atol=1e-5)\n"
        "array = mlflow.pyfunc.load_model('models:/brain@probe').predict(case['volume'].numpy())\n"
        "assert torch.allclose(torch.from_numpy(array), case['expected'], atol=1e-5)\n"
    )
    # -S and a bare path: an editable install of ours, which a .pth file announces, stays out as well.
    packages = [path for path in sys.path if path.endswith(("site-packages", "lib-dynload", ".zip"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(packages), "MLFLOW_TRACKING_URI": registered.uri}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(tmp_path / "case.pt")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_no_pickle_among_the_files(registered: Registered, tmp_path: Path) -> None:
    location = tracking.client(registered.uri).get_model_version_download_uri("brain", "1")
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=location, dst_path=str(tmp_path)))
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"data/model.pt2", "extra_files/generator.safetensors", "extra_files/generator.json"} <= names
    assert json.loads((folder / "extra_files/trained_on.json").read_text()) == {
        "contents": ["a1", "b2"],
        "complete": True,
    }
    assert not [name for name in names if name.endswith((".pth", ".pkl", ".pt"))]
    requirements = (folder / "requirements.txt").read_text()
    assert "torch==" in requirements
    assert "+" not in requirements
    assert json.loads((folder / "extra_files/generator.json").read_text()) == CONFIG


def test_weights_that_do_not_fit_are_refused(registered: Registered) -> None:
    with pytest.raises(ValueError, match="do not fit MDCSRNConfig"):
        registry.register(
            Weights({**CONFIG, "units": 3}, registered.generators["brain/1"].state_dict(), TrainedOn()),
            registered.run_id, "bad", {}, "", registered.uri,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("model_uri", "message"),
    [
        ("models:/nobody@champion", "registered are: brain"),
        ("models:/other@nobody", r"version 1 and no alias"),
        ("models:/other/9", "it has the version 1"),
        ("models:/other", "write models:/NAME@champion or models:/NAME/VERSION"),
        ("other/1", "write models:/NAME@champion"),
    ],
)
def test_errors_say_what_exists(registered: Registered, model_uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        registry.load(model_uri, registered.uri)


def test_the_better_one_is_the_champion(registered: Registered) -> None:
    uri = registered.uri
    first, worse, better, equal = (_again(registered, "race", _tags(psnr)) for psnr in (30.0, 29.5, 30.5, 30.5))
    assert registry.champion("race", uri) is None
    assert registry.champion("nobody", uri) is None
    assert promote("race", first, uri).reason == "there was no champion"
    kept = promote("race", worse, uri)
    assert (kept.promoted, kept.figure, kept.champion_figure, kept.champion_version) == (False, 29.5, 30.0, first)
    assert promote("race", better, uri).promoted
    assert not promote("race", equal, uri).promoted
    assert not promote("race", better, uri).promoted
    found = registry.champion("race", uri)
    assert found is not None
    assert found.version == better
    tags = registry.find(f"models:/race/{worse}", uri).tags
    assert tags["promotion"] == "kept"
    assert (tags["promotion_figure"], tags["promotion_champion_figure"]) == ("29.5", "30.0")
    assert not promote("race", worse, uri, metric="val_ssim").promoted
    assert not promote("race", worse, uri, metric="val_nrmse").promoted, "of NRMSE the lower is better"
    lower = _again(registered, "race", _tags(31.0))
    assert promote("race", lower, uri, metric="val_nrmse").promoted


def test_other_subjects_are_measured_anew(registered: Registered) -> None:
    uri, calls = registered.uri, []

    def evaluate(loaded: registry.LoadedModel) -> dict[str, float]:
        calls.append(loaded.version)
        with torch.no_grad():
            assert loaded.generator(_input((1, 1, 8, 8, 8))).shape == (1, 1, 8, 8, 8)
        return {"val_psnr": 25.0}

    old = _again(registered, "moved", _tags(40.0))
    promote("moved", old, uri)
    other = _again(registered, "moved", _tags(26.0, fingerprint="subjects-b"))
    with pytest.raises(ValueError, match="differs in validation_fingerprint"):
        promote("moved", other, uri)
    decision = promote("moved", other, uri, evaluate=evaluate)
    assert (decision.promoted, decision.champion_figure, calls) == (True, 25.0, [old])
    assert "measured anew" in decision.reason
    third = _again(registered, "moved", _tags(24.0, fingerprint="subjects-c"))
    assert not promote("moved", third, uri, evaluate=evaluate).promoted
    assert registry.find(f"models:/moved/{old}", uri).tags["val_psnr"] == "40.0"


def test_every_protocol_has_a_champion_of_its_own(registered: Registered) -> None:
    """A candidate of one protocol cannot displace the champion of another, whatever its figures there."""
    uri = registered.uri
    main, other = _again(registered, "two", _tags(30.0)), _again(registered, "two", _tags(35.0, protocol="report160"))
    worse = _again(registered, "two", _tags(34.0, protocol="report160"))
    assert promote("two", main, uri).alias == "champion"
    decision = promote("two", other, uri)
    assert (decision.promoted, decision.alias) == (True, "champion-report160")
    assert promote("two", worse, uri).champion_version == other
    assert registry.find("models:/two@champion", uri).version == main
    assert registry.find("models:/two@champion-report160", uri).version == other


def test_a_champion_of_an_older_version_says_which_protocol_is_the_main_one(registered: Registered) -> None:
    uri = registered.uri
    old, new = _again(registered, "legacy", _tags(30.0)), _again(registered, "legacy", _tags(40.0, protocol="hz2538"))
    tracking.client(uri).set_registered_model_alias("legacy", "champion", old)
    assert promote("legacy", new, uri).alias == "champion-hz2538"
    assert registry.find("models:/legacy@champion", uri).version == old


def test_nothing_that_does_not_beat_its_input_is_the_champion(registered: Registered) -> None:
    """An untrained identity has its input's figures, but for rounding; the first candidate is no exception."""
    uri = registered.uri
    for index, psnr in enumerate((19.0, 20.0, 20.0 + 1e-9)):
        decision = promote("floor", _again(registered, "floor", _tags(psnr)), uri)
        assert not decision.promoted, index
        assert "of the gain-corrected input" in decision.reason
        assert registry.champion("floor", uri) is None
    assert promote("floor", _again(registered, "floor", _tags(20.1)), uri).promoted
    tags = {key: value for key, value in _tags(25.0).items() if not key.startswith("baseline")}
    older = _again(registered, "floor", tags)
    with pytest.raises(ValueError, match="has no tag 'baseline_psnr'"):
        promote("floor", older, uri)
    measured = {"val_psnr": 25.0, "baseline_psnr": 26.0}
    assert "26 of the gain-corrected" in promote("floor", older, uri, evaluate=lambda _: measured).reason


def test_a_version_that_was_trained_on_validation_subjects_is_not_the_champion(registered: Registered) -> None:
    version = _again(registered, "seen", _tags(40.0) | {"validation_trained_on": "3"})
    decision = promote("seen", version, registered.uri)
    assert not decision.promoted
    assert decision.reason == "it was trained on 3 of the validation subjects"


def test_a_damaged_or_diverged_champion_is_kept_with_a_reason(registered: Registered, tmp_path: Path) -> None:
    store, files = tracking.client(registered.uri), tmp_path / "model" / "extra_files"
    files.mkdir(parents=True)
    (files / "generator.safetensors").write_bytes(b"\x00" * 40)
    first = _again(registered, "damaged", _tags(30.0, "subjects-a"))
    broken = store.create_model_version(
        "damaged", (tmp_path / "model").as_uri(), run_id=registered.run_id, tags=_tags(31.0, "subjects-b")
    )
    store.set_registered_model_alias("damaged", "champion", broken.version)
    better = _again(registered, "damaged", _tags(50.0, "subjects-a"))
    decision = promote("damaged", better, registered.uri, evaluate=lambda model: {"val_psnr": 1.0})
    assert not decision.promoted
    assert "cannot be measured here" in decision.reason
    assert "models:/damaged/2/extra_files/generator.safetensors: damaged, or not a weights file" in decision.reason
    assert "set the alias 'champion' by hand" in decision.reason

    def diverged(model: registry.LoadedModel) -> dict[str, float]:
        raise ValueError("estimate holds 8 voxels that are not finite")

    store.set_registered_model_alias("damaged", "champion", first)
    other = _again(registered, "damaged", _tags(50.0, "subjects-c"))
    assert "8 voxels that are not finite" in promote("damaged", other, registered.uri, evaluate=diverged).reason


def test_what_a_run_has_registered_is_found(registered: Registered) -> None:
    found = registry.registered("brain", registered.run_id, {"val_psnr": "31.0"}, registered.uri)
    assert found is not None
    assert found.version == "2"
    assert registry.registered("brain", registered.run_id, {"val_psnr": "9.0"}, registered.uri) is None
    assert registry.registered("brain", "another run", {}, registered.uri) is None
    assert registry.registered("nobody", registered.run_id, {}, registered.uri) is None


def test_a_champion_that_cannot_be_loaded_stays(registered: Registered, tmp_path: Path) -> None:
    first = _again(registered, "shared", _tags(30.0, "subjects-a"))
    store = tracking.client(registered.uri)
    assert promote("shared", first, registered.uri).promoted
    gone = store.create_model_version(
        "shared", (tmp_path / "elsewhere").as_uri(), run_id=registered.run_id, tags=_tags(31.0, "subjects-b")
    )
    store.set_registered_model_alias("shared", "champion", gone.version)
    better = _again(registered, "shared", _tags(50.0, "subjects-a"))
    decision = promote("shared", better, registered.uri, evaluate=lambda model: {"val_psnr": 1.0})
    assert not decision.promoted
    assert "cannot be measured here" in decision.reason
    assert store.get_model_version("shared", better).tags["promotion"] == "kept"
    assert registry.champion("shared", registered.uri).version == str(gone.version)


def test_a_candidate_needs_a_figure(registered: Registered) -> None:
    diverged = _again(registered, "nan", _tags(float("nan")))
    with pytest.raises(ValueError, match="is nan"):
        promote("nan", diverged, registered.uri)
    with pytest.raises(ValueError, match="no tag 'val_lpips'"):
        promote("nan", diverged, registered.uri, metric="val_lpips")


def test_weights_from_files(tmp_path: Path) -> None:
    generator = MDCSRN(MDCSRNConfig(**CONFIG))
    state = generator.state_dict()
    write_weights(tmp_path, CONFIG, state)
    (tmp_path / "generator.json").unlink()
    config, found, trained_on, _ = registry.load_generator_weights(tmp_path / "generator.safetensors")
    assert config == CONFIG
    assert trained_on == TrainedOn(complete=False)
    assert all(torch.equal(found[key], state[key]) for key in state)
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, tmp_path / "port.pth"
    )
    config, found, *_ = registry.load_generator_weights(tmp_path / "port.pth")
    assert config is None
    MDCSRN(MDCSRNConfig(**CONFIG), seed=9).load_reference_state_dict(found)
    torch.save(generator, tmp_path / "whole.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 40)
    torch.save({"weights": [1, 2]}, tmp_path / "list.pt")
    for name, message in (
        ("whole.pt", "save the network's state_dict"),
        ("broken.safetensors", "damaged"),
        ("list.pt", "expected a state dict"),
        ("list.onnx", "no such weights file"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            registry.load_generator_weights(tmp_path / name)
