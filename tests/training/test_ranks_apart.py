"""What one rank alone meets, a folder or a file that it lacks or a network gone wrong, is told on every rank.

Two real processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# python -c APART FOLDER RANK STORE: two hosts that share no folder, then a rank whose checkpoint lacks a file,
# then one whose validation subject the network answers with NaN.
APART = """
import os, shutil, sys, torch
import torch.distributed as dist
from pathlib import Path
from safetensors.torch import save
from mrisr.config.validation import Validation
from mrisr.degradation import PROTOCOLS
from mrisr.models import MDCSRN
from mrisr.models.mdcsrn import MDCSRNConfig
from mrisr.training.state import Best
from mrisr.engine.checkpoint import CheckpointError, load
from mrisr.training.outcome import TrainingStopped
from mrisr.training.validation import Validator
from mrisr.training.worker import agreed_store, require_finite
from voxelstore import VolumeStore
from mrisr.training.run_folder import RunFolder
from mrisr.engine.networks import build_networks
from mrisr.engine.step_settings import StepConfig
root, rank = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{root}/meeting", rank=rank, world_size=2)
networks = build_networks(MDCSRN(MDCSRNConfig(2, 1, 1)), None, StepConfig(), torch.device("cpu"), "fsdp")
def write(run):
    files = {"best.safetensors": save({"w": torch.zeros(4)})}
    return RunFolder(run).write_checkpoint(1, networks, {"step": 1}, files)
def tell(action):
    try:
        print("done", action(), flush=True)
    except (CheckpointError, TrainingStopped) as error:
        print(repr(str(error)), flush=True)
tell(lambda: write(root / f"host{rank}"))
whole = write(root / "shared")
own = shutil.copytree(whole, root / f"copy{rank}")
for name, action in (
    ("best.safetensors", lambda: Best(Validation()).restore({"step": 1, "figures": {}}, own)),
    ("progress.json", lambda: load(own, networks)),
):
    if rank == 1:
        (own / name).unlink()
    tell(action)
tell(lambda: load(whole, networks)["step"])
store = VolumeStore.open(sys.argv[3])
validator = Validator(store, store.subjects("train")[:2], next(iter(PROTOCOLS)), 24, 1, rank, 2)
def validated(factor):
    figures, _ = validator.run(lambda x: factor * x, torch.device("cpu"))
    require_finite(figures, 3, RunFolder(root))
tell(lambda: validated(float("nan") if rank == 1 else 1.0))
tell(lambda: validated(1.0))
begun = store.fingerprint()
tell(lambda: agreed_store(store.path, begun if rank == 0 else "of another store", RunFolder(root)))
tell(lambda: agreed_store(store.path if rank == 0 else root, begun, RunFolder(root)))
tell(lambda: agreed_store(store.path, begun, RunFolder(root)).fingerprint() == begun)
os._exit(0)  # no teardown, for the reason in parity_worker.py
"""


def test_what_one_rank_meets_is_told_on_all_and_hangs_none(tmp_path: Path, small_store: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", APART, str(tmp_path), str(rank), str(small_store)],
            env=environment, text=True, stdout=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    told = [process.communicate(timeout=120)[0].splitlines() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    for lines in told:
        unshared, best, progress, whole, diverged, sound, changed, gone, kept = lines
        assert "could not be written: rank 1: the folder that rank 0 made is not there; output must be on" in unshared
        assert f"rank 1: {tmp_path}/copy1 cannot be read: best.safetensors" in best
        assert f"rank 1: {tmp_path}/copy1 is no whole checkpoint: progress.json is missing" in progress
        assert "rank 0: /" not in unshared + best + progress
        assert whole == "done 1", "the ranks are still in step"
        assert "after step 3 the validation figures are not finite" in diverged
        assert "'psnr': nan" in diverged
        assert f"generator.init_from={tmp_path}" in diverged
        assert sound == "done None"
        assert f"data.store = {small_store}: its subjects or splits have changed since run" in changed
        assert f"generator.init_from={tmp_path}" in changed
        assert f"data.store = {tmp_path}: " in gone
        assert "the same command goes on when the store is there" in gone
        assert kept == "done True"
    assert not list((tmp_path / "host0").iterdir())
    assert not (tmp_path / "host1").exists()
