"""A search that ends before its end: SIGTERM is told from Ctrl-C, and no trial stays RUNNING in MLflow."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from types import FrameType

import optuna
import pytest

from mrisr.tracking import runs as tracking
from mrisr.training.outcome import Terminated
from mrisr.tuning.shutdown import end_trials, sigterm_interrupts, tune_interruptible
from mrisr.tuning.summary import SearchSummary, TrialSummary


def receive(number: int) -> None:
    """Send this process a signal that ends it by an exception; another thread may be the one that is given it."""
    os.kill(os.getpid(), number)
    time.sleep(60)


def test_sigterm_ends_a_search_as_ctrl_c_does_and_is_told_from_it() -> None:
    found = signal.getsignal(signal.SIGINT)
    # The first is how a shell starts a command in the background; the tests may have been, too.
    for handler in (signal.SIG_IGN, signal.default_int_handler):
        signal.signal(signal.SIGINT, handler)
        with pytest.raises(Terminated, match="stopped by SIGTERM"), sigterm_interrupts():
            receive(signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM), signal.default_int_handler
    with pytest.raises(KeyboardInterrupt), sigterm_interrupts():
        receive(signal.SIGINT)

    # Tune has a handler of its own, which asks its loop to end, and leaves it behind.
    heard: list[int] = []

    def theirs(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    def search() -> None:
        with tune_interruptible():
            signal.signal(signal.SIGINT, theirs)
            os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + 60
            while not heard and time.monotonic() < deadline:
                time.sleep(0.01)
        assert heard == [signal.SIGINT]
        raise KeyboardInterrupt  # since trials are missing

    with pytest.raises(Terminated), sigterm_interrupts():
        search()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    signal.signal(signal.SIGINT, found)


def test_what_tune_advises_upon_an_interruption_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("ray.tune.tune")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.WARNING, logger.name)  # Ray has another one where a test has started it
    try:
        with tune_interruptible():
            logger.warning("Stop signal received (e.g. via SIGINT/Ctrl+C), ending Ray Tune run. ")
            logger.warning("Experiment has been interrupted, but the most recent state was saved.\nTry %s", "x")
            logger.error("Experiment state snapshotting failed:")
    finally:
        logger.removeHandler(caplog.handler)
    shown = list(dict.fromkeys(record.getMessage() for record in caplog.records))
    assert shown == [
        "the search stops here; its trials keep what they have checkpointed", "Experiment state snapshotting failed:",
    ]  # fmt: skip


def test_a_trial_that_is_interrupted_a_second_time_does_not_stay_running(tmp_path: Path) -> None:
    place = tracking.prepare(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts", "e")

    def ended(state: str, *before: str) -> tuple[str, str]:
        run_id = tracking.start_run(place, {}, name="trial", tags={"tuning.state": before[0]} if before else {})
        frozen = optuna.trial.create_trial(value=1.0)
        trial = TrialSummary(0, "trial", state, {}, [], {}, 4, None, run_id, tmp_path, frozen)
        end_trials(place.uri, SearchSummary([trial], [], 1), "parent", 1.0)
        run = tracking.client(place.uri).get_run(run_id)
        return run.info.status, run.data.tags["tuning.state"]

    assert ended("running") == ("KILLED", "running")
    assert ended("running", "running") == ("KILLED", "running"), "resumed after the first time"
    assert ended("finished", "running") == ("FINISHED", "finished")
    assert ended("failed") == ("FAILED", "failed")
