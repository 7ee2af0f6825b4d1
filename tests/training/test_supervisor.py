"""When a group of workers is started, started again and given up, with Ray's public errors; no Ray is started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

from mrisr import cluster
from mrisr.config import Experiment
from mrisr.training import supervisor
from mrisr.training.launcher import Launcher
from mrisr.training.memory import memory_advice, out_of_memory
from mrisr.training.outcome import RoomForMore, Terminated, TerminatedWithoutData, TrainingStopped
from mrisr.training.run_folder import RunFolder
from mrisr.training.supervisor import Failures, Supervisor, stopped_by
from mrisr.training.worker_settings import WorkerSettings

LOST = WorkerGroupError("a worker is gone", {0: RayActorError()})
MORE = RoomForMore()


class WorkerGroupStartupTimeoutError(Exception):
    """Named as Ray's own, which is not public: workers could not be placed within its time limit."""


TIMEOUT = ControllerError(WorkerGroupStartupTimeoutError(2))
FAILED_START = ControllerError(RuntimeError("a node is gone"))


def checkpoint(run_folder: Path, step: int) -> None:
    folder = run_folder / f"checkpoint_{step:08d}"
    folder.mkdir(parents=True)
    (folder / ".metadata").write_bytes(b"x")
    (folder / "progress.json").write_text('{"step": 1}')


def supervised(tmp_path: Path, *, runs: int = 1, least: int | None = None, max_failures: int = 3) -> Supervisor:
    """Two workers of one CPU and a data task of one, or as few as `least`."""
    experiment = Experiment.model_validate({
        "name": "run", "output": tmp_path, "training": {"max_failures": max_failures, "micro_batch": 1},
        "resources": {"workers": 2, "min_workers": least, "resize_every_s": 0.01},
    })  # fmt: skip
    experiment.run_folder.mkdir(exist_ok=True)
    return Supervisor(settings_of(experiment, cluster.Share(1.0, False, 1.0), runs))


def settings_of(experiment: Experiment, share: cluster.Share, runs: int = 1) -> WorkerSettings:
    return WorkerSettings(experiment, "", "", "", None, share, 1, runs)


