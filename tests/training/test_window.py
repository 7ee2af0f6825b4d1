"""Records are means per phase; a window that went through a checkpoint gives the record of an uninterrupted one."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from mrisr.engine.schedule import Phase
from mrisr.training.state import Window

STEPS = [
    (Phase.CRITIC, {"loss": 2.0, "penalty": 0.5}, 4e-5, 0.1, 1.0),
    (Phase.CRITIC, {"loss": 4.0, "penalty": 1.5}, 3e-5, 0.3, 1.0),
    (Phase.GENERATOR, {"loss": 7.0}, 1e-6, 0.0, 2.0),
]


def test_means_per_phase_rates_and_throughput() -> None:
    window = Window()
    for step in STEPS:
        window.add(*step)
    record = window.record(batch_size=4)
    assert record["critic/loss"] == 3.0
    assert record["critic/penalty"] == 1.0
    assert record["generator/loss"] == 7.0
    assert record["critic/learning_rate"] == 3e-5
    assert "pretrain/learning_rate" not in record
    assert record["throughput/steps_per_second"] == pytest.approx(3 / 4)
    assert record["throughput/patches_per_second"] == pytest.approx(3)
    assert record["throughput/data_wait_share"] == pytest.approx(0.1)
    assert Window().record(2) == {}


def test_a_window_survives_a_checkpoint() -> None:
    whole, first = Window(), Window()
    for step in STEPS:
        whole.add(*step)
    first.add(*STEPS[0])
    second = Window(**json.loads(json.dumps(asdict(first))))
    for step in STEPS[1:]:
        second.add(*step)
    assert second.record(2) == whole.record(2)
