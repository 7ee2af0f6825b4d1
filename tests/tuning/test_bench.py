"""The table that sets searches beside each other reads figures in their own direction and leaves failed trials out."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import yaml

ROW = runpy.run_path(str(Path(__file__).resolve().parents[2] / "ci" / "bench_tuning.py"))["row"]
TEST = "region,method,psnr\nwhole,zero-filled,29.0\nwhole,model,30.5\nwhole,model,31.5\n"


def searched(folder: Path, metric: str, key: str, trials: list[tuple[str, str]]) -> list[str]:
    """The table's row of a search with trials of 4 steps, by (state, figure)."""
    settings = {"tuning": {"metrics": [metric], "sampler": "random", "scheduler": "asha"}, "space": {key: ""}}
    (folder / "search.yaml").write_text(yaml.safe_dump(settings))
    rows = "".join(f"{state},4,{figure}\n" for state, figure in trials)
    (folder / "trials.csv").write_text(f"state,steps,{metric}\n{rows}")
    (folder / "test-model-1.csv").write_text(TEST)
    row: list[str] = ROW(folder)
    assert row[-1] == "zero-filled 29.00, model 31.00"
    return row


@pytest.mark.parametrize(("metric", "best"), [("nrmse", ["0.100", "0.050"]), ("psnr", ["0.400", "0.900"])])
def test_the_best_is_the_smallest_nrmse_and_the_largest_psnr(tmp_path: Path, metric: str, best: list[str]) -> None:
    ended = [("failed", "0.001"), ("finished", "0.400"), ("stopped early", "0.100"), ("failed", "")]
    more = [("finished", "0.050"), ("finished", "0.900"), ("failed", ""), ("finished", "0.300")]
    row = searched(tmp_path, metric, "training.gp_weight", [*ended, *more])
    assert row[2:6] == ["32", *best, ""]


def test_the_noise_is_that_of_the_seeds_that_ended(tmp_path: Path) -> None:
    ended = [("finished", "30.0"), ("finished", "32.0"), ("failed", ""), ("failed", "1.0")]
    row = searched(tmp_path, "psnr", "seed", ended)
    assert row[1] == "2 finished + 2 failed"
    assert row[3] == "31.000 ± 1.414 over 2 seeds (30.000, 32.000)"
    assert searched(tmp_path, "psnr", "seed", ended[1:])[3] == "32.000 over 1 seed (32.000)"
    assert searched(tmp_path, "psnr", "seed", ended[2:])[3] == "all failed"