class FakeCluster:
    """Machines of one CPU each; `ready`: how many workers a placement group can hold at present."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, machines: int, ready: int = 9) -> None:
        self.machines, self.ready, self.asked = machines, ready, list[int]()
        self.clock, self.slept = 0.0, list[float]()
        self.look: Callable[[], None] = lambda: None
        monkeypatch.setattr(cluster, "nodes", lambda: [(1.0, 0.0)] * self.machines)
        monkeypatch.setattr(supervisor, "reserved", self.reserved)
        monkeypatch.setattr(supervisor, "time", SimpleNamespace(sleep=self.sleep, monotonic=lambda: self.clock))

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock += seconds
        self.look()

    @contextmanager
    def reserved(self, workers: int, share: cluster.Share) -> Iterator[Any]:
        self.asked.append(workers)

        def wait(seconds: float) -> bool:
            if workers > self.ready:
                self.sleep(seconds)
            return workers <= self.ready

        yield SimpleNamespace(wait=wait)


class FakeRay:
    """What the supervisor calls of Ray: each group ends with the next of `endings`, an interruption among them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *endings: Any) -> None:
        self.endings, self.started, self.killed = list(endings), list[int](), 0
        self.look: Callable[[], bool] = lambda: True  # whether the group has ended
        launcher = SimpleNamespace(fit=SimpleNamespace(remote=self.fit))
        monkeypatch.setattr(supervisor, "start_launcher", lambda: launcher)
        monkeypatch.setattr(supervisor, "ray", SimpleNamespace(
            wait=self.wait, get=lambda ending: ending, kill=self.kill, train=supervisor.ray.train,
        ))  # fmt: skip

    def fit(self, workers: int, settings: Any, storage: Path, callbacks: Any) -> Any:
        assert not storage.exists(), "Ray would resume from what another group left there"
        storage.mkdir()
        self.started.append(workers)
        ending = self.endings.pop(0)
        return (None, ending) if isinstance(ending, TrainingFailedError) else (ending, None)

    def wait(self, ended: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        if ended[0][0] is KeyboardInterrupt:
            raise KeyboardInterrupt
        return (ended, []) if self.look() else ([], ended)

    def kill(self, launcher: Any) -> None:
        self.killed += 1


def test_failures_count_only_while_no_newer_checkpoint_appears(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = Failures(2, RunFolder(tmp_path))
    for step in range(1, 6):
        checkpoint(tmp_path, step)
        assert [failures.add(LOST) for _ in range(2)] == [0, 0]
    assert "they are started again from checkpoint_00000005" in capsys.readouterr().out
    with pytest.raises(WorkerGroupError):
        failures.add(LOST)
    assert "training.max_failures = 2 restarts since checkpoint_00000005" in capsys.readouterr().out


def test_a_group_without_room_is_waited_for_or_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machines = FakeCluster(monkeypatch, machines=2)
    looks: list[int] = []

    def look() -> None:
        looks.append(1)
        machines.machines = 3 if len(looks) > 50 else 2

    machines.look = look
    patient = supervised(tmp_path, max_failures=0)
    assert patient._wait_for_room() == 2
    assert len(looks) == 51, "until the third machine came"
    assert capsys.readouterr().out.count("waiting for nodes: no room for 2 workers and a data task") == 1
    failures = Failures(0, RunFolder(tmp_path))
    assert [failures.add(TIMEOUT) for _ in range(5)] == [0] * 5

    trial = supervised(tmp_path, runs=2, max_failures=0)
    machines.machines = 0
    assert trial._wait_for_room() == 2, "the search has kept room for it"
    with pytest.raises(ControllerError):
        Failures(0, RunFolder(tmp_path), in_search=True).add(TIMEOUT)


def test_room_that_others_hold_is_waited_for_or_fewer_workers_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = FakeCluster(monkeypatch, machines=3, ready=1)
    assert supervised(tmp_path, least=1)._wait_for_room() == 1
    assert machines.asked == [2, 1]
    assert sum(machines.slept) == pytest.approx(supervisor.LARGEST_GROUP_S)
    machines.look = lambda: setattr(machines, "ready", 2 if machines.clock > 60 else 1)
    assert supervised(tmp_path)._wait_for_room() == 2
    assert machines.clock > 60
    assert max(machines.slept) <= supervisor.LOOK_EVERY_S, "so that SIGTERM is seen in between"


@pytest.mark.parametrize("reason", [TrainingStopped("too little memory"), TerminatedWithoutData("no data came")])
def test_what_a_restart_would_not_mend_is_not_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: Exception
) -> None:
    FakeCluster(monkeypatch, machines=3)
    stopped = WorkerGroupError("", {0: RayActorError(), 1: reason})
    ray = FakeRay(monkeypatch, stopped)
    with pytest.raises(type(reason), match=str(reason)):
        supervised(tmp_path, max_failures=-1).run()
    assert ray.started == [2]
    assert stopped_by(LOST) is None


def test_a_node_that_was_announced_to_go_is_no_failure(tmp_path: Path) -> None:
    with pytest.raises(WorkerGroupError):
        Failures(0, RunFolder(tmp_path)).add(LOST)
    failures = Failures(0, RunFolder(tmp_path))
    announced = WorkerGroupError("", {0: RuntimeError("connection closed"), 1: SimpleNamespace(preempted=True)})
    assert [failures.add(announced) for _ in range(5)] == [0] * 5


def test_pauses_grow_to_a_bound_and_end_with_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machines, run = FakeCluster(monkeypatch, machines=3), supervised(tmp_path)
    failures, pauses = Failures(-1, run.folder), []
    for _ in range(8):
        before = machines.clock
        run._pause(failures.add(FAILED_START))
        pauses.append(machines.clock - before)
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 30, 30, 30])
    assert max(machines.slept) <= supervisor.LOOK_EVERY_S, "so that SIGTERM is seen in between"
    machines.slept.clear()
    run.folder.stop_request.touch()
    run._pause(failures.add(FAILED_START))
    assert not machines.slept


