"""The end of an interrupted search: after SIGTERM, Ctrl-C or an error, no run stays RUNNING in MLflow."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mrisr.tracking import runs as tracking
from mrisr.tracking.availability import first_line, is_refusal, within
from mrisr.tracking.outbox import Outbox
from mrisr.tracking.redaction import mask_secrets
from mrisr.tracking.runs import Status
from mrisr.training.outcome import Terminated
from mrisr.training.run_folder import RunFolder
from mrisr.tuning.summary import SearchSummary, TrialSummary

# The MLflow status of a trial by its state, if not FINISHED. A trial that is still running here was interrupted.
_ENDS: dict[str, Status] = {"failed": "FAILED", "running": "KILLED"}
# Start of Tune's messages on an interruption -> what is logged instead. Tune advises to restore from its snapshots,
# which a search does not use.
_TUNE_SAYS: dict[str, str | None] = {
    "Stop signal received": "the search stops here; its trials keep what they have checkpointed",
    "Experiment has been interrupted": None,
    "Trials did not complete": None,
}


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM (`ray job stop`, Slurm) acts like Ctrl-C, and the block raises Terminated. Checkpoints exist already."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may have signal handlers
        return
    terminated = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        os.write(2, b"SIGTERM: the search stops\n")
        if not callable(signal.getsignal(signal.SIGINT)):
            raise KeyboardInterrupt  # Ctrl-C is ignored in a command that a shell started in the background
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    except KeyboardInterrupt:
        if not terminated:
            raise
        raise Terminated("the search was stopped by SIGTERM") from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def tune_interruptible() -> Iterator[None]:
    """Around Tune: replaces its advice on an interruption, and restores the Ctrl-C handler that Tune replaces."""
    logger, ctrl_c = logging.getLogger("ray.tune.tune"), signal.getsignal(signal.SIGINT)
    logger.addFilter(_in_our_words)
    try:
        yield
    finally:
        logger.removeFilter(_in_our_words)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, ctrl_c)


def _in_our_words(record: logging.LogRecord) -> bool:
    for theirs, ours in _TUNE_SAYS.items():
        if str(record.msg).startswith(theirs):
            record.msg, record.args = ours, ()
            return ours is not None
    return True


def end_trials(uri: str, summary: SearchSummary, parent: str, seconds: float) -> None:
    """Deliver the records that trials could not deliver, and end their MLflow runs.

    seconds: time limit for the records of each trial. If MLflow cannot be reached, a message is printed to stderr.
    """
    for trial in summary.trials:
        if (run_id := trial.mlflow_run_id) is None:
            continue
        try:
            _end_trial(uri, trial, run_id, parent, seconds)
        except Exception as error:  # databases raise their own errors, not MLflow's
            how = "says no" if is_refusal(error) else "is away"
            print(f"MLflow at {mask_secrets(uri)} {how}: run {run_id} of {trial.run} may still show as running "
                  f"({first_line(error)})", file=sys.stderr, flush=True)  # fmt: skip
            if not is_refusal(error):
                return  # the other trials could not reach it either


def _end_trial(uri: str, trial: TrialSummary, run_id: str, parent: str, seconds: float) -> None:
    outbox = RunFolder(trial.folder).outbox
    if any(outbox.glob("[0-9]*.json")):
        Outbox(uri, run_id, outbox).close(seconds)

    def end() -> None:
        run = tracking.client(uri).get_run(run_id)
        # The tag alone is not enough: an interrupted trial has it too and may be running again.
        if run.data.tags.get("tuning.state") == trial.state and run.info.status != "RUNNING":
            return
        tracking.RunLogger(uri, run_id).tags({"tuning.state": trial.state, "tuning.search": parent})
        tracking.finish(uri, run_id, _ENDS.get(trial.state, "FINISHED"))

    within(tracking.FINISH_S, end)
