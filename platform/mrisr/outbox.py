"""Metrics on their way to MLflow: written into the run's folder, delivered by a thread, kept while MLflow is away.

A training step only writes a small file. If the tracking server does not answer, or its database is locked, the files
wait; they are delivered in order once it is back, by this process or by the next one that opens the same outbox.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from mrisr.run_parameters import mask_secrets
from mrisr.tracking import RunLogger

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RETRY_SECONDS = (0.5, 30.0)  # the first wait after a failure, and the longest; each wait is twice the one before


class Outbox:
    """What a run has to tell MLflow, in order; one process at a time delivers, guarded by a lock in the folder.

    uri, run_id: where to. folder: made if missing; holds one file per record until that record is delivered. MLflow
    itself says what it has (see RunLogger), so a record that was delivered twice, because a resumed run computed it
    again or because a process died between delivery and deletion, appears once. Nothing here raises because of MLflow.
    """

    def __init__(self, uri: str, run_id: str, folder: Path) -> None:
        self.uri, self.run_id, self.folder = uri, run_id, folder
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        waiting = sorted(folder.glob("[0-9]*.json"))
        self._next = 1 + (int(waiting[-1].stem) if waiting else 0)
        self._queue: deque[Path | dict[str, Any]] = deque(waiting)
        self._changed = threading.Condition()
        self._closing = False
        self._logger: RunLogger | None = None
        self._away_since: float | None = None
        self._thread = threading.Thread(target=self._deliver_all, name="mlflow-outbox", daemon=True)
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the metrics of one step for delivery; steps must not go down."""
        self._put({"kind": "metrics", "step": step, "time": int(time.time() * 1000), "values": dict(values)})

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Keep a matplotlib figure for delivery as pictures/<step, 8 digits>-<name>.png."""
        file = self.folder / "pictures" / f"{step:08d}-{name}.png"
        try:
            figure.savefig(file)
        except OSError as error:
            _warn(f"{file} could not be written ({error.strerror}); the picture is lost, training goes on")
            return
        self._put({"kind": "picture", "step": step, "file": file.name})

    def close(self, seconds: float) -> int:
        """Wait up to `seconds` for the delivery of everything; returns how many records stay behind in the folder."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        left = len(self._queue)
        if left:
            _warn(f"MLflow is away: {left} records stay in {self.folder}; the next start delivers them")
        return left

    def _put(self, record: dict[str, Any]) -> None:
        file = self.folder / f"{self._next:010d}.json"
        self._next += 1
        item: Path | dict[str, Any] = file
        try:
            part = file.with_suffix(f".part{os.getpid()}")
            part.write_text(json.dumps(record))
            part.replace(file)
        except OSError as error:
            # A full disk must not stop the training either; what only memory holds is lost if the process dies.
            _warn(f"{file} could not be written ({error.strerror}); kept in memory until MLflow has it")
            item = record
        with self._changed:
            self._queue.append(item)
            self._changed.notify()

    def _deliver_all(self) -> None:
        lock = FileLock(self.folder / ".lock")
        wait = RETRY_SECONDS[0]
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue:
                    break
                item = self._queue[0]
            try:
                # Held until the end: another process of this run would otherwise deliver the same records.
                if not lock.is_locked:
                    lock.acquire(timeout=0)
                self._deliver(item)
            except Timeout:
                time.sleep(RETRY_SECONDS[0])
                continue
            except Exception as error:  # whatever MLflow, its database or the network raise: it is away
                if self._away_since is None:
                    self._away_since = time.monotonic()
                    away = f"MLflow at {mask_secrets(self.uri)} is away ({_first_line(error)})"
                    _warn(f"{away}; metrics are kept in {self.folder}")
                time.sleep(wait)
                wait = min(2 * wait, RETRY_SECONDS[1])
                continue
            if self._away_since is not None:
                _warn(f"MLflow is back after {time.monotonic() - self._away_since:.0f} s; kept metrics are delivered")
                self._away_since, wait = None, RETRY_SECONDS[0]
            with self._changed:
                self._queue.popleft()
        lock.release()

    def _deliver(self, item: Path | dict[str, Any]) -> None:
        record = json.loads(item.read_text()) if isinstance(item, Path) else item
        if self._logger is None:
            self._logger = RunLogger(self.uri, self.run_id)
        if record["kind"] == "metrics":
            self._logger.metrics(record["step"], record["values"], record["time"])
        elif (file := self.folder / "pictures" / record["file"]).exists():
            self._logger.artifact(file, "pictures")
            file.unlink()
        if isinstance(item, Path):
            item.unlink()


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
