"""Evaluation on a real store: the figures are those of an independent computation, the table and rows hold
them all."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from mrisr import evaluation_result as names
from mrisr.degradation import PROTOCOLS, Degradation, degrade
from mrisr.evaluation import EvaluationResult, evaluate_store, evaluate_subject, foreground_mask
from mrisr.inference import InferenceOptions
from voxelstore import VolumeStore, convert_volume

OPTIONS = InferenceOptions(patch_size=24, batch_size=4)
CHEN = PROTOCOLS["chen2018"]


class Sharpen(nn.Module):
    """Unsharp masking with a fixed box filter: not good, but different from its input."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(x, (1,) * 6, mode="replicate")
        return x + self.amount * (x - nn.functional.avg_pool3d(padded, 3, 1))


@pytest.fixture(scope="module")
def store(small_store: Path) -> VolumeStore:
    return VolumeStore.open(small_store)


@pytest.fixture(scope="module")
def result(store: VolumeStore) -> EvaluationResult:
    return evaluate_store(
        store, "train", CHEN, "chen2018", Sharpen(0.2), OPTIONS, consistency=True, show_progress=False
    )


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


def test_an_identity_is_its_input_and_does_not_beat_it(store: VolumeStore) -> None:
    found = evaluate_store(store, "test", CHEN, "chen2018", nn.Identity(), OPTIONS, show_progress=False)
    for region in names.REGIONS:
        for metric in names.METRICS:
            assert found.mean(names.MODEL, region, metric) == pytest.approx(
                found.mean(names.INPUT, region, metric), abs=1e-3
            )
    assert not evaluate_store(store, "test", CHEN, "chen2018", Sharpen(5.0), OPTIONS, show_progress=False).beats_input()


@pytest.mark.parametrize("amount", [-0.5, 0.2, 3.0])
@pytest.mark.parametrize("protocol", ["chen2018", "hz2538", "report160"])
def test_data_consistency_only_lowers_the_squared_error(store: VolumeStore, amount: float, protocol: str) -> None:
    subject = store.subjects("test")[0]
    found = evaluate_subject(store, subject, PROTOCOLS[protocol], Sharpen(amount), OPTIONS, consistency=True).scores
    model, consistent = (found[m]["whole"]["psnr"] for m in (names.MODEL, names.CONSISTENT))
    assert consistent >= model - 1e-4
    assert (names.CUBIC in found) == (protocol != "report160")


def test_rows_and_table_hold_everything(result: EvaluationResult, tmp_path: Path) -> None:
    assert result.methods == [names.INPUT, names.CUBIC, names.MODEL, names.CONSISTENT]
    path = result.write_csv(tmp_path / "deep" / "scores.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 4 * 2
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
    seen: list[tuple[int, int]] = []
    arguments = pickle.loads(pickle.dumps((store, result.subjects[0].subject, CHEN, Sharpen(0.2), OPTIONS, True)))
    again = evaluate_subject(*arguments, progress=lambda *counts: seen.append(counts))
    assert pickle.loads(pickle.dumps(again)).scores == result.subjects[0].scores
    assert seen[-1][0] == seen[-1][1]
    assert again.seconds > again.model_seconds > 0
    assert again.subject in again.describe()


def test_within_the_foreground_the_air_is_the_inputs(store: VolumeStore) -> None:
    subject = store.subjects("test")[0]
    options = InferenceOptions(patch_size=24, within_foreground=True, margin=0)
    found = evaluate_subject(store, subject, CHEN, nn.Identity(), options)
    assert found.scores[names.MODEL]["whole"] == pytest.approx(found.scores[names.INPUT]["whole"], abs=1e-3)


def test_an_empty_split_is_named(store: VolumeStore) -> None:
    with pytest.raises(ValueError, match=r"split 'nobody'.*\['test', 'train', 'validation'\]"):
        evaluate_store(store, "nobody", CHEN, "chen2018", show_progress=False)


def test_real_volumes_reach_the_known_figures(real_volumes: list[Path], tmp_path: Path) -> None:
    store = VolumeStore.create(tmp_path / "store.zarr")
    for path in real_volumes[:1]:
        convert_volume(path, store.path, path.name.partition(".")[0], 32)
        store.update_manifest({"test": 1}, seed=0)
        found = evaluate_store(store, "test", Degradation("truncate", (1, 2), 0.5), "chen2018", show_progress=False)
        # Smooth anatomy in k-space: far above what noise would give, and the spline below the exact samples.
        assert found.mean(names.INPUT, "whole", "psnr") > 30
        assert found.mean(names.INPUT, "whole", "psnr") >= found.mean(names.CUBIC, "whole", "psnr")
        assert 0.8 < found.mean(names.INPUT, "whole", "ssim") < 1
