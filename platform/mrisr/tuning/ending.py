"""How a search ends before its end: SIGTERM, Ctrl-C and errors leave no run in MLflow that seems to go on."""

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
from mrisr.tracking.availability import first_line, refused, within
from mrisr.tracking.outbox import Outbox
from mrisr.tracking.redaction import mask_secrets
from mrisr.tracking.runs import Status
from mrisr.training.outcome import Terminated
from mrisr.training.run_folder import RunFolder
from mrisr.training.stopping import keeping_ctrl_c
from mrisr.tuning.outcome import Outcome, TrialOutcome

# How MLflow shows a trial, where not as finished; one that is still running here was interrupted.
_ENDS: dict[str, Status] = {"failed": "FAILED", "running": "KILLED"}
# What Tune says of an interruption would lead a user to restore from its own snapshots, which a search does not use.
_TUNE_SAYS: dict[str, str | None] = {
    "Stop signal received": "the search stops here; its trials keep what they have checkpointed",
    "Experiment has been interrupted": None,
    "Trials did not complete": None,
}


@contextmanager
def ending_in_tracking(uri: str, run_id: str) -> Iterator[None]:
    """MLflow shows a search that ends here by an error as failed, or as killed, and not as running for ever."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, Terminated):
        tracking.finish_if_reachable(uri, run_id, "KILLED")
        raise
    except Exception:
        tracking.finish_if_reachable(uri, run_id, "FAILED")
        raise


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM (`ray job stop`, Slurm) ends a search as Ctrl-C does, inside of Tune and outside; raises Terminated then.

    The trials' checkpoints are of their last validations, so there is nothing to wait for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may have signal handlers
        return
    told = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal told
        told = True
        os.write(2, b"SIGTERM: the search stops\n")
        if not callable(signal.getsignal(signal.SIGINT)):
            raise KeyboardInterrupt  # a shell that starts a command in the background has it ignore Ctrl-C
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    except KeyboardInterrupt:
        if not told:
            raise
        raise Terminated("the search was stopped by SIGTERM") from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def tune_interruptible() -> Iterator[None]:
    """Around Tune: its advice upon an interruption is left out, and Ctrl-C works afterwards as before."""
    logger = logging.getLogger("ray.tune.tune")
    logger.addFilter(_in_our_words)
    try:
        with keeping_ctrl_c():
            yield
    finally:
        logger.removeFilter(_in_our_words)


def _in_our_words(record: logging.LogRecord) -> bool:
    for theirs, ours in _TUNE_SAYS.items():
        if str(record.msg).startswith(theirs):
            record.msg, record.args = ours, ()
            return ours is not None
    return True


def end_trials(uri: str, outcome: Outcome, parent: str, seconds: float) -> None:
    """Deliver what trials that were stopped from outside have left, and end their runs.

    seconds: to wait for each trial's figures; what stays behind is delivered by the next start of the search. An MLflow
    that is away is told on stderr, and hides no other error.
    """
    for trial in outcome.trials:
        if (run_id := trial.mlflow_run_id) is None:
            continue
        try:
            _end_trial(uri, trial, run_id, parent, seconds)
        except Exception as error:  # a database that is locked raises its own errors, not MLflow's
            how = "says no" if refused(error) else "is away"
            print(f"MLflow at {mask_secrets(uri)} {how}: run {run_id} of {trial.run} may still show as running "
                  f"({first_line(error)})", file=sys.stderr, flush=True)  # fmt: skip
            if not refused(error):
                return  # it would be as far away for the other trials


def _end_trial(uri: str, trial: TrialOutcome, run_id: str, parent: str, seconds: float) -> None:
    outbox = RunFolder(trial.folder).outbox
    if any(outbox.glob("[0-9]*.json")):
        Outbox(uri, run_id, outbox).close(seconds)

    def end() -> None:
        run = tracking.client(uri).get_run(run_id)
        # A trial that was interrupted twice has the tag of the first time and runs again.
        if run.data.tags.get("tuning.state") == trial.state and run.info.status != "RUNNING":
            return
        tracking.RunLogger(uri, run_id).tags({"tuning.state": trial.state, "tuning.search": parent})
        tracking.finish(uri, run_id, _ENDS.get(trial.state, "FINISHED"))

    within(tracking.FINISH_S, end)
