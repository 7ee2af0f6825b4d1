"""One rank of the parity test: `python parity_worker.py FOLDER RANK WORLD CASE...`; the test itself calls `run`.

Rank 0 writes the results of each case (see `Case`) to FOLDER/<world>-<case>.pt.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from mrisr.engine.checkpoint import load, save
from mrisr.engine.networks import Networks, average_statistics, build_networks, evaluated_state
from mrisr.engine.schedule import Schedule, phase
from mrisr.engine.sharding import float32_convolutions, full_state, largest, on_every_rank, plain, rank, world_size
from mrisr.engine.step import NonFiniteError, train_step
from mrisr.engine.step_settings import StepConfig
from mrisr.models import MDCSRN, build_critic
from mrisr.models.depthwise import DepthwiseConv3d
from mrisr.models.mdcsrn import MDCSRNConfig
from mrisr.models.seeding import initialise, uninitialised, uninitialised_conv3d

SCHEDULE = Schedule(
    pretrain_steps=3, critic_warmup_steps=1, critic_per_generator=1, boost_every=4, boost_steps=1, total_steps=10
)
# In float64 the ranks' order of summation stays far below every tolerance, at rates so large that a wrong gradient
# shows. float32 takes small rates: Adam's first steps are lr * sign(gradient), whole steps made of rounding.
CONFIGS = {
    "float64": StepConfig(
        seed=3, batch_size=6, pretrain_lr=1e-3, generator_lr=1e-3, critic_lr=1e-3, adversarial_weight=0.1, ema_decay=0.8
    ),
    "float32": StepConfig(seed=3, batch_size=6, pretrain_lr=1e-4, generator_lr=5e-6, critic_lr=5e-6),
}
PROGRESS = {"rows": [1, 2]}
POISONED = ("loss", "gradient norm")


@dataclass(frozen=True)
class Case:
    """Steps first ... last - 1 under a strategy, from the checkpoint `source`, if any, into `target`, if any."""

    strategy: str
    precision: str = "float64"
    first: int = 0
    last: int = SCHEDULE.total_steps
    source: str = ""
    target: str = ""

    @classmethod
    def parse(cls, text: str) -> Case:
        strategy, precision, first, last, source, target = text.split(":")
        return cls(strategy, precision, int(first), int(last), source, target)

    def __str__(self) -> str:
        return f"{self.strategy}:{self.precision}:{self.first}:{self.last}:{self.source}:{self.target}"


class SmallCritic(nn.Module):
    """Every kind of layer of the real critics, in some 5,000 parameters: (B, 1, 16, 16, 16) -> (B,)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            uninitialised_conv3d(1, 4, kernel_size=3, stride=2, padding=1),
            nn.LayerNorm([4, 8, 8, 8]),
            nn.LeakyReLU(0.2),
            uninitialised(DepthwiseConv3d, 4, stride=2),
            uninitialised_conv3d(4, 6, kernel_size=1, bias=False),
            nn.GroupNorm(1, 6),
            nn.LeakyReLU(0.2),
            nn.AdaptiveAvgPool3d(1),
            uninitialised_conv3d(6, 1, kernel_size=1),
        )
        initialise(self, seed, negative_slope=0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).flatten()


def device() -> torch.device:
    """A GPU of its own for each rank, if there are as many; the CPU for the reference, which has no process group."""
    gpus = dist.is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda", rank()) if gpus else torch.device("cpu")


def networks_for(strategy: str, precision: str, seed: int) -> Networks:
    """A tiny generator with the small critic in float64, with the report's own critic in float32."""
    generator = MDCSRN(MDCSRNConfig(2, 2, 2, residual=True), seed=seed)
    critic: nn.Module = (
        SmallCritic(seed + 1) if precision == "float64" else build_critic("pointwise", 16, seed=seed + 1)
    )
    dtype = getattr(torch, precision)
    return build_networks(generator.to(dtype), critic.to(dtype), CONFIGS[precision], device(), strategy)


