"""Checkpoints in one process: everything comes back, and what does not fit is named."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch

from mrisr.engine.checkpoint import CheckpointError, load, save
from mrisr.engine.networks import Networks, build_networks
from mrisr.engine.schedule import Phase
from mrisr.engine.step import train_step
from mrisr.engine.step_settings import StepConfig
from mrisr.models import MDCSRN, build_critic
from mrisr.models.mdcsrn import MDCSRNConfig

CONFIG = StepConfig(batch_size=1, pretrain_lr=1e-3, generator_lr=1e-3, critic_lr=1e-3)


def build(seed: int, growth: int = 2, critic: bool = True) -> Networks:
    score = build_critic("pointwise", 16, seed=seed) if critic else None
    return build_networks(MDCSRN(MDCSRNConfig(growth, 2, 1), seed=seed), score, CONFIG, torch.device("cpu"), "single")


def step(networks: Networks, phase: Phase, index: int) -> dict[str, float]:
    hr = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(index))
    return train_step(networks, CONFIG, phase, index, 0.9 * hr, hr)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after two pretraining steps and one of the critic; the adversarial optimizer is still fresh."""
    networks = build(seed=1)
    for index, phase in enumerate((Phase.PRETRAIN, Phase.PRETRAIN, Phase.CRITIC)):
        step(networks, phase, index)
    folder = tmp_path_factory.mktemp("checkpoint") / "whole"
    save(folder, networks, {"step": 3, "stream": {"epoch": 0, "patch": 12}})
    return folder


def test_a_resumed_run_goes_on_as_if_nothing_had_been(saved: Path) -> None:
    whole, resumed = build(seed=1), build(seed=7)
    for index, phase in enumerate((Phase.PRETRAIN, Phase.PRETRAIN, Phase.CRITIC)):
        step(whole, phase, index)
    assert load(saved, resumed) == {"step": 3, "stream": {"epoch": 0, "patch": 12}}
    for index, phase in enumerate((Phase.GENERATOR, Phase.CRITIC, Phase.GENERATOR, Phase.PRETRAIN), start=3):
        assert step(resumed, phase, index) == step(whole, phase, index)
    for name, value in whole.generator.state_dict().items():
        assert torch.equal(value, resumed.generator.state_dict()[name]), name


def test_saving_changes_nothing(tmp_path: Path) -> None:
    """DCP's own helpers would take a fake step to fill the fresh optimizers."""
    networks, undisturbed = build(seed=1), build(seed=1)
    save(tmp_path, networks, {"step": 0})
    assert [float(state["step"]) for state in networks.optimizers["adversarial"].state.values()] == [0.0] * len(
        list(networks.generator.parameters())
    )
    assert step(networks, Phase.PRETRAIN, 0) == step(undisturbed, Phase.PRETRAIN, 0)
    assert step(networks, Phase.PRETRAIN, 1) == step(undisturbed, Phase.PRETRAIN, 1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"growth": 3}, r"of another shape \(first: generator\.conv0\.weight \(4, 1, 3, 3, 3\) instead of \(6, 1"),
        ({"critic": False}, r"unknown here \(first: critic\."),
    ],
)
def test_other_networks_are_refused_by_name(saved: Path, other: dict, message: str) -> None:
    networks = build(seed=7, **other)
    before = {name: value.clone() for name, value in networks.generator.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load(saved, networks)
    assert all(torch.equal(before[name], value) for name, value in networks.generator.state_dict().items())


@pytest.mark.parametrize("name", [".metadata", "progress.json", "__0_0.distcp"])
def test_a_missing_or_cut_file_is_named(saved: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(saved, tmp_path / "damaged")
    (folder / name).write_bytes((folder / name).read_bytes()[:10])
    with pytest.raises(CheckpointError, match=r"damaged cannot be read: .*; delete this folder"):
        load(folder, build(seed=7))
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load(folder, build(seed=7))


class Payload:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.mkdir, (self.target,)


def test_a_checkpoint_runs_no_code(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "malicious")
    (folder / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "made")))
    with pytest.raises(CheckpointError, match="which no checkpoint of ours holds"):
        load(folder, build(seed=7))
    assert not (tmp_path / "made").exists()


def test_progress_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(tmp_path, build(seed=1), {"step": torch.tensor(1)})
    assert list(tmp_path.iterdir()) == []
