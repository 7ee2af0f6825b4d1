"""Builds the parts of a training run from its configuration: schedule, step settings, stream and networks."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import load_file

from mrisr.config import Experiment
from mrisr.data.rows import PatchMaker, RowPlan
from mrisr.engine.compiling import compile_generator, different_units, why_eager
from mrisr.engine.networks import Networks, build_networks
from mrisr.engine.precision import precision_on
from mrisr.engine.sharding import rank, world_size
from mrisr.engine.step_settings import StepConfig, StepSettings
from mrisr.models import build_critic, build_generator
from mrisr.models.generator import Generator
from mrisr.training.progress import Tell


def step_config(experiment: Experiment, device: torch.device = torch.device("cpu")) -> StepConfig:
    """The settings of the experiment's steps. device: decides the precision if training.precision is auto."""
    t = experiment.training
    shared = {one.name: getattr(t, one.name) for one in fields(StepSettings)}
    return StepConfig(**shared | {
        "micro_batch": experiment.micro_batch,
        "precision": precision_on(t.precision, device),
        "seed": experiment.seed,
        "recompute": experiment.generator.recompute,
        "critic_samples": experiment.critic.samples_at_once,
        "weight_clip": experiment.critic.weight_clip,
        "ema_decay": experiment.generator.ema_decay,
        # One rule: a given micro_batch is what BatchNorm normalises over. Without one it is the whole batch where torch
        # can synchronise (CUDA), unless the group may change its size, which would change the numbers.
        "sync_batchnorm": t.micro_batch is None and experiment.resources.min_workers is None,
    })  # fmt: skip


def patch_maker(experiment: Experiment, subjects: list[str], dataset: str | None = None) -> PatchMaker:
    stream = experiment.stream
    plan = RowPlan(
        tuple(subjects), experiment.seed, stream.patches_per_row, stream.interleave_rows, experiment.training.batch_size
    )
    return PatchMaker(
        experiment.data.store, plan, experiment.degradation, stream.patch_size, stream.min_foreground,
        experiment.augmentation, dataset,
    )  # fmt: skip


def initial_networks(
    experiment: Experiment, initial: Path | None, device: torch.device, tell: Tell = print
) -> Networks:
    """Sharded networks. The generator's weights come from the file `initial`; without one, all weights are seeded."""
    generator = build_generator(experiment.generator.architecture, seed=experiment.seed)
    critic = None
    if experiment.schedule.needs_critic:
        kind, width = experiment.critic.kind, experiment.critic.width
        critic = build_critic(kind, experiment.stream.patch_size, width, seed=experiment.seed)
    if initial is not None:
        generator.load_state_dict(load_file(initial))
    config = step_config(experiment, device)
    if experiment.training.compile:
        _compile(generator, config, experiment.stream.patch_size, device, tell)
    return build_networks(generator, critic, config, device, experiment.training.strategy)


def _compile(generator: Generator, config: StepConfig, patch_size: int, device: torch.device, tell: Tell) -> None:
    synchronised = config.batchnorm_over(world_size(), device.type == "cuda") != config.micro_batch
    why = why_eager(different_units(generator), config.local_batch(world_size()) // config.micro_batch, synchronised)
    if why is None:
        generator.to(device)
        generator.channels_last, generator.recompute = config.channels_last, config.recompute
        if compile_generator(generator, config.micro_batch, patch_size, config.precision, tell=tell) is None:
            why = "on some worker it fails, or its gradients are not those of eager mode"
    if why is not None and rank() == 0:
        tell(f"training.compile: nothing is compiled: {why}")
