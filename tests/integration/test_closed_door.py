"""Nobody without the token runs code on a Ray that mrisr starts; a cluster that cannot be used is a line, soon."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mrisr.cluster import LOOPBACK
from tests.integration.head_node import free_port

pytestmark = pytest.mark.integration

START = """
import sys
from mrisr import cluster
cluster.connect()
import ray
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
JOIN = """
from mrisr import cluster
cluster.connect()
import ray
print(ray.get(ray.remote(lambda: 6 * 7).remote()))
"""


def environment(home: Path, **own: str) -> dict[str, str]:
    """Of a person with that home folder: nothing of Ray is inherited."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**inherited, "HOME": str(home), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **own}


def join(home: Path, address: str, **own: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", JOIN], env=environment(home, RAY_ADDRESS=address, **own), capture_output=True, text=True,
        timeout=100,
    )  # fmt: skip


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, psutil.Process]]:
    """A Ray that `cluster.connect` has started: address, home folder of its owner, process."""
    home = tmp_path_factory.mktemp("owner")
    folder = Path(f"/tmp/mrisr-door-{os.getpid()}")
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", START], env=environment(home, RAY_TMPDIR=str(folder)), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), home, psutil.Process(process.pid)
        finally:
            process.stdin.close()
            process.wait(60)
            subprocess.run(["rm", "-rf", folder], check=False)


def test_its_ports_are_closed_to_other_machines(owner: tuple[str, Path, psutil.Process]) -> None:
    address, _, process = owner
    ports = {
        (connection.laddr.ip, connection.laddr.port)
        for one in (process, *process.children(recursive=True))
        for connection in one.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert int(address.rpartition(":")[2]) in {port for _, port in ports}
    assert {ip.removeprefix("::ffff:") for ip, _ in ports} == {"127.0.0.1"}
    others = [
        found.address
        for name, found_all in psutil.net_if_addrs().items()
        for found in found_all
        if found.family == socket.AF_INET and not found.address.startswith("127.")
    ]
    for other in others:
        for _, port in ports:
            with pytest.raises(OSError, match="refused"):
                socket.create_connection((other, port), timeout=5)


def test_another_person_is_refused_and_the_owner_is_not(
    owner: tuple[str, Path, psutil.Process], tmp_path: Path
) -> None:
    address, home, _ = owner
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
    allowed = join(home, address, **LOOPBACK)
    assert allowed.stdout.strip() == "42", allowed.stderr[-2000:]
    for own in ({}, {"RAY_AUTH_TOKEN": "0" * 32}, {"RAY_AUTH_MODE": "disabled"}):
        refused = join(tmp_path, address, **LOOPBACK, **own)
        assert refused.returncode != 0
        assert "42" not in refused.stdout
        assert "auth_token" in refused.stderr, refused.stderr[-2000:]


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"RAY_ADDRESS": "127.0.0.1:{port}"}, ["127.0.0.1:{port}", "refused", "unset RAY_ADDRESS"]),
        ({"RAY_ADDRESS": "ray://127.0.0.1:{port}"}, ["ray://127.0.0.1:{port}", "refused"]),
        ({"RAY_ADDRESS": "auto", "RAY_TMPDIR": "{folder}"}, ["auto", "ray start"]),
        ({"RAY_ADDRESS": "nonsense"}, ["nonsense", "unset RAY_ADDRESS"]),
        ({"RAY_TMPDIR": "/tmp/" + 95 * "x"}, ["RAY_TMPDIR", "too long", "40 characters"]),
    ],
)
def test_a_cluster_that_is_not_there_is_a_line(own: dict[str, str], words: list[str], tmp_path: Path) -> None:
    names = {"port": free_port(), "folder": tmp_path}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "mrisr", "convert", str(tmp_path)], capture_output=True, text=True, timeout=100,
        env=environment(tmp_path, MRISR_HOME=str(tmp_path), **{key: text.format(**names) for key, text in own.items()}),
    )  # fmt: skip
    assert done.returncode == 2
    assert time.monotonic() - started < 30
    assert "Traceback" not in done.stderr
    assert all(word.format(**names) in done.stderr for word in words), done.stderr
    subprocess.run(["rm", "-rf", "/tmp/" + 95 * "x"], check=False)


def test_a_cluster_without_cpus_is_a_line(tmp_path: Path) -> None:
    folder, port = f"/tmp/mrisr-empty-{os.getpid()}", free_port()
    own = environment(tmp_path, RAY_TMPDIR=folder)
    ray = str(Path(sys.executable).parent / "ray")
    head = subprocess.Popen(
        [ray, "start", "--head", "--block", f"--port={port}", "--num-cpus=0", "--include-dashboard=false",
         f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats", "--object-store-memory=100000000"],
        env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not Path(folder, "ray", "ray_current_cluster").exists():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        started = time.monotonic()
        done = join(tmp_path, f"127.0.0.1:{port}", RAY_TMPDIR=folder)
        assert time.monotonic() - started < 30
        assert f"127.0.0.1:{port} has no CPUs" in done.stderr
        assert "ray start" in done.stderr
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]:
            process.kill()
        head.wait(30)
        subprocess.run(["rm", "-rf", folder], check=False)
