"""Checkpoints are whole or absent: two real processes on a disk that fills up, a process killed while it writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mrisr.config.validation import Validation
from mrisr.engine.checkpoint import CheckpointError
from mrisr.engine.networks import build_networks
from mrisr.engine.step_settings import StepConfig
from mrisr.models import MDCSRN
from mrisr.models.mdcsrn import MDCSRNConfig
from mrisr.training.outcome import StorageStopped
from mrisr.training.run_folder import RunFolder
from mrisr.training.state import Best

# python -c WRITER FOLDER RANK WORLD COUNT: writes COUNT checkpoints, says what became of each.
WRITER = """
import os, sys, torch
import torch.distributed as dist
from pathlib import Path
from mrisr.models import MDCSRN, build_critic
from mrisr.models.mdcsrn import MDCSRNConfig
from mrisr.models.weights import serialised
from mrisr.engine.checkpoint import load
from mrisr.training.outcome import StorageStopped
from mrisr.training.run_folder import RunFolder
from mrisr.engine.sharding import full_state
from mrisr.engine.networks import build_networks
from mrisr.engine.step_settings import StepConfig
folder, rank, world, count = Path(sys.argv[1]), *map(int, sys.argv[2:5])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[5]}", rank=rank, world_size=world)
generator, critic = MDCSRN(MDCSRNConfig(2, 1, 1)), build_critic("pointwise", 16)
networks = build_networks(generator, critic, StepConfig(), torch.device("cpu"), "fsdp")
for step in range(count):
    try:
        files = {"last.safetensors": serialised(vars(networks.generator.config), full_state(networks.generator))}
        RunFolder(folder).write_checkpoint(step, networks, {"step": step}, files)
        print("written", step, flush=True)
    except StorageStopped as error:
        print(error, flush=True)
        break
print("found", load(RunFolder(folder).agreed_checkpoint(), networks)["step"], flush=True)
os._exit(0)  # no teardown, for the reason in parity_worker.py
"""


def two_ranks(folder: Path, meeting: Path, count: int) -> str:
    """A shell command that runs both ranks and prints first rank 0's words, then rank 1's."""
    (meeting.parent / "writer.py").write_text(WRITER)
    run = f"{sys.executable} {meeting.parent}/writer.py {folder}"
    second, first = (f"{run} {rank} 2 {count} {meeting}" for rank in (1, 0))
    return f"{second} > {meeting}.1 & {first}; code=$?; wait $!; cat {meeting}.1; exit $code"


def test_a_full_disk_tells_every_rank_and_leaves_the_last_whole_checkpoint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    shell = f"mount -t tmpfs -o size=24m tmpfs {disk}; {two_ranks(disk, tmp_path / 'meeting', 9)}"
    # Without privileges, the namespace comes with a user namespace in which mounting is allowed.
    private = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "sh", "-c", shell]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(private, env=environment, text=True, timeout=120, stdout=-1, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    told = [line for line in done.stdout.splitlines() if not line.startswith(("written", "found"))]
    written = [line for line in done.stdout.splitlines() if line.startswith("written")]
    assert 2 <= len(written) < 18, done.stdout
    assert len(written) % 2 == 0, "both ranks agree on every checkpoint"
    last = len(written) // 2 - 1
    assert done.stdout.count(f"found {last}\n") == 2, "the last whole one loads, on both ranks"
    errors = [line for line in told if "could not be written" in line]
    assert len(errors) == 2, done.stdout
    for line in errors:
        assert f"checkpoint_{last + 1:08d} could not be written" in line
        assert f"The last whole checkpoint is checkpoint_{last:08d}; free space" in line


def stop_in_mid_write(process: subprocess.Popen[bytes], folder: Path) -> Path:
    """Stop a writer between two checkpoints' names: the hidden folder, with part of the tensors, stays as it is."""
    deadline = time.monotonic() + 100
    while True:
        assert process.poll() is None
        assert time.monotonic() < deadline
        if RunFolder(folder).checkpoints() and list(folder.glob(".checkpoint_*.part/*.distcp")):
            # It may get its name before the signal arrives, so that it is looked for again once the process stands.
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if torn := [file.parent for file in folder.glob(".checkpoint_*.part/*.distcp")]:
                return torn[0]
            process.send_signal(signal.SIGCONT)


