"""A run on a cluster that shrinks and grows: real Ray nodes on this machine, drained, killed, added."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import psutil
import pytest

from mrisr.training.run_folder import RunFolder

from .conftest import Bench, assert_same_run
from .head_node import AUTHENTICATION, free_port

pytestmark = pytest.mark.integration

# A node of one logical CPU holds a worker and a data task, and no second worker.
FITTING = ("resources.cpus_per_worker=0.6", "stream.cpus_per_task=0.4")
# A node that was killed is missed after two seconds instead of some twenty.
HEALTH = '{"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}'


def kill(node: subprocess.Popen[bytes]) -> None:
    """kill -9 of a node: its raylet, and the workers below it."""
    for process in (psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # its workers end when they miss it
            process.kill()
    node.wait(30)


class Nodes(Bench):
    """Runs `mrisr` on a cluster of its own: a head node, and others that a test adds and kills."""

    def __init__(self, folder: Path, store: Path) -> None:
        super().__init__(folder, store)
        self.address = f"127.0.0.1:{free_port()}"
        self.folder = f"/tmp/mrisr-elastic-{os.getpid()}"
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.add_node("--head", f"--port={self.address.rpartition(':')[2]}", f"--system-config={HEALTH}")

    @property
    def environment(self) -> dict[str, str]:
        own = {**AUTHENTICATION, "RAY_ADDRESS": self.address, "RAY_TMPDIR": self.folder}
        quick = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.1"}
        return {**super().environment, **own, **quick}

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

    def drain(self, number: int) -> None:
        """Tell Ray that a node will be taken away soon, as a cloud does of a machine that it lends cheaply."""
        (raylet,) = (p for p in psutil.Process(self.nodes[number].pid).children() if p.name() == "raylet")
        (node,) = (part for part in raylet.cmdline() if part.startswith("--node_id="))
        reason = ("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test", "--deadline-remaining-seconds=300")
        ray, told = Path(sys.executable).parent / "ray", f"--node-id={node.partition('=')[2]}"
        command = [ray, "drain-node", f"--address={self.address}", told, *reason]
        subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=60)

    def worker(self) -> psutil.Process:
        """The training worker's process on the head node."""
        below = psutil.Process(self.nodes[0].pid).children(recursive=True)
        found = [process for process in below if "RayTrainWorker" in "".join(process.cmdline()[:1])]
        return max(found, key=lambda process: process.create_time())

    def wait_for(self, driver: subprocess.Popen[str], lines: list[str], condition: Callable[[], object]) -> None:
        """Wait for a condition while the driver lives; lines: what it has printed."""
        deadline = time.monotonic() + 240
        while not condition():
            assert driver.poll() is None, "".join(lines)
            assert time.monotonic() < deadline, "".join(lines)
            time.sleep(0.02)

    def close(self) -> None:
        for node in reversed(self.nodes):
            if node.poll() is None:
                kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def nodes(tmp_path: Path, small_store: Path) -> Iterator[Nodes]:
    bench = Nodes(tmp_path, small_store)
    yield bench
    bench.close()


class Started:
    """A run of the test's experiment on such a cluster, with as few as one worker, and what its driver prints."""

    def __init__(self, bench: Nodes, *options: str) -> None:
        self.bench = bench
        self.driver = bench.start("train", "--config", str(bench.config), "resources.min_workers=1", *options, *FITTING)
        self.lines: list[str] = []
        self._reader = Thread(target=lambda: self.lines.extend(self.driver.stdout or []))
        self._reader.start()

    def wait_for(self, condition: Callable[[], object]) -> None:
        self.bench.wait_for(self.driver, self.lines, condition)

    def after(self, line: str) -> str:
        """What was printed since the last line of that pattern; nothing before there is one."""
        text = "".join(self.lines)
        ends = [match.end() for match in re.finditer(line, text)]
        return text[ends[-1] :] if ends else ""

    def groups(self) -> list[tuple[int, int]]:
        """Wait for the end, which must be a good one; workers and first step of every group that trained."""
        self._reader.join(240)
        output = "".join(self.lines)
        assert self.driver.wait(60) == 0, output
        told = re.findall(r"(\d) of 2 workers from step (\d+) on, each with (\d) of the 2 patches", output)
        assert {(workers, each) for workers, _, each in told} == {("2", "1"), ("1", "2")}, output
        return [(int(workers), int(step)) for workers, step, _ in told]


def test_a_run_shrinks_and_grows_with_its_cluster(unkilled: tuple[Bench, str], nodes: Nodes) -> None:
    """A node is told to go, and is killed with its worker: one worker goes on, from a checkpoint that was made for it.

    A node joins: two go on from where the one was. That node is lost without a word, and what was done since the last
    checkpoint is computed again by one. The numbers are those of two workers all along.
    """
    reference, _ = unkilled
    bench = nodes
    bench.add_node()
    # No checkpoint but those that are asked for, and the last.
    run = Started(bench, "resources.resize_every_s=1", "training.checkpoint_every=1000")
    run.wait_for(lambda: any("pretrain" in line for line in run.lines))
    # Both stand still while the notice comes, which takes a second and the rest of the run not many more.
    held = bench.worker()
    held.suspend()
    bench.drain(1)
    time.sleep(2)
    held.resume()
    run.wait_for(lambda: RunFolder(bench.run).checkpoints())
    noticed = [int(folder.name.removeprefix("checkpoint_")) for folder in RunFolder(bench.run).checkpoints()]
    kill(bench.nodes[1])
    # The one worker is held until the other node has joined: what is left of the run takes seconds.
    run.wait_for(lambda: any("1 of 2 workers" in line for line in run.lines))
    alone = bench.worker()
    alone.suspend()
    bench.add_node()
    alone.resume()
    # The two have done a step or two, and stand still, when the node goes.
    run.wait_for(lambda: re.search(r"step +[\d,]+/", run.after(r"2 of 2 workers from step [1-9]\d* on.*\n")))
    held = bench.worker()
    held.suspend()
    kill(bench.nodes[2])
    held.resume()
    (one, shrunk), (two, grown), (left, again) = run.groups()[-3:]
    assert (one, two, left) == (1, 2, 1)
    assert [shrunk] == noticed, "from the checkpoint that the notice asked for"
    assert grown > shrunk, "a checkpoint was asked for before the group grew"
    assert again == grown, "no newer checkpoint exists, and none was asked for"
    assert_same_run(bench, reference)
