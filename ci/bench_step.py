"""Our training step against a plain PyTorch loop of the same networks, in one run, as times and as ratios.

On a CUDA device if there is one, else on a CPU: layouts and precisions, and their gradients; the cost of Ray Train and
FSDP at one worker; how two workers on two cores (or GPUs) scale against one on one. Step times are medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence

import torch
from step_loops import (
    PHASES,
    PUBLISHED,
    in_turns,
    interleaved,
    our_loop,
    patches,
    plain_loop,
    plain_processes,
    under_ray,
    with_tf32,
)
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from mrisr.cluster import worker_environment
from mrisr.engine.compiling import compile_generator, distance, gradients
from mrisr.engine.objectives import CriticObjective
from mrisr.engine.precision import native_bf16, precision_on
from mrisr.engine.schedule import Phase
from mrisr.engine.sharding import float32_convolutions
from mrisr.models import build_critic, build_generator

PATCHES = 2
PLAIN = "plain loop, fp32, contiguous"
PARTS = ("layouts", "compile", "overhead", "scaling")


def median(seconds: Sequence[float]) -> float:
    return statistics.median(seconds)


def matmul_rate(device: torch.device) -> float:
    """Measured FLOP/s of a large matrix product in the precision of `auto`."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(0)).to(
        device, torch.bfloat16 if native_bf16(device) else torch.float32
    )
    return 2 * n**3 / median(interleaved({"": lambda index: a @ a}, 10)[""])


def convolution_backward_flops(  # noqa: PLR0913  # the signature that FlopCounterMode calls
    gradient: list[int],
    x: list[int],
    weight: list[int],
    bias: object,
    stride: object,
    padding: object,
    dilation: object,
    transposed: bool,
    output_padding: object,
    groups: int,
    wanted: list[bool],
    out_shape: object,
) -> int:
    """FLOPs of the gradients, each equal to the forward pass's. torch counts a depthwise weight's as a full one's."""
    return sum(wanted[:2]) * conv_flop_count(x, weight, gradient, transposed=transposed)


def layouts(size: int, repeats: int, device: torch.device, phases: Sequence[Phase]) -> list[str]:
    """Table of steps in one process; returns the lines of the ratios."""
    rate, fast = matmul_rate(device), precision_on("auto", device)
    names = [f"{whose}, {fast}, channels_last_3d" for whose in ("plain loop", "ours")]
    fast_plain, ours = names
    recomputing, rounded = f"{ours}, recompute", f"{ours}, TF32"
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}; {PATCHES} x {size}^3, published generator, separable critic; medians of {repeats}, taken in turn;")
    print(f"model FLOP/s as a share of a measured {fast} matrix product, {rate / 1e9:,.0f} GFLOP/s\n")
    lr, hr = patches(PATCHES, size, device)
    loops = {
        PLAIN: plain_loop(lr, hr, bf16=False, channels_last=False),
        fast_plain: plain_loop(lr, hr, bf16=fast == "bf16", channels_last=True),
        ours: our_loop(lr, hr),
        recomputing: our_loop(lr, hr, recompute=True),
    }
    looping = f"{ours}, torch's depthwise convolution"
    loops[looping] = {Phase.CRITIC: our_loop(lr, hr, own_depthwise=False)[Phase.CRITIC]}
    others: tuple[str, ...] = (ours, recomputing)
    if device.type == "cuda":  # the critic and its penalty, which are float32
        loops[rounded] = our_loop(lr, hr)
        others = (*others, rounded)
    loops = {key: with_tf32(steps, key == rounded) for key, steps in loops.items()}
    print("| step | seconds | steps/s | patches/s | model FLOP/s |\n|---|---|---|---|---|", flush=True)
    ratios = []
    for phase in phases:
        with FlopCounterMode(
            display=False, custom_mapping={torch.ops.aten.convolution_backward: convolution_backward_flops}
        ) as flops:  # of the plain loop: recomputation does not count as the model's work
            loops[PLAIN][phase](0)
        steps = {key: loop[phase] for key, loop in loops.items() if phase in loop}
        seconds = {key: median(each) for key, each in interleaved(steps, repeats).items()}
        for key, each in seconds.items():
            share = flops.get_total_flops() / each / rate
            print(f"| {phase}: {key} | {each:.4f} | {1 / each:.2f} | {PATCHES / each:.2f} | {share:.1%} |", flush=True)
        for key in others:
            wanted = "at least 2" if fast == "bf16" else "2 with AVX512-BF16"
            wanted = wanted if phase is Phase.PRETRAIN and key == ours else "-"
            ratios.append(f"| {phase}: {PLAIN} / {key} | {seconds[PLAIN] / seconds[key]:.2f} | {wanted} |")
        if looping in seconds:
            ratios.append(f"| {phase}: {looping} / {ours} | {seconds[looping] / seconds[ours]:.2f} | - |")
    return ratios


