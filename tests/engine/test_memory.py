"""Memory: the issue's bounds, and batches that fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mrisr.config import Experiment
from mrisr.engine import memory
from mrisr.engine.memory import LiveBytes, MemorySettings, peak_bytes, whole_volume_bytes
from mrisr.engine.plane_by_plane import forward_by_planes
from mrisr.engine.step_settings import StepConfig
from mrisr.models import MDCSRN, build_generator
from mrisr.models.mdcsrn import MDCSRNConfig
from mrisr.training.memory import estimated_peaks, largest_batch, parse_bytes

BF16 = {"precision": "bf16"}  # auto would be what this machine is made for
PUBLISHED = {"growth_rate": 16, "blocks": 4, "units": 4, "residual": False}


def peaks_of(
    generator: dict[str, Any], critic: str | None, patch_size: int, micro_batch: int, precision: str, **others: Any
) -> dict[str, int]:
    """others: of MemorySettings, or of StepConfig."""
    more = {key: others.pop(key) for key in ("accumulates", "validation_patch") if key in others}
    step = StepConfig(micro_batch=micro_batch, precision=precision, **{"critic_samples": 1, **others})
    return peak_bytes(MemorySettings(generator, critic, patch_size, step, **more))


@pytest.mark.parametrize("critic", ["separable", "pointwise", "full"])
@pytest.mark.parametrize(("precision", "bound_gib"), [("bf16", 1.5), ("fp32", 2.5)])
def test_the_published_network_stays_within_its_bound(precision: str, bound_gib: float, critic: str) -> None:
    """At 2 x 64^3, where a plain implementation needs 6.6 GiB (generator) and 7.7 GiB (critic with its graph)."""
    peaks = peaks_of(PUBLISHED, critic, 64, 2, precision, recompute=True)
    assert peaks.keys() == {"pretrain", "critic", "generator", "inference"}
    assert max(peaks.values()) <= bound_gib * 2**30, {name: peak / 2**30 for name, peak in peaks.items()}
    # A single fp32 copy of the features of one block at 2 x 64^3 is 0.19 GiB; an estimate below it counts nothing.
    assert min(peaks.values()) > 0.1 * 2**30


def test_scoring_one_sample_at_a_time_is_what_keeps_the_critic_small() -> None:
    one, all_ = (peaks_of({"growth_rate": 2, "blocks": 1, "units": 1}, "separable", 32, 4, "fp32", critic_samples=n)
                 for n in (1, None))  # fmt: skip
    assert one["critic"] < 0.5 * all_["critic"]


def test_the_validation_cube_and_the_moving_average_are_counted() -> None:
    config = {"growth_rate": 4, "blocks": 2, "units": 2}
    fp32, bf16 = (peaks_of(config, None, 16, 1, p, recompute=True, validation_patch=48) for p in ("fp32", "bf16"))
    # 27 times the voxels of a patch, far more than gradients cost.
    assert max(fp32, key=lambda name: fp32[name]) == "validation"
    assert fp32["validation"] > 10 * fp32["inference"]
    assert bf16["validation"] < 0.9 * fp32["validation"]
    averaged = peaks_of(config, None, 16, 1, "fp32", recompute=True, validation_patch=48, ema_decay=0.9)
    generator = sum(parameter.numel() for parameter in MDCSRN(MDCSRNConfig(**config)).parameters()) * 4
    assert all(averaged[name] - fp32[name] == pytest.approx(generator, rel=0.1) for name in fp32)


def test_the_gradients_of_earlier_micro_batches_are_counted() -> None:
    """In the second of a step's micro-batches they are there all along, in the first mostly once the peak is over."""
    config = {"growth_rate": 4, "blocks": 2, "units": 2}
    once, more = (peaks_of(config, None, 16, 1, "fp32", accumulates=several) for several in (False, True))
    generator = sum(parameter.numel() for parameter in MDCSRN(MDCSRNConfig(**config)).parameters()) * 4
    assert 0.5 * generator < more["pretrain"] - once["pretrain"] <= generator
    assert more["inference"] == once["inference"]


@pytest.mark.parametrize(
    ("settings", "accumulates"),
    [
        ({"training": {**BF16, "batch_size": 4, "micro_batch": 2}, "resources": {"workers": 2}}, False),
        ({"training": {**BF16, "batch_size": 8, "micro_batch": 2}, "resources": {"workers": 2}}, True),
        (
            {"training": {**BF16, "batch_size": 4, "micro_batch": 2}, "resources": {"workers": 2, "min_workers": 1}},
            True,
        ),
    ],
)
def test_an_estimate_is_of_the_smallest_group_that_a_run_may_go_on_with(
    settings: dict[str, Any], accumulates: bool
) -> None:
    config = {"growth_rate": 2, "blocks": 1, "units": 1, "residual": False}
    l1_alone = {"total_steps": 2, "pretrain_steps": 2}
    small = {"stream": {"patch_size": 16}, "validation": {"patch_size": 16}, "schedule": l1_alone}
    experiment = Experiment.model_validate({"name": "elastic", "generator": config, **small, **settings})
    expected = peaks_of(config, None, 16, 2, "bf16", recompute=True, validation_patch=16, accumulates=accumulates)
    assert estimated_peaks(experiment, 2) == expected


