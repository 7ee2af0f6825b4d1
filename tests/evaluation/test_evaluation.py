"""Evaluation on a real store: the figures are those of an independent computation, the table and rows hold
them all."""

from __future__ import annotations

import csv
import io
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from mrisr.config import ConfigError
from mrisr.degradation import PROTOCOLS, degrade
from mrisr.evaluation import result as names
from mrisr.evaluation.cluster_tasks import evaluate_on_cluster
from mrisr.evaluation.result import EvaluationResult, combined
from mrisr.evaluation.subject import Evaluation, evaluate_subject, foreground_mask
from mrisr.inference.whole_volume import InferenceOptions
from mrisr.training.validation import Validator
from voxelstore import VolumeStore, convert_volume

OPTIONS = InferenceOptions()
CHEN = PROTOCOLS["chen2018"]


def sharpen(amount: float) -> nn.Module:
    """Unsharp masking with a fixed box filter: not good, but different from its input."""
    network = nn.Conv3d(1, 1, 3, padding=1, padding_mode="replicate", bias=False)
    weight = torch.full((1, 1, 3, 3, 3), -amount / 27)
    weight[0, 0, 1, 1, 1] += 1 + amount
    network.weight.data = weight
    return network.requires_grad_(False)


@pytest.fixture(scope="module")
def store(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> VolumeStore:
    """Three of the small store's subjects. Two are for training: every subject at a time is a process that starts."""
    fewer = VolumeStore.create(tmp_path_factory.mktemp("fewer") / "store.zarr")
    whole = VolumeStore.open(small_store)
    for name in [*whole.subjects("train")[:2], *whole.subjects("test")]:
        shutil.copytree(small_store / "subjects" / name, fewer.path / "subjects" / name)
    fewer.update_manifest({"train": 2, "test": 1}, seed=0)
    return VolumeStore.open(fewer.path)


def evaluate(store: VolumeStore, split: str, generator: nn.Module, consistency: bool = False) -> EvaluationResult:
    quiet = Console(file=io.StringIO())
    return evaluate_on_cluster(Evaluation(store, split, "chen2018", OPTIONS, consistency), generator, quiet)


@pytest.fixture(scope="module")
def result(store: VolumeStore, local_ray: None) -> EvaluationResult:
    return evaluate(store, "train", sharpen(0.2), consistency=True)


def test_figures_of_the_input_equal_the_definitions(store: VolumeStore, result: EvaluationResult) -> None:
    for subject in result.subjects:
        record = store.record(subject.subject)
        hr = (store.read(subject.subject).astype(float) - record.intensity.low) / (
            record.intensity.high - record.intensity.low
        )
        error = degrade(hr.astype(np.float32), CHEN) - hr
        coarse = store.foreground(subject.subject)
        index = np.ix_(*[np.arange(n) // record.mask_block for n in record.shape])
        for region, chosen in (("whole", np.ones(hr.shape, bool)), ("foreground", coarse[index])):
            found = subject.scores[names.INPUT][region]
            assert found["psnr"] == pytest.approx(-10 * np.log10((error[chosen] ** 2).mean()), abs=1e-3)
            expected = np.linalg.norm(error[chosen]) / np.linalg.norm(hr[chosen])
            assert found["nrmse"] == pytest.approx(expected, rel=1e-3)
        assert (foreground_mask(store, subject.subject) == coarse[index]).all()
    psnr = [s.scores[names.INPUT]["whole"]["psnr"] for s in result.subjects]
    assert result.mean(names.INPUT, "whole", "psnr") == pytest.approx(np.mean(psnr))


def test_an_identity_is_its_input_and_does_not_beat_it(store: VolumeStore, local_ray: None) -> None:
    found = evaluate(store, "test", nn.Identity())
    for region in names.REGIONS:
        for metric in names.METRICS:
            assert found.mean(names.MODEL, region, metric) == pytest.approx(
                found.mean(names.INPUT, region, metric), abs=1e-3
            )
            assert not found.beats_input(metric, region), "also where rounding is in its favour"
    assert not evaluate(store, "test", sharpen(5.0)).beats_input()


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_a_factor_alone_does_not_beat_the_input(store: VolumeStore) -> None:
    """report160 halves the mean: a network that doubles gains many dB on the plain input and has restored nothing."""
    subject = store.subjects("test")[0]
    one = evaluate_subject(Evaluation(store, "test", "report160", OPTIONS), subject, Twice())
    found = EvaluationResult("report160", "", "test", "", (one,))
    psnr = {method: found.mean(method, "whole", "psnr") for method in found.methods}
    assert psnr[names.MODEL] > psnr[names.INPUT] + 5
    assert psnr[names.CORRECTED] >= psnr[names.MODEL]
    assert found.gain().mean <= 0
    assert not found.beats_input()
    assert found.figures()["baseline_psnr"] == psnr[names.CORRECTED]
    validator = Validator(store, [subject], "report160", 24, 2, 0, 1)
    figures, _ = validator.run(Twice(), torch.device("cpu"))
    assert figures["psnr"] > figures["input_psnr"] + 5
    assert abs(figures["psnr_gain"]) < 0.5, "cubes, at the gain of the whole volume"
    assert figures["psnr_gain"] == figures["psnr"] - figures["gain_corrected_psnr"]


def test_a_truncation_needs_no_gain(store: VolumeStore, result: EvaluationResult) -> None:
    for subject in result.subjects:
        assert subject.scores[names.CORRECTED] == subject.scores[names.INPUT]


@pytest.mark.parametrize("amount", [-0.5, 0.2, 3.0])
@pytest.mark.parametrize("protocol", ["chen2018", "hz2538", "report160"])
def test_data_consistency_only_lowers_the_squared_error(store: VolumeStore, amount: float, protocol: str) -> None:
    subject = store.subjects("test")[0]
    evaluation = Evaluation(store, "test", protocol, OPTIONS, consistency=True)
    found = evaluate_subject(evaluation, subject, sharpen(amount)).scores
    model, consistent = (found[m]["whole"]["psnr"] for m in (names.MODEL, names.CONSISTENT))
    assert consistent >= model - 1e-4
    assert (names.CUBIC in found) == (protocol != "report160")


def test_rows_and_table_hold_everything(result: EvaluationResult, tmp_path: Path) -> None:
    assert result.methods == [names.INPUT, names.CORRECTED, names.CUBIC, names.MODEL, names.CONSISTENT]
    path = result.write_csv(tmp_path / "deep" / "scores.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 5 * 2
    assert [p.name for p in path.parent.iterdir()] == ["scores.csv"]
    row = next(r for r in rows if (r["method"], r["region"]) == (names.CONSISTENT, "foreground"))
    expected = next(s for s in result.subjects if s.subject == row["subject"]).scores[names.CONSISTENT]["foreground"]
    assert {metric: float(row[metric]) for metric in names.METRICS} == expected
    console = Console(width=160, record=True, file=(tmp_path / "out.txt").open("w"))
    console.print(result.table(per_subject=True))
    text = console.export_text()
    assert f"{result.mean(names.MODEL, 'whole', 'psnr'):.2f} ±" in text
    assert ("beats its input" in text) == result.beats_input()
    assert all(subject.subject in text for subject in result.subjects)


def test_tables_fit_80_columns_and_nothing_is_cut(result: EvaluationResult, tmp_path: Path) -> None:
    long = tuple(
        replace(one, subject=f"sub-{i}_ses-followup_acq-mprage_run-01_T1w") for i, one in enumerate(result.subjects)
    )
    several = combined({"l1": replace(result, subjects=long), "wgan-gp": replace(result, subjects=long)})
    for per_subject in (False, True):
        console = Console(width=80, record=True, file=(tmp_path / "out.txt").open("w"))
        console.print(several.table(per_subject=per_subject))
        text = console.export_text()
        lines = text.splitlines()
        assert "…" not in text
        assert all(len(line.rstrip()) <= 80 for line in lines)
        assert all((one.subject in text) == per_subject for one in long)
        for metric in names.METRICS.values():
            assert any(metric.heading in line for line in lines)
        for method in (names.INPUT, names.CORRECTED, names.CUBIC, "l1", "wgan-gp", "wgan-gp + DC"):
            # A row per region and block, each figure with its spread on the row itself.
            rows = [line for line in lines if line.startswith(f"{method}  ")]
            assert len(rows) == 2 + 2 * 2 * per_subject
            if not per_subject:
                assert all(row.count("±") == len(names.METRICS) for row in rows)


def test_one_or_two_subjects_have_no_interval(result: EvaluationResult, tmp_path: Path) -> None:
    for count, shown in ((1, False), (2, False), (3, True)):
        subjects = tuple(replace(result.subjects[0], subject=str(i)) for i in range(count))
        console = Console(width=80, record=True, file=(tmp_path / "out.txt").open("w"))
        console.print(replace(result, subjects=subjects).table())
        verdict = next(line for line in console.export_text().splitlines() if "its input" in line)
        assert ("[" in verdict) == shown


def test_figures_gain_and_metrics(result: EvaluationResult) -> None:
    assert result.figures()["val_psnr"] == result.mean(names.MODEL, "whole", "psnr")
    gain = result.gain()
    assert gain.low <= gain.mean <= gain.high
    assert (gain.mean > 0) == result.beats_input()
    assert (result.gain("nrmse").mean > 0) == result.beats_input("nrmse")
    assert result.as_metrics()["consistent/foreground/ssim"] == result.mean(names.CONSISTENT, "foreground", "ssim")
    with pytest.raises(ValueError, match="was not evaluated"):
        result.mean("nearest", "whole", "psnr")


def test_pictures(result: EvaluationResult, tmp_path: Path) -> None:
    paths = result.write_pictures(tmp_path)
    assert [path.stem for path in paths] == [subject.subject for subject in result.subjects]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_a_subject_is_work_for_a_task(store: VolumeStore, result: EvaluationResult) -> None:
    arguments = pickle.loads(
        pickle.dumps((Evaluation(store, "train", "chen2018", OPTIONS, True), result.subjects[0].subject, sharpen(0.2)))
    )
    again = evaluate_subject(*arguments)
    copied, reference = pickle.loads(pickle.dumps(again)).scores, result.subjects[0].scores
    assert copied.keys() == reference.keys()
    for method, regions in reference.items():
        for region, scores in regions.items():
            assert copied[method][region] == pytest.approx(scores, rel=1e-6)
    assert again.seconds > again.model_seconds > 0
    assert again.subject in again.describe()


def test_subjects_keep_their_order_and_each_has_a_line(store: VolumeStore, local_ray: None) -> None:
    out = io.StringIO()
    found = evaluate_on_cluster(Evaluation(store, "test", "hz2538"), None, Console(file=out, width=200))
    assert (found.protocol, found.split, found.fingerprint) == ("hz2538", "test", store.fingerprint("test"))
    assert found.methods == [names.INPUT, names.CORRECTED, names.CUBIC]
    assert "[1/1] " + found.subjects[0].describe() in out.getvalue()


def test_what_cannot_be_evaluated_is_named(store: VolumeStore) -> None:
    with pytest.raises(ConfigError, match=r"split = 'nobody'.*test \(1\), train \(2\)"):
        evaluate(store, "nobody", nn.Identity())
    with pytest.raises(ConfigError, match=r"protocol = 'mine'.*chen2018"):
        Evaluation(store, "test", "mine")


def test_real_volumes_reach_the_known_figures(real_volumes: list[Path], tmp_path: Path) -> None:
    store = VolumeStore.create(tmp_path / "store.zarr")
    for path in real_volumes[:1]:
        convert_volume(path, store.path, "real", 32)
        store.update_manifest({"test": 1}, seed=0)
        found = evaluate_subject(Evaluation(store, "test", "chen2018"), "real").scores
        # Smooth anatomy in k-space: far above what noise would give, and the spline below the exact samples.
        assert found[names.INPUT]["whole"]["psnr"] > 30
        assert found[names.INPUT]["whole"]["psnr"] >= found[names.CUBIC]["whole"]["psnr"]
        assert 0.8 < found[names.INPUT]["whole"]["ssim"] < 1
