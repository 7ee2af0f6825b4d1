"""The networks of a run with their optimizers, spread over the ranks."""

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

    batchnorm_over: patches that BatchNorm normalises over, see StepConfig. ema: the moving average of the generator's
    parameters by name, sharded like them; empty when it is off.
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
    """Place and shard the networks and make their optimizers; `critic` is None for a run that only pretrains.

    critic: (B, 1, P, P, P) -> (B,). Every rank must pass networks with equal weights. Raises ValueError for a batch
    size that the ranks cannot share, several micro-batches with synchronised BatchNorm, or an unknown strategy.
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
    """Networks that are placed and sharded, with the optimizers and the moving average that config asks for."""
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
            # As Adam itself makes it: the fused step counts on the parameter's device.
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter).detach(),
            "exp_avg_sq": torch.zeros_like(parameter).detach(),
        }
    return optimizer


def clipped_weights(critic: nn.Module) -> dict[str, Tensor]:
    """What weight clipping cuts, by name. Scales of normalisation layers are left out: small ones, layer after layer,
    would leave nothing of the critic's gradient (3e-17 in the separable critic, with a bound of 0.01)."""
    layers = plain(critic).named_modules()
    return {f"{name}.weight": layer.weight for name, layer in layers if isinstance(layer, nn.Conv3d | nn.Linear)}


def average_statistics(networks: Networks) -> None:
    """average_batchnorm for the generator and for its moving average, which is linear too; every rank must call it."""
    average_batchnorm(networks.generator)
    if world_size() > 1 and networks.ema:
        for name, _ in plain(networks.generator).named_buffers():
            if name in networks.ema:
                dist.all_reduce(networks.ema[name])
                networks.ema[name] /= world_size()


def evaluated_state(networks: Networks) -> dict[str, Tensor]:
    """full_state of the generator, with the moving average in place of its parameters where one is kept."""
    return full_state(networks.generator) | {name: whole(value) for name, value in networks.ema.items()}
