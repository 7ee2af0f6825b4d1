"""Ray Train's processes that a run does without: Ray still has them, under the names that are left out."""

from __future__ import annotations

from pathlib import Path

from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from mrisr.training import trainer


def test_what_is_left_out_is_what_ray_would_start(tmp_path: Path) -> None:
    made = trainer.Trainer(
        lambda: None, scaling_config=ScalingConfig(num_workers=1), run_config=RunConfig(storage_path=str(tmp_path))
    )
    ours = {type(one).__name__ for one in made._create_default_callbacks()}
    theirs = {type(one).__name__ for one in TorchTrainer._create_default_callbacks(made)}
    assert theirs - ours == {*trainer.UNUSED_CALLBACKS}
    assert ours
    assert trainer.TrainController is not None
    assert hasattr(TorchTrainer, "_initialize_and_run_controller")
