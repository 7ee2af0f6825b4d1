"""A Ray cluster of a test's own, started as a user starts one, and jobs submitted to it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

CHECKOUT = Path(__file__).resolve().parents[2]
AUTHENTICATION = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def head_node(environment: Mapping[str, str]) -> Iterator[str]:
    """`ray start --head` with 4 logical CPUs and its dashboard on loopback; gives the dashboard's address."""
    binaries = Path(sys.executable).parent
    own = {
        **environment, **AUTHENTICATION, "PATH": f"{binaries}:{os.environ['PATH']}",
        "RAY_TMPDIR": f"/tmp/mrisr-job-{os.getpid()}",
    }  # fmt: skip
    port = free_port()
    head = subprocess.Popen(
        [binaries / "ray", "start", "--head", "--block", f"--port={free_port()}", f"--dashboard-port={port}",
         # Another Ray on this machine, such as the tests' own, has the agent's default port.
         f"--dashboard-agent-listen-port={free_port()}",
         "--num-cpus=4", "--object-store-memory=300000000", "--disable-usage-stats"],
        env=own, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/version", timeout=2).read()
                raise AssertionError("the dashboard answers without the token")
            except urllib.error.HTTPError as refused:
                if refused.code != 401:  # the token is asked for
                    raise
                break
            except OSError:
                assert head.poll() is None, "the head node died"
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield address
    finally:
        # `ray start --block` would wait half a minute for each of its processes in turn.
        below = psutil.Process(head.pid).children(recursive=True)
        for process in [*below, psutil.Process(head.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait(60)
        shutil.rmtree(own["RAY_TMPDIR"], ignore_errors=True)


def submit(address: str, command: Sequence[str], folder: Path) -> str:
    """`ray job submit` of a command, from a shell that has only `ray` and the checkout; returns all that it printed."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "ray").symlink_to(Path(sys.executable).parent / "ray")

    def once() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ray", "job", "submit", "--address", address, "--working-dir", ".", "--runtime-env",
             "jobs/runtime_env.yaml", "--", *command],
            cwd=CHECKOUT, capture_output=True, text=True, timeout=400,
            env={"PATH": f"{folder / 'bin'}:/usr/bin:/bin", **AUTHENTICATION, "HOME": str(folder)},
        )  # fmt: skip

    deadline = time.monotonic() + 120
    # The dashboard answers some seconds before the agent that starts jobs does.
    while "No available agent" in (done := once()).stderr and time.monotonic() < deadline:
        time.sleep(1)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output