def rounding(size: int, device: torch.device) -> list[str]:
    """The distance of the generator's gradients in bf16 with channels_last_3d from those in fp32, as a line."""
    lr, hr = patches(PATCHES, size, device)
    generator, found = build_generator(PUBLISHED).to(device).train(), {}
    for fast in (False, True):
        generator.channels_last = fast
        found[fast] = gradients(generator, lr, hr, "bf16" if fast else "fp32")
    return [f"| pretrain: gradients, norm(bf16 - fp32) / norm(fp32) | {distance(found[True], found[False]):.4f} | - |"]


def overhead(size: int, repeats: int, cores: list[int], starts: int) -> list[str]:
    """A Ray Train worker with FSDP against the plain loop in this process, both on all cores, step by step in turn.

    Each start is a worker process of its own: the ratios of two processes differ by more than their steps' noise.
    """
    lines = []
    # All of a batch's samples at a time is what the plain loop does; the default takes more time and less memory.
    for samples, what, phases in ((None, "", PHASES), (1, ", critic.samples_at_once = 1", (Phase.CRITIC,))):
        ratios: dict[Phase, list[float]] = {phase: [] for phase in phases}
        for _ in range(starts):
            plain, ours = in_turns(cores, PATCHES, size, repeats, samples, phases)
            for phase in phases:
                ratios[phase].append(
                    median([own / theirs for own, theirs in zip(ours[phase], plain[phase], strict=True)])
                )
                print(f"| {phase}: plain loop, in turn with the next | {median(plain[phase]):.4f} |")
                print(f"| {phase}: ours, Ray Train, FSDP, 1 worker{what} | {median(ours[phase]):.4f} |", flush=True)
        wanted = "at most 5 %" if samples is None else "-"
        for phase, found in ratios.items():
            each = ", ".join(f"{ratio - 1:+.1%}" for ratio in sorted(found))
            lines.append(
                f"| {phase}: overhead of Ray Train + FSDP, 1 worker{what}; {starts} starts: {each} | "
                f"{median(found) - 1:+.1%} | {wanted} |"
            )
    return lines


def scaling(size: int, repeats: int, pair: list[list[int]]) -> list[str]:
    """Two workers against one, each with PATCHES patches, one core (or GPU) each.

    One worker is measured on the first core before and on the second one after, because cores of a shared machine
    differ.
    """
    first, _ = under_ray(pair[:1], PATCHES, size, repeats)
    two, waited = under_ray(pair, PATCHES, size, repeats)
    last, _ = under_ray(pair[1:], PATCHES, size, repeats)
    lines = [f"| 2 workers: time in which one waited for its core (Ray's processes, others) | {waited:.1%} | - |"]
    for phase in PHASES:
        alone, both = (median(first[phase]) + median(last[phase])) / 2, median(two[phase])
        print(f"| {phase}: Ray Train, FSDP, 1 worker on 1 core | {alone:.4f} |")
        print(f"| {phase}: Ray Train, FSDP, 2 workers on 2 cores | {both:.4f} |", flush=True)
        lines.append(f"| {phase}: weak scaling, 2 workers | {alone / both:.1%} | at least 85 % |")
    return lines


