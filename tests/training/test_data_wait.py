"""Work that finds no free CPU says so, and SIGTERM ends a rank that waits; with a real Ray whose CPUs are taken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from tests.data.test_stream import LIMITS, make

from mrisr import cluster
from mrisr.data.stream import rank_batches
from mrisr.training.data_wait import PATIENCE_S, DataWait
from mrisr.training.outcome import TerminatedWithoutData
from mrisr.training.run_folder import RunFolder


class Holder:
    def ready(self) -> None:
        pass


@pytest.fixture
def no_cpu(local_ray: None) -> Iterator[Any]:
    """All CPUs of the tests' Ray are held by this actor."""
    holder = ray.remote(num_cpus=4)(Holder).remote()
    ray.get(holder.ready.remote())
    yield holder
    ray.kill(holder)


@pytest.mark.usefixtures("no_cpu")
def test_data_tasks_without_a_cpu_are_told_of_once_with_the_remedy(tmp_path: Path) -> None:
    told: list[str] = []
    wait = DataWait(RunFolder(tmp_path), 1.0, told.append)
    for seconds in (0.5, PATIENCE_S, PATIENCE_S + 0.5, cluster.SILENT_S):
        wait(seconds)
        assert not told
    for seconds in (cluster.SILENT_S + 0.5, cluster.SILENT_S + 1):
        wait(seconds)
    [text] = told
    for words in ("no task could start for 20 s", "1 of the cluster's 4 logical CPUs", "stream.cpus_per_task"):
        assert words in text


@pytest.mark.usefixtures("no_cpu")
def test_sigterm_ends_a_stream_that_waits_for_a_cpu(small_store: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.stop_request.touch()
    wait = DataWait(folder, 1.0, pytest.fail)
    wait(PATIENCE_S - 1)  # a batch may still come, and its step ends with a checkpoint
    batches = rank_batches(make(small_store), 0, 1, 0, 9, LIMITS, lambda seconds: wait(seconds + PATIENCE_S))
    with pytest.raises(TerminatedWithoutData, match="while no data came; there is no checkpoint yet"):
        next(batches)


def test_data_tasks_that_are_slow_are_not_told_of(local_ray: None, tmp_path: Path) -> None:
    wait = DataWait(RunFolder(tmp_path), 1.0, pytest.fail)
    wait(PATIENCE_S)
    ray.get(wait._probe)
    wait(cluster.SILENT_S + 1)


def test_other_verbs_say_so_before_they_begin(no_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "SILENT_S", 1.0)
    told: list[str] = []

    def free(text: str) -> None:
        told.append(text)
        ray.kill(no_cpu)

    cluster.wait_for_cpu(1.0, free)
    cluster.wait_for_cpu(1.0, free)
    [text] = told
    assert "1 of the cluster's 4 logical CPUs, and other work holds them" in text