def batch(step: int, precision: str) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's slice of the global batch of that step."""
    count = CONFIGS[precision].batch_size
    hr = torch.rand(count, 1, 16, 16, 16, generator=torch.Generator().manual_seed(100 + step))
    lr = nn.functional.avg_pool3d(hr, 3, stride=1, padding=1)
    share = count // world_size()
    mine = slice(rank() * share, (rank() + 1) * share)
    dtype = getattr(torch, precision)
    return lr[mine].to(dtype), hr[mine].to(dtype)


def run(case: Case, folder: Path) -> dict[str, Any]:
    """The history of metrics and the final weights of one case."""
    # A resumed run must owe everything to the checkpoint: it starts from other weights.
    networks = networks_for(case.strategy, case.precision, seed=50 if case.source else 1)
    if case.source:
        assert load(folder / case.source, networks) == {"step": case.first, **PROGRESS}
    history = []
    for step in range(case.first, case.last):
        now = phase(SCHEDULE, step)
        history.append(train_step(networks, CONFIGS[case.precision], now, step, *batch(step, case.precision)))
    if case.target:
        own = folder / f"{case.target}-rank{rank()}"  # as under Ray: every rank its own folder, merged afterwards
        save(own, networks, {"step": case.last, **PROGRESS})
        (folder / case.target).mkdir(exist_ok=True)
        for file in own.iterdir():
            assert not (folder / case.target / file.name).exists(), f"{file.name} collides"
            file.rename(folder / case.target / file.name)
    average_statistics(networks)
    assert networks.critic is not None
    states = {"generator": full_state(networks.generator), "critic": full_state(networks.critic)}
    if networks.ema:
        states["ema"] = evaluated_state(networks)
    return {"history": history, **states}


def is_statistic(name: str) -> bool:
    return "running" in name or "tracked" in name


def poisoned(strategy: str, value: str) -> dict[str, Any]:
    """What a step says on this rank if the LAST rank's loss or gradient is NaN, and whether the weights stood still."""
    networks = networks_for(strategy, "float64", seed=1)
    before = full_state(networks.generator)
    lr, hr = batch(0, "float64")
    if rank() == world_size() - 1:
        if value == "loss":
            hr[0, 0, 0, 0, 0] = float("nan")
        else:
            first = plain(networks.generator).get_submodule("conv0")
            first.register_forward_hook(lambda _, args, out: out.register_hook(lambda slope: slope * nan) and None)
    try:
        train_step(networks, CONFIGS["float64"], phase(SCHEDULE, 0), 0, lr, hr)
    except NonFiniteError as error:
        after = full_state(networks.generator)
        still = all(torch.equal(before[name], after[name]) for name in before if not is_statistic(name))
        return {"value": error.value, "ranks": error.ranks, "still": still}
    return {}


def main(folder: Path, own_rank: int, world: int, cases: list[Case]) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/rendezvous-{world}"
    gpus = torch.cuda.device_count() >= world
    float32_convolutions(tf32=False)
    if gpus:
        torch.cuda.set_device(own_rank)
    dist.init_process_group("nccl" if gpus else "gloo", init_method=meeting, rank=own_rank, world_size=world)
    assert largest(float(own_rank), device()) == world - 1
    for case in cases:
        result = run(case, folder)
        if own_rank == 0:
            torch.save(result, folder / f"{world}-{case}.pt")
    for strategy in ("fsdp", "ddp"):
        said: dict[str, Any] = {value: poisoned(strategy, value) for value in POISONED}
        # What torch.compile's ranks agree by: the last one says no.
        said["agreed"] = [on_every_rank(own, device()) for own in (True, own_rank < world - 1)]
        torch.save(said, folder / f"poisoned-{world}-{strategy}-{own_rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), [Case.parse(text) for text in sys.argv[4:]])
    # Everything is written. A gloo thread that lets go of its last tensor while the interpreter is being torn down
    # aborts the process (pytorch issue 190489: "terminate called without an active exception"); so no teardown.
    sys.stdout.flush()
    os._exit(0)
