"""One pass over a whole volume, plane by plane, against MONAI's sliding windows: time, memory and seams.

    python ci/bench_whole_volume.py [--shape 256 320 320] [--precision bf16]

The same network with the same weights, precision and layout: the published generator with seeded weights. Windows are
MONAI's SlidingWindowInferer with its defaults at 64^3 and an overlap of 0.25. Each method runs in its own process, one
after the other; memory is the growth of the process's peak. Seams are the difference to the network's pass over the
volume in one piece, on a volume that fits into memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mrisr.engine.memory import whole_volume_bytes
from mrisr.engine.precision import PRECISIONS, precision_on
from mrisr.inference.whole_volume import InferenceOptions, superresolve_array
from mrisr.models import build_generator
from mrisr.models.generator import Generator

CPU = torch.device("cpu")
SMALL = (80, 128, 112)  # in one piece 1.2 GB in fp32


def network() -> Generator:
    generator = build_generator({}, seed=0).eval()
    generator.channels_last = True
    return generator


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def by_planes(generator: Generator, volume: np.ndarray, precision: str) -> np.ndarray:
    return superresolve_array(generator, volume, InferenceOptions(precision=precision))


def in_windows(generator: Generator, volume: np.ndarray, precision: str) -> np.ndarray:
    from monai.inferers import SlidingWindowInferer

    def predict(windows: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return generator(windows).float()

    with torch.no_grad():
        found = SlidingWindowInferer((64, 64, 64), overlap=0.25)(torch.from_numpy(volume)[None, None], predict)
    assert isinstance(found, Tensor)
    return found[0, 0].numpy()


@torch.no_grad()
def in_one_piece(generator: Generator, volume: np.ndarray, precision: str) -> np.ndarray:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return generator(torch.from_numpy(volume)[None, None])[0, 0].float().numpy()


METHODS: dict[str, Callable[[Generator, np.ndarray, str], np.ndarray]] = {
    "MONAI's sliding windows": in_windows,
    "ours, plane by plane": by_planes,
}


def resident(kind: str) -> int:
    """KiB of this process: VmRSS now, VmHWM at its peak."""
    found = re.search(rf"{kind}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def cost(method: str, shape: tuple[int, ...], precision: str) -> tuple[float, float, float]:
    """Seconds, seconds of cores, and growth of the peak memory in GiB, of one whole volume in this fresh process."""
    run, generator = METHODS[method], network()
    run(generator, noise((64, 64, 64)), precision)  # imports, and kernels that are made at their first use
    volume = noise(shape)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    wall, cores = time.perf_counter(), time.process_time()
    run(generator, volume, precision)
    wall, cores = time.perf_counter() - wall, time.process_time() - cores
    return wall, cores, (resident("VmHWM") - before) / 2**20


def seams() -> dict[str, list[float]]:
    """By method: the RMS difference to the pass in one piece as a share of its standard deviation, fp32 and bf16."""
    generator, volume = network(), noise(SMALL)
    found: dict[str, list[float]] = {method: [] for method in METHODS}
    for precision in ("fp32", "bf16"):
        expected = in_one_piece(generator, volume, precision)
        for method, run in METHODS.items():
            difference = run(generator, volume, precision) - expected
            found[method].append(float(np.sqrt(np.square(difference).mean()) / expected.std()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 320, 320))
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    options = parser.parse_args()
    shape, precision = tuple(options.shape), precision_on(options.precision, CPU)
    print(f"{'x'.join(map(str, shape))}, {precision}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    columns = (
        "seconds", "seconds of cores", "peak memory, GiB", "difference to one piece, fp32", "bf16"
    )  # fmt: skip
    print(f"| | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    context = multiprocessing.get_context("spawn")
    differences, costs = seams(), {}
    for method in METHODS:
        with context.Pool(1) as pool:
            costs[method] = pool.apply(cost, (method, shape, precision))
        wall, cores, memory = costs[method]
        shown = " | ".join(f"{difference:.1e}" for difference in differences[method])
        print(f"| {method} | {wall:.0f} | {cores:.0f} | {memory:.2f} | {shown} |", flush=True)
    windows, planes = costs.values()
    estimate = whole_volume_bytes({}, shape, precision) / 2**30
    print(f"\nfaster by {windows[0] / planes[0]:.2f}x, in seconds of cores {windows[1] / planes[1]:.2f}x")
    print(f"estimate of the layers' memory: {estimate:.2f} GiB")


if __name__ == "__main__":
    main()
