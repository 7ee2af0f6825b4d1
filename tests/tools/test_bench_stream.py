"""`mrisr bench stream` counts what it says, on a small store."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrisr.config import load_experiment
from mrisr.tools.bench_stream import STAGES, Measured, Speed, Stopwatch, measure_stream


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_both_make_every_patch_and_the_shares_are_those_of_the_cores(small_store: Path) -> None:
    overrides = {
        "data.store": small_store, "data.min_size": 32, "stream.patch_size": 16, "validation.patch_size": 16,
        "stream.patches_per_row": 3, "training.batch_size": 2,
    }  # fmt: skip
    experiment = load_experiment(None, [f"{key}={value}" for key, value in overrides.items()])
    measured = measure_stream(experiment, rows=5, cores=2)
    assert 0 < measured.stored < 4 * 41**3
    assert 2 * 39**3 < measured.decoded < 2 * 45**3
    # Two lanes of two rows each make 4 rows a turn, and two turns hold at least 5 rows.
    for speed in (measured.plain, measured.bare, measured.stream):
        assert speed.patches == 8 * 3
        shares = speed.shares()
        assert list(shares) == [*STAGES, "rest"]
        assert sum(shares.values()) == pytest.approx(1.0)
        mixes = speed is measured.stream
        assert all((shares[stage] > 0) == (stage != "mix" or mixes) for stage in STAGES)


def test_shares_and_ratio_are_written() -> None:
    bare = Speed(100, 2.0, 2, {"draw": 0.0, "read": 1.0, "transform": 2.0, "cut": 0.4, "mix": 0.1})
    stream = Speed(80, 2.0, 2, {"draw": 0.0, "read": 0.8, "transform": 1.6, "cut": 0.3, "mix": 0.1})
    plain = Speed(40, 2.0, 2, {"draw": 0.0, "read": 0.5, "transform": 3.0, "cut": 0.4, "mix": 0.1})
    assert bare.per_second == 50
    assert stream.shares()["rest"] == pytest.approx(0.3)
    text = "\n".join(Measured(plain, bare, stream, 64, 10, 12.5e6, 50e6).lines())
    assert "stream / plain loop 200%" in text
    assert "stream / its rows without Ray 80%" in text
    assert "12.5 MB read and 50.0 MB decoded, and 0.750 s of a core" in text
    assert "50.0%" in text


def test_a_stopwatch_counts_inner_stages_for_themselves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    watch = Stopwatch()
    for _ in range(2):
        with watch.stage("mix"):
            for _ in range(2):
                with watch.stage("cut"), watch.stage("read"):
                    pass
        with watch.stage("draw"):
            pass
    # "mix" lasts from tick 0 to 9, and 2 x 3 ticks of them are those of "cut" with "read" inside.
    assert watch.seconds == {"mix": 2 * 3, "cut": 2 * 2 * 2, "read": 2 * 2 * 1, "draw": 2 * 1, "transform": 0}
