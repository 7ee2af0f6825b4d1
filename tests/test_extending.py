"""A thing that is added from outside the package, by one entry in its table, is followed by all that reads the table.

docs/design/extending.md walks through each.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from mrisr.cli.app import main
from mrisr.cli.configuration import key_reference
from mrisr.config import ConfigError, Experiment, load_experiment
from mrisr.config.loading import dump_experiment, field_reference
from mrisr.degradation import KINDS, PROTOCOLS, Degradation, DegradationRange, Kind, degrade, describe, spectral_weight
from mrisr.engine.memory import MemorySettings, peak_bytes
from mrisr.engine.networks import build_networks
from mrisr.engine.schedule import Phase
from mrisr.engine.step import train_step
from mrisr.engine.step_settings import StepConfig
from mrisr.evaluation.result import INPUT, EvaluationResult
from mrisr.evaluation.subject import Evaluation, evaluate_subject, foreground_mask
from mrisr.inference.whole_volume import InferenceOptions
from mrisr.metrics import METRICS, Metric
from mrisr.models import GENERATORS, build_generator
from mrisr.models.generator import Generator, GeneratorConfig
from mrisr.models.seeding import initialise
from mrisr.models.weights import read_weights_file, trained_generator, write_weights
from mrisr.settings import setting
from mrisr.tools.preview import contact_sheet, gallery_entries
from mrisr.training.state import Best
from mrisr.training.status import describe as describe_figures
from mrisr.training.validation import Validator
from voxelstore import VolumeStore

# A degradation kind


def ball(shape: tuple[int, ...], d: Degradation) -> np.ndarray:
    """0 outside the ellipsoid that ends at (1-f)N/2 on every chosen axis."""
    bands, frequencies = d.fractions(shape), d.frequencies(shape).items()
    radius = sum((2 * k / shape[axis] / (1 - f)) ** 2 for (axis, k), f in zip(frequencies, bands, strict=True))
    return np.where((radius >= 1) & (max(bands) > 0), np.float32(0), np.float32(1))


@pytest.fixture
def ball_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "ball", Kind(ball, {"fraction": 0.6}, band_end=lambda f, d: 1 - f))
    monkeypatch.setitem(PROTOCOLS, "ball60", Degradation("ball", (1, 2), 0.6))


@pytest.mark.usefixtures("ball_kind")
def test_a_degradation_kind_is_known_to_the_schema_and_the_help() -> None:
    schema = Experiment.model_json_schema()["$defs"]
    assert "ball" in schema["DegradationRange"]["properties"]["kind"]["enum"]
    assert "ball60" in schema["Validation"]["properties"]["protocol"]["enum"]
    types = {key: kind for key, kind, _, _ in field_reference()}
    assert types["degradation.kind"].endswith(" | ball")
    assert types["validation.mean_over"].endswith(" | ball60")
    experiment = load_experiment(None, ["degradation.kind=ball", "validation.protocol=ball60"])
    assert isinstance(experiment.degradation, DegradationRange)
    assert "kind: ball" in dump_experiment(experiment)
    with pytest.raises(ConfigError, match=r"degradation.kind = 'cube': unknown kind of degradation; use .*, ball"):
        load_experiment(None, ["degradation.kind=cube"])


@pytest.mark.usefixtures("ball_kind")
def test_a_degradation_kind_is_drawn_and_applied() -> None:
    ranges = load_experiment(None, ["degradation.kind=ball", "degradation.fraction=[0.3, 0.7]"]).degradation
    plain = DegradationRange("truncate", fraction=(0.3, 0.7))
    drawn, other = (one.sample(np.random.default_rng([7, 2])) for one in (ranges, plain))
    assert drawn == other._replace(kind="ball"), "a kind changes no draw"
    hr = np.random.default_rng(0).random((8, 20, 18)).astype(np.float32)
    np.testing.assert_allclose(degrade(hr, drawn._replace(fraction=0.0)), hr, atol=1e-6)
    once = degrade(hr, drawn)
    np.testing.assert_allclose(degrade(once, drawn), once, atol=2e-6)
    kept, square = (spectral_weight(hr.shape, d) for d in (drawn, other))
    assert 0 < kept.sum() < square.sum()
    assert np.square(degrade(hr, drawn) - hr).sum() > np.square(degrade(hr, other) - hr).sum()
    tapered = spectral_weight(hr.shape, drawn._replace(apodisation="hamming"))
    assert ((tapered > 0) == (kept > 0)).all()
    assert tapered.max() == 1
    assert describe(drawn).startswith("ball, axes 1 2, f=0.")


@pytest.mark.usefixtures("ball_kind")
def test_a_degradation_kind_is_drawn_in_the_gallery(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = gallery_entries()
    assert ("ball", Degradation("ball", fraction=0.6)) in entries
    assert "shift_fft_shift" not in dict(entries), "an alias is not drawn twice"
    hr = np.random.default_rng(0).random((10, 16, 14)).astype(np.float32)
    figure = contact_sheet(hr, [entry for entry in entries if entry[0] == "ball"])
    assert any("ball" in panel.get_title(loc="left") for panel in figure.axes)
    with pytest.raises(SystemExit):
        main(["keys", "degradation.kind"])
    assert "truncate | box" in capsys.readouterr().out


# A metric


def largest_error(
    reference: np.ndarray, estimate: np.ndarray, masks: Sequence[np.ndarray | None], data_range: float
) -> list[float]:
    error = np.abs(reference - estimate) / data_range
    return [float(error.max() if mask is None else error[mask].max()) for mask in masks]


@pytest.fixture
def metric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "largest", Metric("largest", largest_error, 3, False, "largest error", "%"))


@pytest.mark.usefixtures("metric")
def test_a_metric_is_evaluated_and_shown(small_store: Path, tmp_path: Path) -> None:
    store = VolumeStore.open(small_store)
    evaluation = Evaluation(store, "test", "chen2018", InferenceOptions())
    subject = store.subjects("test")[0]
    one = evaluate_subject(evaluation, subject, nn.Identity())
    hr = store.read_normalised(subject)
    error = np.abs(hr - degrade(hr, PROTOCOLS["chen2018"]))
    assert one.scores[INPUT]["whole"]["largest"] == pytest.approx(error.max())
    assert one.scores[INPUT]["foreground"]["largest"] == pytest.approx(error[foreground_mask(store, subject)].max())
    result = EvaluationResult("chen2018", "a description", "test", "fingerprint", (one,))
    console = Console(width=160, record=True, file=(tmp_path / "out.txt").open("w"))
    console.print(result.table())
    text = console.export_text()
    assert "largest error / %" in text
    assert f"{error.max():.3f}" in text
    with result.write_csv(tmp_path / "scores.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if (row["method"], row["region"]) == (INPUT, "whole"))
    assert float(row["largest"]) == pytest.approx(error.max())
    assert result.as_metrics()["input/whole/largest"] == pytest.approx(error.max())
    assert "val_largest" in result.figures()
    assert not result.beats_input("largest")


@pytest.mark.usefixtures("metric")
def test_a_metric_is_validated_in_training_and_can_decide(small_store: Path) -> None:
    store = VolumeStore.open(small_store)
    validator = Validator(store, store.subjects("test")[:1], "chen2018", 16, 2, 0, 1)
    figures, _ = validator.run(nn.Identity(), torch.device("cpu"))
    assert figures["largest"] == figures["input_largest"] > 0
    assert figures["largest_gain"] == 0
    assert "largest error" in describe_figures(figures)
    experiment = load_experiment(None, ["validation.metric=largest", "tuning.metrics=[largest, psnr]"])
    best, state = Best(experiment.validation), {"weight": torch.zeros(1)}
    assert best.offer(1, {"largest": 0.5}, state)
    assert best.offer(2, {"largest": 0.4}, state), "the lower is better"
    assert not best.offer(3, {"largest": 0.45}, state)
    with pytest.raises(ConfigError, match=r"validation.metric = 'lpips'.*largest"):
        load_experiment(None, ["validation.metric=lpips"])


# A generator


@dataclass(frozen=True)
class WideConfig(GeneratorConfig):
    width: int = setting(3, "channels in the middle", gt=0)


class Wide(Generator):
    Config = WideConfig

    def __init__(self, config: WideConfig, *, seed: int = 0) -> None:
        super().__init__(config)
        self.layers = nn.Sequential(nn.Conv3d(1, config.width, 3, padding=1), nn.Conv3d(config.width, 1, 3, padding=1))
        initialise(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def test_a_generator_is_followed_from_the_schema_to_a_weights_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GENERATORS, "wide", Wide)
    experiment = load_experiment(None, ["generator.kind=wide", "generator.width=2"])
    architecture = experiment.generator.architecture
    assert architecture == {"kind": "wide", "width": 2}
    with pytest.raises(ConfigError, match=r"generator.width = 0: .*channels in the middle|generator.width = 0"):
        load_experiment(None, ["generator.kind=wide", "generator.width=0"])
    assert "generator.width=3" in key_reference()
    config = StepConfig(batch_size=1, pretrain_lr=1e-3)
    generator = build_generator(architecture, seed=1)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    networks = build_networks(generator, None, config, torch.device("cpu"), "single")
    hr = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    assert train_step(networks, config, Phase.PRETRAIN, 0, 0.9 * hr, hr)["loss"] > 0
    assert any(not torch.equal(before[name], value) for name, value in generator.state_dict().items())
    assert peak_bytes(MemorySettings(architecture, None, 16, config))["pretrain"] > 16**3 * 4
    found, state = read_weights_file(write_weights(tmp_path, architecture, generator.state_dict())[0])
    assert found == architecture
    assert torch.equal(trained_generator(found, state)(hr), generator.eval()(hr))
