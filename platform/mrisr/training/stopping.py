"""Stopping in good order: SIGTERM to the driver, or a node that Ray is about to lose, first makes a checkpoint."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import FrameType

import ray.train
import torch
import torch.distributed as dist

from mrisr.engine.sharding import rank, world_size

STOP_FILE, CHECKPOINT_FILE = "stop-requested", "checkpoint-requested"
# As often as Ray itself looks for nodes that it will lose, whose own setting this is.
PREEMPTION_EVERY_S = float(os.environ.get("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "5"))


class Request(IntEnum):
    """What the workers are asked to do after a step; the larger one wins."""

    NOTHING = 0
    CHECKPOINT = 1  # a node is about to go, or the group about to grow: save now, go on as long as it lasts
    STOP = 2  # save now, then stop


class Requests:
    """The same answer on every rank after every step, so that all of them save together.

    run_folder: where `stop_on_sigterm` and the elastic policy leave their files; rank 0 looks for them. Ray is asked
    for preempted nodes every PREEMPTION_EVERY_S seconds by rank 0's clock: that call is a barrier in Ray, too slow for
    every step.
    """

    def __init__(self, run_folder: Path, device: torch.device) -> None:
        self._stop, self._checkpoint, self._device = run_folder / STOP_FILE, run_folder / CHECKPOINT_FILE, device
        self._asked = time.monotonic()
        self._saved_for_preemption = False

    def after_step(self) -> Request:
        """Every rank must call it equally often."""
        stop = save = ask = False
        if rank() == 0:
            stop, save = self._stop.exists(), self._checkpoint.exists()
            ask = time.monotonic() - self._asked > PREEMPTION_EVERY_S
            if save:
                self._checkpoint.unlink(missing_ok=True)  # asked once, saved once
        stop, save, ask = self._from_rank_0(stop, save, ask)
        if stop:
            return Request.STOP
        if save:
            return Request.CHECKPOINT
        if ask:
            self._asked = time.monotonic()
            if ray.train.get_preemption_info() is not None and not self._saved_for_preemption:
                self._saved_for_preemption = True
                return Request.CHECKPOINT
        return Request.NOTHING

    def _from_rank_0(self, *flags: bool) -> tuple[bool, ...]:
        if world_size() == 1:
            return flags
        told = torch.tensor(flags, dtype=torch.uint8, device=self._device)
        dist.broadcast(told, src=0)
        return tuple(bool(flag) for flag in told.tolist())


@contextmanager
def stop_on_sigterm(run_folder: Path) -> Iterator[None]:
    """In the driver: SIGTERM asks the workers to save and stop; a second one ends the driver at once."""
    file = run_folder / STOP_FILE
    file.unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may have signal handlers; under Ray Tune the tuner owns the process anyway
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if file.exists():
            sys.exit(128 + number)
        file.touch()
        os.write(2, b"SIGTERM: the workers write a checkpoint and stop\n")

    before = signal.signal(signal.SIGTERM, handle)
    try:
        with keeping_ctrl_c():
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
        file.unlink(missing_ok=True)


@contextmanager
def keeping_ctrl_c() -> Iterator[None]:
    """Around Ray's fit(): it replaces the handler of Ctrl-C and leaves its own behind, which ends nothing any more."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
