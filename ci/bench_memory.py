"""Peak memory of every kind of step at batch 2 x 64^3: a plain implementation against ours, as a table.

Bytes of live tensors under FakeTensorMode (no GPU needed). With a CUDA device also the peak of its allocator in real
steps (torch.cuda.max_memory_allocated). Needs torch only. Validation is one cube of the size of the patches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mrisr.engine.memory import MemorySettings, counting, make_fake, peak_bytes
from mrisr.engine.networks import build_networks
from mrisr.engine.schedule import Phase
from mrisr.engine.sharding import float32_convolutions
from mrisr.engine.step import train_step
from mrisr.engine.step_settings import StepConfig
from mrisr.models import MDCSRN, build_critic, build_generator
from mrisr.models.mdcsrn import MDCSRNConfig

PATCH, BATCH = 64, 2
COLUMNS = ("pretrain", "critic", "generator", "inference", "validation")
NETWORK: dict[str, Any] = {"growth_rate": 16, "blocks": 4, "units": 4, "residual": False}


class PlainMDCSRN(MDCSRN):
    """The same network written the usual way: features are concatenated and kept for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        whole = self.conv0(x)
        features = whole
        for block in range(self.config.blocks):
            if block:
                features = F.conv3d(whole, self.get_parameter(f"comp{block - 1}.weight"))
            whole = torch.cat([whole, self.get_submodule(f"block{block}")(features)], dim=1)
        return self.recon(whole)


def plain_peaks(critic_kind: str) -> dict[str, int]:
    """The usual WGAN-GP steps in fp32; the critic's keeps the generator's graph, as the report's did."""
    generator, critic = PlainMDCSRN(MDCSRNConfig(**NETWORK)), build_critic(critic_kind, PATCH)

    def pretrain(lr: Tensor, hr: Tensor) -> None:
        (generator(lr) - hr).abs().mean().backward()

    def adversarial(lr: Tensor, hr: Tensor) -> None:
        fake = generator(lr)
        ((fake - hr).abs().mean() - 1e-3 * critic(fake).mean()).backward()

    def train_critic(lr: Tensor, hr: Tensor) -> None:
        fake = generator(lr)
        mixed = torch.lerp(fake, hr, 0.5)
        (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        (critic(fake).mean() - critic(hr).mean() + 10 * penalty).backward()

    steps = {"pretrain": pretrain, "critic": train_critic, "generator": adversarial}
    peaks = {}
    with counting() as counter:
        for module in (generator, critic):
            make_fake(module)
        parameters = [*generator.parameters(), *critic.parameters()]
        moments = [torch.empty_like(parameter) for parameter in parameters for _ in range(2)]
        lr, hr = (torch.empty(BATCH, 1, *[PATCH] * 3) for _ in range(2))
        for name, step in steps.items():
            peaks[name] = counter.peak_of(partial(step, lr, hr))
            for parameter in parameters:
                parameter.grad = None
        del moments
    return peaks


def cuda_peaks(critic_kind: str, precision: str, recompute: bool) -> dict[str, int]:
    """What the CUDA allocator reports for real steps, warm, and for what they leave allocated beside them."""
    device = torch.device("cuda")
    config = StepConfig(batch_size=BATCH, micro_batch=BATCH, precision=precision, recompute=recompute, critic_samples=1)
    networks = build_networks(build_generator(NETWORK), build_critic(critic_kind, PATCH), config, device, "single")
    hr = torch.rand(BATCH, 1, *[PATCH] * 3, generator=torch.Generator().manual_seed(0))
    evaluated = build_generator(NETWORK).to(device).eval()
    evaluated.channels_last = config.channels_last

    @torch.no_grad()
    def infer(count: int) -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            evaluated(hr[:count].to(device)).float()

    steps: dict[str, Callable[[], object]] = {
        phase: partial(train_step, networks, config, phase, 0, hr, hr) for phase in Phase
    }
    steps |= {"inference": partial(infer, BATCH), "validation": partial(infer, 1)}
    peaks = {}
    for name, step in steps.items():
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        peaks[str(name)] = torch.cuda.max_memory_allocated()
    return peaks


def row(name: str, peaks: dict[str, int]) -> None:
    columns = [peaks.get(step) for step in COLUMNS]
    cells = " | ".join("      " if value is None else f"{value / 2**30:6.2f}" for value in columns)
    print(f"| {name:<44} | {cells} |", flush=True)


def main() -> None:
    float32_convolutions(tf32=False)
    print(
        f"Peak GiB at {BATCH} x {PATCH}^3, parameters, gradients and optimizers included (torch {torch.__version__})\n"
    )
    print(f"| {'':<44} | {' | '.join(COLUMNS)} |\n|{'---|' * (1 + len(COLUMNS))}")
    row("plain, fp32, separable critic", plain_peaks("separable"))
    for critic in ("separable", "pointwise", "full"):
        for precision in ("fp32", "bf16"):
            for recompute in (False, True):
                name = f"ours, {precision}, {critic} critic{', recompute' if recompute else ''}"
                step = StepConfig(
                    batch_size=BATCH, micro_batch=BATCH, precision=precision, recompute=recompute, critic_samples=1
                )
                row(name, peak_bytes(MemorySettings(NETWORK, critic, PATCH, step, validation_patch=PATCH)))
                if torch.cuda.is_available():
                    row(f"  on {torch.cuda.get_device_name()[:38]}", cuda_peaks(critic, precision, recompute))


if __name__ == "__main__":
    main()
