"""A process that trains does not grow, on a CPU or on a GPU."""

from __future__ import annotations

import subprocess
import sys

# Every phase in turn, in a process of its own so that nothing else moves its memory.
LEAK = """
import resource, torch
from torch import nn
from mrisr.models import MDCSRN
from mrisr.models.mdcsrn import MDCSRNConfig
from mrisr.engine.schedule import Phase
from mrisr.engine.networks import build_networks
from mrisr.engine.step import train_step
from mrisr.engine.step_settings import StepConfig
torch.set_num_threads(1)
config = StepConfig(batch_size=2, micro_batch=1, recompute=True, ema_decay=0.9)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
critic = nn.Sequential(nn.Conv3d(1, 4, 3, stride=2), nn.LeakyReLU(0.2), nn.Conv3d(4, 1, 3), nn.Flatten(0))
networks = build_networks(MDCSRN(MDCSRNConfig(2, 1, 1)), critic, config, device, "single")
hr = torch.rand(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
def memory():
    with open("/proc/self/statm") as file:
        rss = int(file.read().split()[1]) * resource.getpagesize()
    return rss, torch.cuda.memory_allocated() if device.type == "cuda" else 0
for step in range(2000):
    train_step(networks, config, list(Phase)[step % 3], step, 0.9 * hr, hr)
    if step in (499, 1999):
        print(*memory())
"""


def test_two_thousand_steps_leave_memory_where_it_was() -> None:
    done = subprocess.run([sys.executable, "-c", LEAK], capture_output=True, text=True, check=True, timeout=300)
    warm, end = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    # 1,500 steps: a leaked pair of patches (8 KiB) per step would be 12 MiB, a leaked set of activations 200 MiB.
    assert end[0] - warm[0] < 8 * 2**20, f"resident memory grew from {warm[0]} to {end[0]} bytes"
    assert end[1] == warm[1], "CUDA memory grew"