def test_a_process_killed_while_it_writes_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(folder), "0", "1", "100000", str(tmp_path / "meeting")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        torn = stop_in_mid_write(process, folder)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list(folder.glob(".checkpoint_*.part")) == [torn]
    newest = RunFolder(folder).checkpoints()[-1]
    assert newest.name < torn.name[1:]
    again = [*command[:-2], "0", str(tmp_path / "second-meeting")]
    done = subprocess.run(again, env=environment, text=True, capture_output=True, check=True, timeout=100)
    assert done.stdout.splitlines()[-1] == f"found {int(newest.name.removeprefix('checkpoint_'))}"
    assert not torn.exists(), "what was half-written is gone"


@pytest.mark.parametrize("missing", [".metadata", "progress.json"])
def test_a_folder_without_its_metadata_or_progress_is_no_checkpoint(tmp_path: Path, missing: str) -> None:
    for step in (1, 2):
        folder = tmp_path / f"checkpoint_{step:08d}"
        folder.mkdir()
        (folder / ".metadata").write_bytes(b"x")
        (folder / "progress.json").write_text('{"step": 1}')
    (tmp_path / "checkpoint_00000002" / missing).unlink()
    assert [folder.name for folder in RunFolder(tmp_path).checkpoints()] == ["checkpoint_00000001"]


def make_checkpoint(run: Path, step: int, weights: bytes) -> Path:
    folder = run / f"checkpoint_{step:08d}"
    folder.mkdir()
    (folder / ".metadata").write_bytes(b"x")
    (folder / "progress.json").write_text('{"step": 1}')
    (folder / "best.safetensors").write_bytes(weights)
    return folder


@pytest.mark.parametrize("left", [0, 8, 60, -1])
def test_weights_that_are_cut_short_make_no_whole_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left: int
) -> None:
    """A power loss can leave a file with its name and a part of its content."""
    weights = safetensors.torch.save({"w": torch.zeros(64)})
    before, damaged = (make_checkpoint(tmp_path, step, weights) for step in (1, 2))
    assert RunFolder(tmp_path).agreed_checkpoint() == damaged
    (damaged / "best.safetensors").write_bytes(weights[:left])
    assert RunFolder(tmp_path).agreed_checkpoint() == before
    assert f"{damaged.name} in {tmp_path} is damaged" in capsys.readouterr().out
    best = Best(Validation())
    with pytest.raises(CheckpointError, match=f"{damaged} cannot be read: best.safetensors.*delete this folder"):
        best.restore({"step": 1, "figures": {}}, damaged)


def test_everything_is_on_the_disk_before_a_checkpoint_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def named(path: Path, target: Path) -> Path:
        events.append(f"rename {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", named)
    networks = build_networks(MDCSRN(MDCSRNConfig(2, 1, 1)), None, StepConfig(), torch.device("cpu"), "single")
    files = {"best.safetensors": safetensors.torch.save({"w": torch.zeros(4)})}
    final = RunFolder(tmp_path).write_checkpoint(1, networks, {"step": 1}, files)
    assert RunFolder(tmp_path).checkpoints() == [final]
    before, after = events[: events.index(f"rename {final.name}")], events[events.index(f"rename {final.name}") + 1 :]
    assert {"best.safetensors", "progress.json", f".{final.name}.part"} <= set(before)
    assert any(name.endswith(".distcp") for name in before)
    assert after == [tmp_path.name]
    # A folder that is gone is told as that, not as an error of the telling.
    (tmp_path / "file").touch()
    with pytest.raises(StorageStopped, match=r"could not be written: rank 0: Not a directory .*Not a directory"):
        RunFolder(tmp_path / "file" / "run").write_checkpoint(2, networks, {"step": 2}, {})
