"""In workers: a checkpoint before a known end: SIGTERM to the driver, more workers, or a node that Ray will lose."""

from __future__ import annotations

import os
import time
from enum import IntEnum

import ray.train
import torch
import torch.distributed as dist

from mrisr.engine.sharding import rank, world_size
from mrisr.training.run_folder import RunFolder

# Ray's own interval for checking which nodes it will lose.
PREEMPTION_EVERY_S = float(os.environ.get("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "5"))
# Ray 2.59 and later announce which nodes will be lost.
_announced = getattr(ray.train, "get_preemption_info", lambda: None)


class Request(IntEnum):
    """What the workers must do after a step. The largest value has priority."""

    NOTHING = 0
    CHECKPOINT = 1  # a node will go soon: save now and continue
    RESIZE = 2  # there is room for more workers: save now and return
    STOP = 3  # save now and stop


class Requests:
    """Gives every rank the same answer after every step, so that all ranks save together.

    folder: where rank 0 looks for the driver's files. Rank 0 asks Ray for preempted nodes every PREEMPTION_EVERY_S
    seconds: that call is a barrier in Ray, too slow for every step.
    """

    def __init__(self, folder: RunFolder, device: torch.device) -> None:
        self._folder, self._device = folder, device
        self._asked_ray = time.monotonic()
        self._saved_for_preemption = False

    def after_step(self) -> Request:
        """The request to follow now. Every rank must call it equally often."""
        found = Request.NOTHING
        if rank() == 0 and self._folder.stop_request.exists():
            found = Request.STOP
        elif rank() == 0 and self._folder.resize_request.exists():
            found = Request.RESIZE
        seen_by_rank_0 = torch.tensor(
            [found, time.monotonic() - self._asked_ray > PREEMPTION_EVERY_S], dtype=torch.uint8, device=self._device
        )
        if world_size() > 1:
            dist.broadcast(seen_by_rank_0, src=0)
        request, ask_ray = seen_by_rank_0.tolist()
        if request or not ask_ray:
            return Request(request)
        self._asked_ray = time.monotonic()
        if self._saved_for_preemption or _announced() is None:
            return Request.NOTHING
        self._saved_for_preemption = True
        return Request.CHECKPOINT
