"""A run on a cluster that shrinks under it: two real Ray nodes on this machine, and kill -9 of the second."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mrisr.training.saving import whole_checkpoints

from .conftest import Bench, assert_same_run
from .test_ray_job import free_port

pytestmark = pytest.mark.integration

# A node of one logical CPU holds a worker and a data task, and no second worker.
FITTING = ("resources.cpus_per_worker=0.6", "stream.cpus_per_task=0.4")
# A node that was killed is missed after two seconds instead of some twenty.
HEALTH = '{"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}'


def kill(node: subprocess.Popen[bytes]) -> None:
    """kill -9 of a node: its raylet, and the workers below it."""
    processes = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
    for process in processes:
        process.kill()
    node.wait(30)


class TwoNodes(Bench):
    """Runs `mrisr` on a cluster of its own: a head node, and others that a test adds and kills."""

    def __init__(self, folder: Path, store: Path) -> None:
        super().__init__(folder, store)
        self.address = f"127.0.0.1:{free_port()}"
        self.folder = f"/tmp/mrisr-elastic-{os.getpid()}"
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.add_node("--head", f"--port={self.address.rpartition(':')[2]}", f"--system-config={HEALTH}")

    @property
    def environment(self) -> dict[str, str]:
        own = {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": self.folder}
        return {**super().environment, **own, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3"}

    def add_node(self, *options: str) -> None:
        """Start a node, and wait until it has joined."""
        ray, log = Path(sys.executable).parent / "ray", self.home / f"node-{len(self.nodes)}.log"
        environment = {key: value for key, value in self.environment.items() if key != "RAY_ADDRESS"}
        command = [
            ray, "start", "--block", *(options or [f"--address={self.address}"]), "--num-cpus=1",
            "--object-store-memory=150000000", f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats",
            f"--include-log-monitor={not self.nodes}",  # two on one machine would print every line twice
        ]  # fmt: skip
        with log.open("w") as file:
            self.nodes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in log.read_text():
            assert self.nodes[-1].poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    def close(self) -> None:
        for node in reversed(self.nodes):
            if node.poll() is None:
                kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def two_nodes(tmp_path: Path, small_store: Path) -> Iterator[TwoNodes]:
    bench = TwoNodes(tmp_path, small_store)
    yield bench
    bench.close()


def test_a_run_goes_on_with_the_workers_that_are_left(unkilled: tuple[Bench, str], two_nodes: TwoNodes) -> None:
    """A node is killed, and a worker with it: one worker goes on, and the numbers are those of two all along."""
    reference, _ = unkilled
    bench = two_nodes
    bench.add_node()
    driver = bench.start("train", "--config", str(bench.config), "resources.min_workers=1", *FITTING)
    deadline = time.monotonic() + 120
    while not whole_checkpoints(bench.run):
        assert driver.poll() is None, driver.stdout.read() if driver.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    kill(bench.nodes[1])
    output, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, output
    told = re.findall(r"(\d) of 2 workers from step (\d+) on, each with (\d) of the 2 patches", output)
    assert list(dict.fromkeys((workers, each) for workers, _, each in told)) == [("2", "1"), ("1", "2")]
    assert int(told[-1][1]) in (5, 10, 15, 20), "from a checkpoint on"
    assert_same_run(bench, reference)
