"""When workers are started again and when the run ends, by Ray's own errors; no Ray is started."""

from __future__ import annotations

import inspect
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train import ControllerError, FailureConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import FailureDecision, create_failure_policy
from ray.train.v2._internal.execution.scaling_policy import create_scaling_policy

from mrisr.config import Experiment
from mrisr.training import groups
from mrisr.training.elastic import BatchSharingPolicy
from mrisr.training.groups import (
    ProgressPolicy,
    StopRequested,
    SupervisedTrainer,
    WholeGroupPolicy,
    replaced,
    stopped_by,
)
from mrisr.training.memory import memory_advice, out_of_memory
from mrisr.training.outcome import TrainingStopped
from mrisr.training.stopping import STOP_FILE

LOST = WorkerGroupError("a worker is gone", {0: RayActorError()})
TIMEOUT = ControllerError(WorkerGroupStartupTimeoutError(2))
RETRY, RAISE = FailureDecision.RETRY, FailureDecision.RAISE


def checkpoint(run_folder: Path, step: int) -> None:
    folder = run_folder / f"checkpoint_{step:08d}"
    folder.mkdir()
    (folder / ".metadata").write_bytes(b"x")
    (folder / "progress.json").write_text('{"step": 1}')


def test_failures_count_only_while_no_newer_checkpoint_appears(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = ProgressPolicy(FailureConfig(max_failures=2), tmp_path, patient=True)
    for step in range(1, 6):
        checkpoint(tmp_path, step)
        assert [policy.make_decision(LOST) for _ in range(2)] == [RETRY, RETRY]
    assert "they are started again from checkpoint_00000005" in capsys.readouterr().out
    assert policy.make_decision(LOST) is RAISE
    assert "training.max_failures = 2 restarts since checkpoint_00000005" in capsys.readouterr().out


def test_a_group_without_room_is_waited_for_or_an_error(tmp_path: Path) -> None:
    patient = ProgressPolicy(FailureConfig(max_failures=0, controller_failure_limit=0), tmp_path, patient=True)
    assert [patient.make_decision(TIMEOUT) for _ in range(5)] == [RETRY] * 5
    trial = ProgressPolicy(FailureConfig(max_failures=0, controller_failure_limit=0), tmp_path, patient=False)
    assert trial.make_decision(TIMEOUT) is RAISE


def test_what_a_restart_would_not_mend_is_not_restarted(tmp_path: Path) -> None:
    policy = ProgressPolicy(FailureConfig(max_failures=-1), tmp_path, patient=True)
    stopped = WorkerGroupError("", {0: RayActorError(), 1: TrainingStopped("too little memory")})
    assert policy.make_decision(stopped) is RAISE
    assert str(stopped_by(stopped)) == "too little memory"
    assert stopped_by(LOST) is None
    assert policy.make_decision(StopRequested("SIGTERM")) is RAISE


def test_pauses_grow_to_a_bound_and_end_with_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = ProgressPolicy(FailureConfig(max_failures=-1, controller_failure_limit=-1), tmp_path, patient=True)
    failed = ControllerError(WorkerGroupStartupFailedError("a node is gone"))
    slept: list[float] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(groups, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0]))
    pauses = []
    for _ in range(8):
        before = clock[0]
        assert policy.make_decision(failed) is RETRY
        pauses.append(clock[0] - before)
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 30, 30, 30])
    assert max(slept) <= groups.LOOK_EVERY_S, "so that SIGTERM is seen in between"
    slept.clear()
    (tmp_path / STOP_FILE).touch()
    assert policy.make_decision(failed) is RETRY
    assert not slept


@pytest.mark.parametrize(
    ("answer", "killed"),
    [(RayActorError(), False), (GetTimeoutError(), True), (KeyboardInterrupt(), True)],
    ids=["ends", "waits for nodes", "second Ctrl-C"],
)
def test_ctrl_c_ends_a_run_whatever_its_controller_does(
    monkeypatch: pytest.MonkeyPatch, answer: BaseException, killed: bool
) -> None:
    """By the answer that Ray gives for a controller that ends its workers, or that is in another call all the time."""
    asked: list[float] = []
    ended: list[Any] = []

    def get(reference: Any, timeout: float) -> None:
        asked.append(timeout)
        raise answer

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "kill", ended.append)
    controller = SimpleNamespace(abort=SimpleNamespace(remote=lambda: "reference"))
    trainer = SupervisedTrainer.__new__(SupervisedTrainer)
    parameters = [inspect.signature(kind._register_sigint_handler).parameters for kind in (TorchTrainer, type(trainer))]
    assert list(parameters[0]) == list(parameters[1]), "Ray calls it by that name"
    before = signal.getsignal(signal.SIGINT)
    try:
        trainer._register_sigint_handler(controller)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert asked == [groups.ABORT_S]
    assert ended == ([controller] if killed else [])


@pytest.mark.parametrize("elastic", [False, True])
def test_sigterm_ends_a_run_that_has_no_workers(tmp_path: Path, elastic: bool) -> None:
    config = ScalingConfig(num_workers=(1, 2) if elastic else 2, resources_per_worker={"CPU": 1})
    policy = (
        BatchSharingPolicy(config, (2, 1), 1.0, tmp_path) if elastic else WholeGroupPolicy(config, 1.0, tmp_path)
    )  # fmt: skip
    assert isinstance(policy, type(create_scaling_policy(config)))
    checkpoint(tmp_path, 7)
    (tmp_path / STOP_FILE).touch()
    with pytest.raises(StopRequested, match="no worker ran; checkpoint_00000007 is the last checkpoint"):
        policy.make_decision_for_non_running_worker_group()


def test_another_ray_is_refused_rather_than_half_replaced(tmp_path: Path) -> None:
    ours = {"failure_policy": ProgressPolicy(FailureConfig(), tmp_path, patient=True)}
    theirs = {"failure_policy": create_failure_policy(FailureConfig()), "callbacks": []}
    assert replaced(theirs, ours) == {**ours, "callbacks": []}
    with pytest.raises(RuntimeError, match="has nothing where this project replaces its failure_policy"):
        replaced({"failures": None}, ours)
    with pytest.raises(RuntimeError, match="has str where"):
        replaced({"failure_policy": "default"}, ours)


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