@pytest.mark.parametrize("when", ["workers run", "waiting for nodes", "pausing"])
def test_ctrl_c_ends_a_run_whatever_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    machines, run = FakeCluster(monkeypatch, machines=0 if when == "waiting for nodes" else 3), supervised(tmp_path)
    ray = FakeRay(monkeypatch, FAILED_START if when == "pausing" else KeyboardInterrupt)

    def interrupt() -> None:
        raise KeyboardInterrupt

    machines.look = interrupt
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert ray.killed == len(ray.started) == (0 if when == "waiting for nodes" else 1), "its group ends with it"
    assert not run.folder.ray.exists()
    assert not run.folder.stop_request.exists()


@pytest.mark.parametrize("elastic", [False, True])
def test_sigterm_ends_a_run_that_has_no_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elastic: bool) -> None:
    machines, run = FakeCluster(monkeypatch, machines=0), supervised(tmp_path, least=1 if elastic else None)
    checkpoint(run.folder.path, 7)
    machines.look = run.folder.stop_request.touch
    with pytest.raises(Terminated, match="no worker ran; checkpoint_00000007 is the last checkpoint"):
        run._wait_for_room()
    assert len(machines.slept) == 1


def test_a_group_grows_once_there_is_room_and_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machines, run = FakeCluster(monkeypatch, machines=2), supervised(tmp_path, least=1)
    ray, room = FakeRay(monkeypatch, MORE, LOST, None), iter([2, 3, 3])
    requested: list[bool] = []

    def look() -> bool:
        machines.clock += 1
        if len(ray.started) == 1:
            requested.append(run.folder.resize_request.exists())
            machines.machines, machines.ready = next(room), len(requested) - 1
            return requested[-1]
        return True

    ray.look = look
    run.run()
    assert requested == [False, False, True], "not for a machine that others hold"
    assert ray.started == [1, 2, 2]
    assert not run.folder.resize_request.exists()


def test_ray_itself_restarts_and_resumes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[Any] = []

    def trainer(worker: Any, **options: Any) -> Any:
        fitted.append(options)
        return SimpleNamespace(fit=lambda: SimpleNamespace(return_value=MORE))

    monkeypatch.setattr("mrisr.training.trainer.Trainer", trainer)
    launcher, settings = Launcher({}), settings_of(Experiment(), cluster.Share(0.5, True, 1.0))
    for workers in (2, 1):
        assert launcher.fit(workers, settings, tmp_path, ()) == (MORE, None)
    assert [options["scaling_config"].num_workers for options in fitted] == [2, 1]
    assert fitted[0]["scaling_config"].resources_per_worker == {"CPU": 0.5, "GPU": 1}
    runs = [options["run_config"] for options in fitted]
    assert len({run.name for run in runs}) == 2
    for run in runs:
        config = run.failure_config
        assert (config.max_failures, config.controller_failure_limit) == (0, 0)
        assert getattr(config, "max_preemption_failures", 0) == 0, "Ray has it since 2.59"
    launcher.fit(1, settings_of(Experiment(), cluster.Share(0.5, False, 1.0)), tmp_path, ())
    environments = [options["run_config"].worker_runtime_env["env_vars"] for options in fitted]
    assert environments == [{}, {}, cluster.KEEP_MEMORY], "on CPUs alone"


def test_memory_that_does_not_suffice_is_told_with_what_helps() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**50, dtype=torch.uint8, device=device)
    assert out_of_memory(failed.value)
    for told in (
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("CUDA error: out of memory"),
        torch.distributed.DistBackendError("NCCL error\nLast error:\nCuda failure 2 'out of memory'"),
    ):
        assert out_of_memory(told), told
    assert not out_of_memory(RuntimeError("shapes differ"))
    assert not out_of_memory(ValueError("out of memory"))
    small = {"patch_size": 16, "patches_per_row": 3}
    l1_alone = {"total_steps": 2, "pretrain_steps": 2}
    generator = {"growth_rate": 2, "blocks": 2, "units": 2, "recompute": False}
    experiment = Experiment.model_validate(
        {"name": "oom", "stream": small, "generator": generator, "training": {"batch_size": 4}, "schedule": l1_alone}
    )
    advice = memory_advice(experiment, failed.value)
    for word in ("ran out of memory", "GiB with 4 patches", "generator.recompute=true for this run",
                 "training.micro_batch=1", "--fit-memory"):  # fmt: skip
        assert word in advice
