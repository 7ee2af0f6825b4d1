"""A queue of metrics for MLflow: a training step writes a small file, and a thread delivers the files in order.

While the tracking server does not answer or its database is locked, the files stay. This process delivers them later,
or the next one that opens the same outbox.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from mrisr.files import write_atomic
from mrisr.tracking.availability import first_line, is_refusal
from mrisr.tracking.redaction import mask_secrets
from mrisr.tracking.runs import RunLogger

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Seconds to wait for an unresponsive MLflow at the end of a run, and after SIGTERM. The next start delivers the rest.
LAST_DELIVERY_S, LAST_DELIVERY_WHEN_TERMINATED_S = 60.0, 3.0
RETRY_SECONDS = (0.5, 30.0)  # the first and the longest wait after a failure; each wait is twice the one before
LOCK_RELEASE_S = 1.0  # how long close() waits for the thread to release the folder's lock
AT_ONCE = 200  # records of metrics in one delivery, at most

_Item = Path | dict[str, Any]  # a record's file, or the record itself if the disk was full


class Outbox:
    """The queue of one run's records. A lock in the folder lets one process at a time deliver.

    first_after_s: seconds before the first delivery, for which MLflow is imported, or until `close`.
    folder: made if missing; holds one file per record until it is delivered. A record that is delivered twice appears
    once (see RunLogger). No method raises because of MLflow. An unreadable or refused record becomes a .bad file. tell:
    takes warnings for the user.
    """

    def __init__(
        self, uri: str, run_id: str, folder: Path, tell: Callable[[str], None] | None = None, first_after_s: float = 0.0
    ) -> None:
        self.uri, self.run_id, self.folder, self._warn = uri, run_id, folder, tell or _to_stderr
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        self._next = 1 + max((int(file.stem) for file in self._files()), default=0)
        self._queue: deque[_Item] = deque()
        self._at_once = AT_ONCE
        self._changed = threading.Condition()
        self._closing = False
        self._logger: RunLogger | None = None
        self._trouble = ""
        self._since = 0.0
        self._first_after_s = first_after_s
        self._thread = threading.Thread(target=self._deliver_all, name="mlflow-outbox", daemon=True)
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Queue the metrics of one step; steps must not go down."""
        self._put({"kind": "metrics", "step": step, "time": int(time.time() * 1000), "values": dict(values)})

    def figure(self, step: int, name: str, figure: Figure, copy: Path | None = None) -> None:
        """Queue a picture; `copy` is a file that stays, replaced by every later one."""
        file = self.folder / "pictures" / f"{step:08d}-{name}.png"
        try:
            figure.savefig(file)
            if copy is not None:
                write_atomic(copy, file.read_bytes(), durable=False)
        except OSError as error:
            self._warn(f"{file} could not be written ({error.strerror}); the picture is lost, training goes on")
            return
        self._put({"kind": "picture", "step": step, "file": file.name})

    def close(self, seconds: float, at_most: float = math.inf) -> int:
        """Wait until all is delivered: `seconds` without progress, `at_most` in total. Returns the number of records
        left.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        end, left = time.monotonic() + at_most, self._waiting()
        while left and self._thread.is_alive():
            self._thread.join(max(0.0, min(seconds, end - time.monotonic())))
            before, left = left, self._waiting()
            if left >= before or time.monotonic() >= end:
                break
        if left:
            why = self._trouble or "MLflow has not taken everything in time"
            self._warn(f"{why}: {left} records stay in {self.folder}; the next start delivers them")
        else:
            self._thread.join(LOCK_RELEASE_S)
        return left

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.json"))

    def _waiting(self) -> int:
        with self._changed:
            return len(self._files()) + sum(not isinstance(item, Path) for item in self._queue)

    def _put(self, record: dict[str, Any]) -> None:
        file = self.folder / f"{self._next:010d}.json"
        self._next += 1
        item: Path | dict[str, Any] = file
        # One lock for writing and queueing: otherwise the thread could mistake the new file for one of an earlier
        # process and deliver it first; RunLogger would then leave out earlier steps.
        with self._changed:
            try:
                write_atomic(file, json.dumps(record), durable=False)
            except OSError as error:
                # A full disk must not stop the training.
                self._warn(f"{file} could not be written ({error.strerror}); kept in memory until MLflow has it")
                item = record
            self._queue.append(item)
            self._changed.notify()

    def _deliver_all(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, self._first_after_s)
        lock = FileLock(self.folder / ".lock")
        wait = RETRY_SECONDS[0]
        while True:
            found: list[tuple[_Item, dict[str, Any]]] = []
            try:
                # The lock is held until the end, so that no other process of this run delivers the same records. Files
                # that are not queued were then left by an earlier process.
                if not lock.is_locked:
                    lock.acquire(timeout=0)
                    with self._changed:
                        mine = {item for item in self._queue if isinstance(item, Path)}
                        self._queue.extendleft(reversed([file for file in self._files() if file not in mine]))
                with self._changed:
                    while not self._queue and not self._closing:
                        self._changed.wait()
                    if not self._queue:
                        break
                if found := self._first_records():
                    self._deliver(found)
            except Timeout:
                time.sleep(RETRY_SECONDS[0])
                continue
            except Exception as error:  # MLflow, its database and the network raise many types
                if found and is_refusal(error) and self._is_for_a_record(found, error):
                    continue
                self._tell(error)
                time.sleep(wait)
                wait = min(2 * wait, RETRY_SECONDS[1])
                continue
            if found and self._trouble:
                self._warn(f"MLflow is back after {time.monotonic() - self._since:.0f} s; kept metrics are delivered")
                self._trouble, wait = "", RETRY_SECONDS[0]
            with self._changed:
                for _ in found:
                    self._queue.popleft()
        lock.release()

    def _first_records(self) -> list[tuple[_Item, dict[str, Any]]]:
        """The next picture, or up to `_at_once` metrics before it; unreadable records are removed."""
        found: list[tuple[_Item, dict[str, Any]]] = []
        while len(found) < min(len(self._queue), self._at_once):
            item = self._queue[len(found)]
            try:
                record = _checked(json.loads(item.read_text())) if isinstance(item, Path) else item
            except FileNotFoundError:
                self._drop(len(found))  # another process delivered it
                continue
            except ValueError as error:
                self._set_aside(len(found), f"is no whole record ({first_line(error)})")
                continue
            if found and "picture" in (record["kind"], found[0][1]["kind"]):
                break
            found.append((item, record))
        return found

    def _deliver(self, found: list[tuple[_Item, dict[str, Any]]]) -> None:
        if self._logger is None:
            self._logger = RunLogger(self.uri, self.run_id)
        if found[0][1]["kind"] == "metrics":
            self._logger.batch([(record["step"], record["values"], record["time"]) for _, record in found])
        elif (file := self.folder / "pictures" / found[0][1]["file"]).exists():
            self._logger.artifact(file, "pictures")
            file.unlink()
        for item, _ in found:
            if isinstance(item, Path):
                item.unlink(missing_ok=True)

    def _is_for_a_record(self, found: list[tuple[_Item, dict[str, Any]]], error: Exception) -> bool:
        """Whether MLflow refuses a record and not the run. If so, records are delivered one by one to find it."""
        try:
            if self._logger is None or not self._logger.is_active():
                return False
        except Exception:
            return False
        if len(found) > 1:
            self._at_once = 1
        else:
            self._set_aside(0, f"is refused by MLflow ({first_line(error)})")
            self._at_once = AT_ONCE
        return True

    def _set_aside(self, place: int, why: str) -> None:
        item = self._queue[place]
        if isinstance(item, Path):
            kept = item
            with suppress(OSError):  # without a new name the next start tries again
                kept = item.replace(item.with_suffix(".bad"))
            self._warn(f"{item.name} {why}; it is kept as {kept}, the others are delivered")
        else:
            self._warn(f"a record of step {item['step']} {why} and is lost; the others are delivered")
        self._drop(place)

    def _drop(self, place: int) -> None:
        with self._changed:
            del self._queue[place]

    def _tell(self, error: Exception) -> None:
        verb = f"refuses run {self.run_id}" if is_refusal(error) else "is away"
        trouble = f"MLflow at {mask_secrets(self.uri)} {verb} ({first_line(error)})"
        if not self._trouble:
            self._since = time.monotonic()
            self._warn(f"{trouble}; metrics are kept in {self.folder}")
        self._trouble = trouble


def _checked(record: Any) -> dict[str, Any]:
    needed = {"metrics": ("step", "time", "values"), "picture": ("step", "file")}
    kind = record.get("kind") if isinstance(record, dict) else None
    if kind not in needed or any(key not in record for key in needed[kind]):
        raise ValueError(f"not a record of metrics or of a picture: {str(record)[:80]}")
    return dict(record)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
