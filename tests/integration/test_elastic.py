"""A run on a cluster that grows and shrinks under it: two real Ray nodes on this machine, the second comes and goes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from mrisr.training.saving import whole_checkpoints

from .conftest import Bench
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
    """Runs `mrisr` on a cluster of its own: a head node, and a second one that a test starts and kills."""

    def __init__(self, folder: Path, store: Path) -> None:
        super().__init__(folder, store)
        self.address = f"127.0.0.1:{free_port()}"
        self.folder = f"/tmp/mrisr-elastic-{os.getpid()}"
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.add_node("--head", f"--port={self.address.rpartition(':')[2]}", f"--system-config={HEALTH}")

    @property
    def environment(self) -> dict[str, str]:
        own = {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": self.folder}
        return {**super().environment, **own, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}

    def add_node(self, *options: str) -> None:
        """Start a node, and wait until it has joined."""
        ray, log = Path(sys.executable).parent / "ray", self.home / f"node-{len(self.nodes)}.log"
        environment = {key: value for key, value in self.environment.items() if key != "RAY_ADDRESS"}
        command = [
            ray, "start", "--block", *(options or [f"--address={self.address}"]), "--num-cpus=1",
            "--object-store-memory=150000000", f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats",
        ]  # fmt: skip
        with log.open("w") as file:
            self.nodes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in log.read_text():
            assert self.nodes[-1].poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    def workers(self) -> list[psutil.Process]:
        """The training workers' processes on the head node."""
        below = psutil.Process(self.nodes[0].pid).children(recursive=True)
        return [process for process in below if any("RayTrainWorker" in part for part in process.cmdline()[:1])]

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


def test_a_run_goes_on_with_the_workers_that_there_are(unkilled: tuple[Bench, str], two_nodes: TwoNodes) -> None:
    """One worker, two when a node joins, one when it is killed: the numbers are those of two workers all along."""
    reference, _ = unkilled
    bench = two_nodes
    wanted = ("resources.min_workers=1", "resources.resize_every_s=1", "training.checkpoint_every=1", *FITTING)
    driver = bench.start("train", "--config", str(bench.config), *wanted)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: [lines.append(line) for line in driver.stdout or ()], daemon=True)
    reader.start()

    def wait_for(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert driver.poll() is None, "".join(lines)
            assert time.monotonic() < deadline, "".join(lines)
            time.sleep(0.05)

    def step() -> int:
        done = whole_checkpoints(bench.run)
        return int(done[-1].name.removeprefix("checkpoint_")) if done else -1

    wait_for(lambda: any("1 of 2 workers from step 0 on, each with 2 of the 2 patches" in line for line in lines))
    (worker,) = bench.workers()
    worker.suspend()  # 24 steps may be over before a node has joined
    bench.add_node()
    worker.resume()
    wait_for(lambda: any("2 of 2 workers from step" in line for line in lines))
    grown = step()
    assert 0 <= grown < 24
    wait_for(lambda: step() > grown + 1)
    kill(bench.nodes[1])
    assert driver.wait(240) == 0, "".join(lines)
    reader.join(30)
    told = [line.split("workers from step")[0].split()[-3:] for line in lines if "workers from step" in line]
    assert told == [["1", "of", "2"], ["2", "of", "2"], ["1", "of", "2"]], "".join(lines)

    for name in ("last.safetensors", "best.safetensors"):
        expected = load_file(whole_checkpoints(reference.run)[-1] / name)
        found = load_file(whole_checkpoints(bench.run)[-1] / name)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-7)
    expected_history, found_history = reference.history(), bench.history()
    for key, points in expected_history.items():
        assert [at for at, _ in found_history[key]] == [at for at, _ in points], f"gap or repeat in {key}"
        if not key.startswith(("throughput/", "volumes/seconds")):
            np.testing.assert_allclose([v for _, v in found_history[key]], [v for _, v in points], rtol=1e-4, atol=1e-6)
