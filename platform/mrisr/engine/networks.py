"""The networks of a run with their optimizers, sharded over the ranks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mrisr.engine.objectives import CriticObjective
from mrisr.engine.sharding import average_batchnorm, averaged_tensors, full_state, plain, shard, whole, world_size
from mrisr.engine.step_settings import StepConfig
from mrisr.models.generator import Generator


@dataclass
class Networks:
    """Generator and critic objective, each one sharded unit; optimizers pretrain, adversarial, critic.

    batchnorm_over: number of patches that BatchNorm normalises over, see StepConfig. ema: the moving average of the
    generator's parameters by name, sharded like them; empty if it is off.
    """

    generator: nn.Module
    critic: nn.Module | None
    optimizers: dict[str, torch.optim.Adam]
    device: torch.device
    strategy: str
    batchnorm_over: int
    ema: dict[str, Tensor] = field(default_factory=dict)


def build_networks(
    generator: Generator,
    critic: nn.Module | None,
    config: StepConfig,
    device: torch.device,
    strategy: str = "fsdp",
) -> Networks:
    """Place and shard the networks and make their optimizers. critic: (B, 1, P, P, P) -> (B,), None for pretraining
    only.

    Every rank must pass networks with equal weights. Raises ValueError for a batch size that the ranks cannot share,
    several micro-batches with synchronised BatchNorm, or an unknown strategy.
    """
    config.local_batch(world_size())
    over = config.batchnorm_over(world_size(), device.type == "cuda")
    generator.channels_last, generator.recompute = config.channels_last, config.recompute
    module: nn.Module = generator
    if over != config.micro_batch:
        module = nn.SyncBatchNorm.convert_sync_batchnorm(generator)
    sharded = shard(module, strategy, device)
    objective = None
    if critic is not None:
        objective = shard(CriticObjective(critic, config.gp_weight, config.critic_samples), strategy, device)
    return with_optimizers(Networks(sharded, objective, {}, device, strategy, over), config)


def with_optimizers(networks: Networks, config: StepConfig) -> Networks:
    generator, objective = networks.generator, networks.critic
    optimizers = {"pretrain": _adam(generator, config.pretrain_lr, config)}
    if objective is not None:
        optimizers |= {
            "adversarial": _adam(generator, config.generator_lr, config),
            "critic": _adam(objective, config.critic_lr, config),
        }
    ema = {}
    if config.ema_decay is not None:
        ema = {name: value.detach().clone() for name, value in averaged_tensors(generator).items()}
    return replace(networks, optimizers=optimizers, ema=ema)


def _adam(module: nn.Module, rate: float, config: StepConfig) -> torch.optim.Adam:
    """Fused Adam whose state exists from the start, so that a checkpoint has the same entries at every step."""
    optimizer = torch.optim.Adam(module.parameters(), lr=rate, betas=config.adam_betas, eps=config.adam_eps, fused=True)
    for parameter in module.parameters():
        optimizer.state[parameter] = {
            # Like Adam's own: the fused version counts steps on the parameter's device.
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter).detach(),
            "exp_avg_sq": torch.zeros_like(parameter).detach(),
        }
    return optimizer


def clipped_weights(critic: nn.Module) -> dict[str, Tensor]:
    """The weights to clip, by name, without scales of normalisation layers.

    Small scales would make the critic's gradient vanish (3e-17 in the separable critic, bound 0.01).
    """
    layers = plain(critic).named_modules()
    return {f"{name}.weight": layer.weight for name, layer in layers if isinstance(layer, nn.Conv3d | nn.Linear)}


def average_statistics(networks: Networks) -> None:
    """Call average_batchnorm for the generator and its moving average. Every rank must call it."""
    average_batchnorm(networks.generator)
    if world_size() > 1 and networks.ema:
        for name, _ in plain(networks.generator).named_buffers():
            if name in networks.ema:
                dist.all_reduce(networks.ema[name])
                networks.ema[name] /= world_size()


def evaluated_state(networks: Networks) -> dict[str, Tensor]:
    """full_state of the generator. If there is a moving average, it replaces the parameters."""
    return full_state(networks.generator) | {name: whole(value) for name, value in networks.ema.items()}
