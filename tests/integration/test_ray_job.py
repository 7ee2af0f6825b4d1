"""Training through `ray start --head` and `ray job submit`, from a shell that has only `ray` and the checkout."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

from .conftest import CHECKOUT, Bench

pytestmark = pytest.mark.integration


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path, small_store: Path) -> Iterator[tuple[str, Bench]]:
    """A head node of 4 logical CPUs with its dashboard on loopback; the address, and where its jobs write."""
    bench = Bench(tmp_path / "home", small_store)
    binaries = Path(sys.executable).parent
    environment = {
        **bench.environment, "RAY_AUTH_MODE": "disabled", "PATH": f"{binaries}:{os.environ['PATH']}",
        "RAY_TMPDIR": f"/tmp/mrisr-job-{os.getpid()}",
    }  # fmt: skip
    port = free_port()
    head = subprocess.Popen(
        [binaries / "ray", "start", "--head", "--block", f"--port={free_port()}", f"--dashboard-port={port}",
         # Another Ray on this machine, such as the tests' own, has the agent's default port.
         f"--dashboard-agent-listen-port={free_port()}",
         "--num-cpus=4", "--object-store-memory=300000000", "--disable-usage-stats"],
        env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/version", timeout=2).read()
                break
            except OSError:
                assert head.poll() is None, "the head node died"
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield address, bench
    finally:
        # `ray start --block` would wait half a minute for each of its processes in turn.
        below = psutil.Process(head.pid).children(recursive=True)
        for process in [*below, psutil.Process(head.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait(60)
        shutil.rmtree(environment["RAY_TMPDIR"], ignore_errors=True)


def test_training_as_a_submitted_job(cluster: tuple[str, Bench], tmp_path: Path) -> None:
    address, bench = cluster
    shell = tmp_path / "bin"
    shell.mkdir()
    (shell / "ray").symlink_to(Path(sys.executable).parent / "ray")

    def submit() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ray", "job", "submit", "--address", address, "--working-dir", ".", "--runtime-env",
             "jobs/runtime_env.yaml", "--", "python", "jobs/train.py", "--config", str(bench.config),
             "schedule.total_steps=10", "training.checkpoint_every=10"],
            cwd=CHECKOUT, env={"PATH": f"{shell}:/usr/bin:/bin", "RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)},
            capture_output=True, text=True, timeout=400,
        )  # fmt: skip

    deadline = time.monotonic() + 120
    # The dashboard answers some seconds before the agent that starts jobs does.
    while "No available agent" in (done := submit()).stderr and time.monotonic() < deadline:
        time.sleep(1)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "registered models:/mdcsrn/1" in output
    assert (bench.run / "checkpoint_00000010" / "last.safetensors").is_file()
    assert (bench.home / "mlflow.db").is_file()
    run = MlflowClient(bench.uri).get_run((bench.run / "mlflow_run_id.txt").read_text())
    # .git does not travel with a job; the sources that do say what ran.
    assert run.data.tags["code_version"].startswith("sources sha256:")