def ceiling(size: int, repeats: int, pair: list[list[int]]) -> list[str]:
    """What the machine itself loses when both cores work: two plain loops that never talk, against one."""
    alone = [plain_processes([core], PATCHES, size, repeats)[0] for core in pair]
    both = plain_processes(pair, PATCHES, size, repeats)
    return [
        f"| {p}: the same of 2 plain loops that exchange nothing | "
        f"{sum(median(own[p]) for own in alone) / sum(median(own[p]) for own in both):.1%} | - |"
        for p in PHASES
    ]


def compiled(size: int, repeats: int, device: torch.device) -> list[str]:
    """torch.compile: the generator's gradients and time against eager's, and the critic's second derivative."""
    lr, hr = patches(PATCHES, size, device)
    precision = precision_on("auto", device)
    generator = build_generator(PUBLISHED).to(device).train()
    generator.channels_last = True
    times = []
    found: float | None = None
    for compiling in (False, True):
        if compiling:
            found = compile_generator(generator, PATCHES, size, precision)
        times.append(median(interleaved({"": lambda index: gradients(generator, lr, hr, precision)}, repeats)[""]))
    verdict = "rejected" if found is None else f"{found:.4f}"
    lines = [
        f"| generator, torch.compile: norm(compiled - eager) / norm(eager), {precision} gradients | {verdict} | - |"
    ]
    lines.append(f"| generator, gradients: eager / torch.compile | {times[0] / times[1]:.2f} | - |")
    # Double backward is traced alike for every backend. pointwise: torch does not compile separable's operator.
    critic = build_critic("pointwise", size).to(device)
    critic.compile(backend="aot_eager")
    try:
        CriticObjective(critic)(lr, hr, torch.full((PATCHES,), 0.5, device=device))
        lines.append("| critic, torch.compile: the penalty's gradient | no error | - |")
    except RuntimeError as error:
        lines.append(f"| critic, torch.compile: the penalty's gradient | {str(error).splitlines()[0]} | - |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, help="edge of the patches; 32 on a CPU, 64 on a GPU")
    parser.add_argument("--repeats", type=int, help="steps per median; 7 on a CPU, 20 on a GPU")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES, help="steps that layouts compares")
    parser.add_argument("--starts", type=int, default=3, help="worker processes that the overhead is the median of")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all; on a CPU all but compile")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_cpu = device.type == "cpu"
    if environment := worker_environment(gpu=not on_cpu):
        # glibc reads its settings when a process starts: the plain loops need those of Ray's workers.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **environment})
    size, repeats = options.size or (32 if on_cpu else 64), options.repeats or (7 if on_cpu else 20)
    parts = options.parts or [part for part in PARTS if part != "compile" or not on_cpu]
    cores = sorted(os.sched_getaffinity(0))
    pair = [[cores[0]], [cores[-1]]]
    parallel = (len(cores) if on_cpu else torch.cuda.device_count()) > 1
    ratios = []
    float32_convolutions(tf32=False)
    if "layouts" in parts:
        ratios += layouts(size, repeats, device, [Phase(phase) for phase in options.phases])
        if native_bf16(device):  # elsewhere one step takes minutes; the tests compare small ones
            ratios += rounding(size, device)
    if "compile" in parts:
        ratios += compiled(size, repeats, device)
    if "scaling" in parts and on_cpu and parallel:
        ratios += ceiling(size, repeats, pair)
    if {"overhead", "scaling"} & set(parts):
        from mrisr import cluster

        cluster.connect()
    if "overhead" in parts:
        ratios += overhead(size, 2 * repeats, cores, options.starts)
    if "scaling" in parts and parallel:
        ratios += scaling(size, repeats, pair)
    print("\n| ratio | measured | wanted |\n|---|---|---|")
    print("\n".join(ratios))


if __name__ == "__main__":
    main()
