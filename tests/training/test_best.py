"""The best weights are those of the best score, as a search scores its trials; a checkpoint keeps which they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mrisr.config import load_experiment
from mrisr.config.validation import Validation
from mrisr.training.checkpoints import BEST_WEIGHTS
from mrisr.training.state import Best, RunState, score
from mrisr.tuning.history import TrialHistory

# Step 0 is the best in every figure. After it: best by PSNR under the main protocol, by NRMSE, by the mean, none.
SEEN = [
    (0, {"psnr": 40.0, "nrmse": 0.01, "ssim": 0.99, "hz2538/psnr": 40.0, "hz2538/nrmse": 0.01, "hz2538/ssim": 0.99}),
    (4, {"psnr": 30.0, "nrmse": 0.30, "ssim": 0.70, "hz2538/psnr": 20.0, "hz2538/nrmse": 0.30, "hz2538/ssim": 0.70}),
    (8, {"psnr": 29.0, "nrmse": 0.10, "ssim": 0.80, "hz2538/psnr": 21.0, "hz2538/nrmse": 0.50, "hz2538/ssim": 0.60}),
    (12, {"psnr": 28.0, "nrmse": 0.20, "ssim": 0.60, "hz2538/psnr": 29.0, "hz2538/nrmse": 0.15, "hz2538/ssim": 0.75}),
    (16, {"psnr": 28.0, "nrmse": 0.20, "ssim": 0.60, "hz2538/psnr": 29.0, "hz2538/nrmse": 0.15, "hz2538/ssim": 0.75}),
]


def best_of(**keys: Any) -> Best:
    best = Best(Validation(**keys))
    for step, figures in SEEN:
        best.offer(step, figures, {"w": torch.tensor([float(step)])})
    return best


@pytest.mark.parametrize(
    ("metric", "protocols", "step"),
    [
        ("psnr", (), 4),
        ("ssim", (), 8),
        ("nrmse", (), 8),
        ("psnr", ("chen2018", "hz2538"), 12),
        ("nrmse", ("chen2018", "hz2538"), 12),
        ("psnr", ("hz2538",), 12),
    ],
)
def test_the_best_weights_of_a_trial_are_those_that_gave_its_score(
    tmp_path: Path, metric: str, protocols: tuple[str, ...], step: int
) -> None:
    best = best_of(metric=metric, mean_over=protocols, start_counts=False)
    assert (best.step, best.state["w"].item(), best.figures) == (step, float(step), dict(SEEN)[step])
    record = TrialHistory(tmp_path)
    for validated, figures in SEEN:
        record.add(validated, {metric: score(figures, metric, "chen2018", protocols)})
    assert record.results((metric,))[-1]["best_step"] == step


def test_outside_of_a_search_the_weights_before_the_first_step_may_stay_the_best() -> None:
    assert best_of().step == 0
    assert best_of(metric="nrmse").step == 0


def test_the_best_is_the_same_after_a_restart_also_before_any_validation_counts(tmp_path: Path) -> None:
    before = best_of(start_counts=False)
    save_file(before.state, tmp_path / BEST_WEIGHTS)
    after = Best(before.validation)
    after.restore(before.progress(), tmp_path)
    assert (after.step, after.figures, after.state) == (before.step, before.figures, before.state)
    assert not after.offer(20, {"psnr": 29.9}, {})
    assert after.offer(24, {"psnr": 30.1}, {})

    none = Best(Validation(start_counts=False))
    assert not none.offer(0, SEEN[0][1], {})
    again = Best(none.validation)
    again.restore(none.progress(), tmp_path / "holds-no-weights")
    assert again.step is None
    assert again.offer(4, SEEN[1][1], {})


def state_of(schedule: str) -> RunState:
    return RunState.of(load_experiment(None, [f"schedule={schedule}", "stream.patch_size=16", "critic.kind=pointwise"]))


TWO_STAGES = "{total_steps: 24, pretrain_steps: 8, critic_warmup_steps: 4, critic_per_generator: 2}"


def offered(state: RunState, figures: dict[int, float]) -> None:
    for step, psnr in figures.items():
        state.step = step
        state.offer({"psnr": psnr}, {"w": torch.tensor([float(step)])})


def test_the_best_weights_of_either_stage_are_kept(tmp_path: Path) -> None:
    """WGAN-GP costs PSNR, so the best of the run are of L1. The critic's warm-up leaves the weights as they are."""
    state = state_of(TWO_STAGES)
    offered(state, {0: 20.0, 6: 25.0, 12: 24.0, 14: 26.0, 18: 23.0, 24: 22.0})
    assert state.best.step == 14
    assert {stage: best.step for stage, best in state.stages.items()} == {"l1": 14, "wgan-gp": 18}
    for name, weights in state.weights().items():
        save_file(dict(weights), tmp_path / name)
    progress = {"step": 24, "window": {}, "critic_norms": [], "latest": {}, "best": state.best.progress()}
    stages = {stage: best.progress() for stage, best in state.stages.items()}
    again = state_of(TWO_STAGES)
    again.restore({**progress, "best_of_stage": stages}, tmp_path)
    assert {s: (b.step, b.figures, b.state) for s, b in again.stages.items()} == {
        s: (b.step, b.figures, b.state) for s, b in state.stages.items()
    }
    older = state_of(TWO_STAGES)
    older.restore(progress, tmp_path)
    assert {stage: best.step for stage, best in older.stages.items()} == {"l1": 14, "wgan-gp": None}


def test_a_run_of_one_stage_keeps_one_file(tmp_path: Path) -> None:
    only = state_of("{total_steps: 24, pretrain_steps: 24}")
    offered(only, {0: 20.0, 6: 25.0})
    assert list(only.weights()) == [BEST_WEIGHTS]
    # Weights that the run began from are nobody's L1 stage.
    warm = state_of("{total_steps: 24, pretrain_steps: 0, critic_warmup_steps: 4, critic_per_generator: 2}")
    offered(warm, {0: 30.0, 12: 25.0})
    assert warm.best.step == 0
    assert {stage: best.step for stage, best in warm.stages.items()} == {"wgan-gp": 12}
