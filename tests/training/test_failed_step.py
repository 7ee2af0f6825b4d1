"""One process repeats what several did: the patches that BatchNorm normalised over become one micro-batch."""

from __future__ import annotations

import math

import pytest
import torch

from mrisr.config import load_experiment
from mrisr.engine.networks import build_networks
from mrisr.engine.schedule import Phase
from mrisr.engine.step import train_step
from mrisr.engine.step_settings import StepConfig
from mrisr.models import MDCSRN, build_critic
from mrisr.models.mdcsrn import MDCSRNConfig
from mrisr.training.build import step_config
from mrisr.training.failed_step import on_one_worker, regrouped


def test_ranks_that_normalised_together_are_one_micro_batch() -> None:
    """Two synchronised GPUs of two patches each; and the same without synchronisation."""
    raw = ["training.batch_size=4", "resources.workers=2", "training.strategy=ddp", "training.compile=true"]
    experiment = load_experiment(None, [*raw, "schedule.total_steps=9", "schedule.pretrain_steps=9"])
    for gpu, over in ((True, 4), (False, 2)):
        assert step_config(experiment).batchnorm_over(2, gpu) == over
        for precision in ("fp32", "bf16"):
            assert step_config(on_one_worker(experiment, over, precision)).precision == precision
        config = step_config(on_one_worker(experiment, over, "fp32"))
        assert (config.micro_batch, config.batchnorm_over(1, gpu), config.local_batch(1)) == (over, over, 4)


def test_their_losses_are_the_mean() -> None:
    pairs: list[tuple[float | str, float | str]] = [(1.0, "nan"), (2.0, 3.0), (4.0, 5.0), ("inf", 7.0)]
    told = [{"loss": loss, "l1": l1} for loss, l1 in pairs]
    assert regrouped(told[1:3], 1) == [{"loss": 2.0, "l1": 3.0}, {"loss": 4.0, "l1": 5.0}]
    first, second = regrouped(told, 2)
    assert first["loss"] == 1.5
    assert math.isnan(first["l1"])
    assert second == {"loss": math.inf, "l1": 6.0}


def test_the_mean_of_the_ranks_terms_is_the_whole_batchs() -> None:
    """By networks that do not look at the micro-batch: every term of every phase is a mean over patches."""
    hr = torch.rand(4, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    found = []
    for micro in (2, 4):
        config = StepConfig(batch_size=4, micro_batch=micro)
        generator = MDCSRN(MDCSRNConfig(2, 1, 1), seed=1)
        torch.nn.init.zeros_(generator.block0.denselayer1.norm.weight)
        networks = build_networks(generator, build_critic("separable", 16), config, torch.device("cpu"), "single")
        found.append(
            [train_step(networks, config, phase, 3, 0.9 * hr, hr) for phase in (Phase.CRITIC, Phase.GENERATOR)]
        )
    for parts, whole in zip(*found, strict=True):
        assert parts == pytest.approx(whole, rel=1e-4, abs=1e-6)