def test_a_batch_is_found_where_validation_needs_most() -> None:
    assert largest_batch(lambda n: max(10**9, 30 * n), 2 * 10**9) == 2 * 10**9 // 30


def test_the_largest_batch_is_found() -> None:
    for limit in (100, 129, 130, 131, 777):
        assert largest_batch(lambda n: 70 + 30 * n + n // 7, limit) == max(
            n for n in range(1, 99) if 70 + 30 * n + n // 7 <= limit
        )
    with pytest.raises(ValueError, match=r"--fit-memory: a single patch needs .*generator\.recompute=true"):
        largest_batch(lambda n: 101 * n, 100)
    assert [parse_bytes(text) for text in ("8GiB", "1.5 GB", "900MiB", "17")] == [2**33, 1_500_000_000, 900 * 2**20, 17]
    for bad in ("", "8 gigs", "-1GiB", "8iB", "0GiB"):
        with pytest.raises(ValueError, match=r"--fit-memory .* write 8GiB"):
            parse_bytes(bad)


def test_fit_memory_chooses_the_batch_of_the_plan(small_store: Path) -> None:
    from mrisr.cli.app import app

    tiny = ["stream.patch_size=16", "validation.patch_size=16", "data.min_size=32", "generator.growth_rate=2",
            "generator.blocks=2", "generator.units=2", "schedule.total_steps=9", "schedule.pretrain_steps=9",
            "training.precision=bf16", "resources.workers=2"]  # fmt: skip
    command = ["train", *tiny, f"data.store={small_store}", "--dry-run", "--fit-memory", "5MiB"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = re.search(r"training\.batch_size=(\d+) ", done.output)
    assert found is not None
    each = int(found[1]) // 2
    assert each > 5
    config = {"growth_rate": 2, "blocks": 2, "units": 2, "residual": False}
    counted = max(peaks_of(config, None, 16, each, "bf16", recompute=True).values())
    assert counted == pytest.approx(0.85 * 5 * 2**20, rel=0.12), "the straight line meets what is counted"
    assert f"of {2 * each} patches on 2 workers" in done.output
    assert f"BatchNorm over {each}, on GPUs over all {2 * each})" in done.output
    assert re.search(r"memory .* validation \d\.\d\d GiB", done.output)
    assert re.search(r"evaluation  \d\.\d\d GiB beside the volume, for one of \d+x\d+x\d+", done.output)
    with pytest.raises(ValueError, match="a single patch needs"):
        CliRunner().invoke(app, [*command[:-1], "100KiB"], catch_exceptions=False)


def test_a_whole_volume_costs_a_few_planes() -> None:
    config = {"growth_rate": 4, "blocks": 2, "units": 2}
    cube = whole_volume_bytes(config, (24, 24, 24), "fp32")
    plane = 24 * 24 * 4
    weights = sum(parameter.numel() for parameter in MDCSRN(MDCSRNConfig(**config)).parameters()) * 4
    # The widest sum of inputs and outputs of a layer is that of the last concatenation: 12 + 4 and 16 channels.
    assert 32 * plane + weights < cube < 300 * plane + weights
    assert whole_volume_bytes(config, (24, 1000, 24), "fp32") == cube, "whatever the length"
    assert whole_volume_bytes(config, (48, 24, 96), "fp32") - weights == pytest.approx(2 * (cube - weights), rel=0.02)
    assert whole_volume_bytes(config, (24, 24, 24), "bf16") < 0.7 * cube


def test_a_whole_volume_in_one_piece_is_counted_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"growth_rate": 4, "blocks": 2, "units": 2}
    by_planes = whole_volume_bytes(config, (16, 16, 96), "fp32")
    monkeypatch.setattr(memory, "runs_by_planes", lambda network: False)
    assert whole_volume_bytes(config, (16, 16, 96), "fp32") > 32 * 16 * 16 * 96 * 4 > by_planes


@pytest.mark.parametrize("config", [{"growth_rate": 4, "blocks": 2, "units": 2}, {"kind": "rrdb", "features": 4}])
def test_what_a_whole_volume_takes_is_what_was_estimated(config: dict[str, Any]) -> None:
    """The bytes of all living tensors of a real pass from the first plane to the last, and of its input."""
    generator, volume = build_generator(config).eval(), torch.zeros(70, 24, 24)
    generator.channels_last = True
    with torch.no_grad(), LiveBytes() as counter:
        peak = counter.peak_of(lambda: [None for _ in forward_by_planes(generator, volume)])
    assert whole_volume_bytes(config, (70, 24, 24), "fp32") == pytest.approx(peak - volume.nbytes, rel=0.05)
