"""Seconds per training step: ours against a plain single-process PyTorch loop of the same networks, in one run.

On a CPU and on a CUDA device: our step in bf16 with channels_last_3d against the plain loop in fp32 and contiguous
memory, and in our settings. On CUDA also patches/s and the share of the card's measured matmul rate. Needs torch only.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mrisr.models import MDCSRN, build_critic
from mrisr.training.schedule import Phase
from mrisr.training.step import StepConfig, build_networks, train_step

PUBLISHED: dict[str, Any] = {"growth_rate": 16, "blocks": 4, "units": 4, "residual": False}


def patches(count: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    hr = torch.rand(count, 1, size, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    return 0.9 * hr, hr


def median_seconds(step: Callable[[int], object], repeats: int, warm_up: int = 2) -> float:
    seconds = []
    for index in range(warm_up + repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        step(index)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[warm_up:])


def plain_loop(
    lr: Tensor, hr: Tensor, bf16: bool, channels_last: bool, recompute: bool
) -> dict[Phase, Callable[[int], object]]:
    """The steps as a script would write them: one process, no micro-batches, no check of what is finite."""
    generator = MDCSRN(**PUBLISHED, channels_last=channels_last, recompute=recompute).to(lr.device).train()
    critic = build_critic("separable", lr.shape[-1]).to(lr.device)
    moves = {net: torch.optim.Adam(net.parameters(), lr=1e-5) for net in (generator, critic)}

    def generate() -> Tensor:
        with torch.autocast(lr.device.type, torch.bfloat16, enabled=bf16):
            return generator(lr).float()

    def update(network: nn.Module, loss: Tensor) -> float:
        moves[network].zero_grad(set_to_none=True)
        loss.backward()
        moves[network].step()
        return loss.item()

    def pretrain(index: int) -> float:
        return update(generator, (generate() - hr).abs().mean())

    def train_critic(index: int) -> float:
        with torch.no_grad():
            fake = generate()
        mixed = torch.lerp(fake, hr, 0.5).requires_grad_()
        (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        return update(critic, critic(fake).mean() - critic(hr).mean() + 10 * penalty)

    return {Phase.PRETRAIN: pretrain, Phase.CRITIC: train_critic}


def our_loop(lr: Tensor, hr: Tensor, **options: Any) -> dict[Phase, Callable[[int], object]]:
    config = StepConfig(batch_size=lr.shape[0], micro_batch=lr.shape[0], precision="bf16", **options)
    critic = build_critic("separable", lr.shape[-1])
    networks = build_networks(MDCSRN(**PUBLISHED), critic, config, lr.device, "single")
    return {
        p: lambda index, p=p: train_step(networks, config, p, index, lr, hr) for p in (Phase.PRETRAIN, Phase.CRITIC)
    }


def cpu(size: int, repeats: int) -> None:
    lr, hr = patches(2, size, torch.device("cpu"))
    threads = torch.get_num_threads()
    print(f"CPU, {threads} threads, 2 x {size}^3, published generator, separable critic; medians of {repeats}\n")
    print("| step | seconds |\n|---|---|", flush=True)
    for name, steps in (
        ("plain loop, fp32, contiguous", plain_loop(lr, hr, False, False, False)),
        ("plain loop, bf16, channels_last_3d", plain_loop(lr, hr, True, True, False)),
        ("ours, bf16, channels_last_3d", our_loop(lr, hr)),
        ("ours, bf16, channels_last_3d, recompute", our_loop(lr, hr, recompute=True)),
    ):
        for phase, step in steps.items():
            print(f"| {phase}: {name} | {median_seconds(step, repeats):.3f} |", flush=True)


def cuda(size: int, repeats: int) -> None:
    device = torch.device("cuda")
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    rate = 2 * 8192**3 / median_seconds(lambda index: a @ a, 20)
    lr, hr = patches(2, size, device)
    print(f"{torch.cuda.get_device_name()}: {rate / 1e12:.0f} TFLOP/s measured in bf16 matmul; 2 x {size}^3\n")
    print("| step | seconds | steps/s | patches/s | share of matmul rate |\n|---|---|---|---|---|")
    for name, steps in (
        ("plain loop, fp32, contiguous", plain_loop(lr, hr, False, False, False)),
        ("plain loop, bf16, channels_last_3d", plain_loop(lr, hr, True, True, False)),
        ("ours, bf16, channels_last_3d", our_loop(lr, hr)),
        ("ours, bf16, channels_last_3d, recompute", our_loop(lr, hr, recompute=True)),
    ):
        for phase, step in steps.items():
            with FlopCounterMode(display=False) as flops:
                step(0)
            seconds = median_seconds(step, repeats, warm_up=5)
            share = flops.get_total_flops() / seconds / rate
            print(
                f"| {phase}: {name} | {seconds:.4f} | {1 / seconds:.2f} | {2 / seconds:.2f} | {share:.1%} |", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, help="edge of the patches; 32 on a CPU, 64 on a GPU")
    parser.add_argument("--repeats", type=int, help="steps per median; 5 on a CPU, 20 on a GPU")
    options = parser.parse_args()
    if torch.cuda.is_available():
        cuda(options.size or 64, options.repeats or 20)
    else:
        cpu(options.size or 32, options.repeats or 5)


if __name__ == "__main__":
    main()
