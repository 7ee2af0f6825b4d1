"""The stream: Ray Data turns a plan of rows into batches of (lr, hr) patches.

A row is one volume, degraded once, from which K patches are cut. The plan is an endless sequence of rows: one seeded
permutation of the subjects per epoch. The randomness of a row is a function of (seed, epoch, subject), so any worker
can compute it at any time.

There are G lanes, one per element of the global batch, and each row belongs to one lane. A lane processes groups of R
rows and mixes the R*K patches of a group by a seeded permutation. At step s every lane delivers its patch number s.
Rank r of W has a contiguous block of G/W lanes. docs/design/stream.md lists the guarantees.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mrisr.cluster import task_options
from mrisr.data.rows import WIRE_DTYPE, PatchMaker
from voxelstore import StoreError

if TYPE_CHECKING:
    from ray.data import Dataset

# Rounds that are computed while one is consumed.
AHEAD = 2
LOOK_EVERY_S = 0.5

Blocks = list[dict[str, np.ndarray]]


class StreamError(ValueError):
    """A row that can never be made. The message names its subject and the remedy."""


class Batch(NamedTuple):
    """The patches of one rank in one step: lr, hr (B, 1, P, P, P) float16; row, patch (B,) int64 identify them."""

    lr: np.ndarray
    hr: np.ndarray
    row: np.ndarray
    patch: np.ndarray


def rank_lanes(lanes: int, rank: int, world_size: int) -> range:
    """The lanes of a rank: a contiguous block, so that the ranks' batches in order are the global batch."""
    if lanes % world_size:
        raise ValueError(
            f"training.batch_size = {lanes} does not divide among {world_size} workers; use a multiple of {world_size}"
        )
    per_rank = lanes // world_size
    return range(rank * per_rank, (rank + 1) * per_rank)


class StreamLimits(NamedTuple):
    """The resources that one rank's stream may use.

    cpus_per_task: logical CPUs that a data task reserves; cpus: logical CPUs of all its tasks. rounds: groups per lane
    that one dataset computes. In memory are the groups in use and those of the AHEAD next datasets.
    """

    cpus_per_task: float
    cpus: float
    rounds: int


def group_bytes(maker: PatchMaker) -> int:
    """Bytes of one group of one lane in the object store, lr and hr together."""
    return 2 * np.dtype(WIRE_DTYPE).itemsize * maker.patch_size**3 * maker.plan.group_size


def object_store_bytes(maker: PatchMaker, rounds: int) -> int:
    """The most bytes that the streams of all ranks keep in the cluster's object stores."""
    return (1 + AHEAD) * rounds * maker.plan.lanes * group_bytes(maker)


def group_dataset(maker: PatchMaker, lanes: Sequence[int], turns: range, skip: int, limits: StreamLimits) -> Dataset:
    """A Ray dataset with one block per group, ordered by (turn, lane). Rows are three integers until the map.

    skip: consumed patches of the first turn. limits: of this rank; the default would be the whole cluster.
    """
    import ray.data
    from ray.data import ExecutionResources

    items = [{"turn": t, "lane": lane, "skip": skip if t == turns.start else 0} for t in turns for lane in lanes]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        maker, batch_size=None, batch_format="numpy", num_cpus=limits.cpus_per_task, zero_copy_batch=True,
        **task_options(),
    )  # fmt: skip
    context: Any = dataset.context
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources(cpu=limits.cpus)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Keep a group one block, so that consuming it in order copies nothing.
    context.target_max_block_size = max(context.target_max_block_size or 0, 2 * group_bytes(maker))
    return dataset


def rank_batches(
    maker: PatchMaker,
    rank: int,
    world_size: int,
    start_step: int,
    stop_step: int,
    limits: StreamLimits,
    waiting: Callable[[float], None] = lambda seconds: None,
) -> Generator[Batch, None, None]:
    """The batches of a rank for steps start_step ... stop_step - 1, streamed by Ray Data from this call on; close it to
    stop early.

    One dataset computes `limits.rounds` groups of every lane; AHEAD datasets run while an earlier one is consumed. Ray
    Data starts tasks ten times a second, so the second dataset's tasks wait in Ray's queue and keep all cores busy. One
    endless dataset made a CPU training step three times as slow: Ray Data's executor thread spins under backpressure
    and holds the GIL. waiting: called with the seconds waited so far, again and again, while no batch is ready; what it
    raises ends the stream. Raises StreamError for a row that cannot be made, and Ray's error for any other failed task.
    """
    from ray.exceptions import RayTaskError, UserCodeException

    plan = maker.plan
    lanes = rank_lanes(plan.lanes, rank, world_size)
    first, skip = divmod(start_step, plan.group_size)
    end = -(-stop_step // plan.group_size)

    def compute(turns: range) -> Blocks:
        consumed = skip if turns.start == first else 0
        dataset = group_dataset(maker, lanes, turns, consumed, limits)
        try:
            return list(dataset.iter_batches(batch_size=plan.group_size, batch_format="numpy", prefetch_batches=0))
        except (RayTaskError, UserCodeException):
            _make_here(maker, lanes, turns, consumed)
            raise  # no row is at fault

    rounds = [range(begin, min(begin + limits.rounds, end)) for begin in range(first, end, limits.rounds)]
    pool = ThreadPoolExecutor(max_workers=AHEAD, thread_name_prefix="stream")
    ahead = deque(pool.submit(compute, turns) for turns in rounds[:AHEAD])

    def batches() -> Generator[Batch, None, None]:
        left = stop_step - start_step
        try:
            for number, turns in enumerate(rounds):
                blocks = _result(ahead.popleft(), waiting)
                if number + AHEAD < len(rounds):
                    ahead.append(pool.submit(compute, rounds[number + AHEAD]))
                consumed = skip if turns.start == first else 0
                for batch in islice(interleave(iter(blocks), len(lanes), consumed), left):
                    yield batch
                    left -= 1
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    return batches()


def _result(future: Future[Blocks], waiting: Callable[[float], None]) -> Blocks:
    started = time.monotonic()
    while not wait([future], timeout=LOOK_EVERY_S).done:
        waiting(time.monotonic() - started)
    return future.result()


def _make_here(maker: PatchMaker, lanes: Sequence[int], turns: range, skip: int) -> None:
    """Repeat a failed dataset here, because Ray Data reports a task's error as text only. Raises StreamError."""
    for turn in turns:
        for lane in lanes:
            try:
                maker.group_patches(turn, lane, skip if turn == turns.start else 0)
            except StoreError:
                return  # the store may become available again, so the workers are restarted
            except ValueError as error:
                raise StreamError(str(error)) from None


def interleave(blocks: Iterator[dict[str, np.ndarray]], lanes: int, skip: int) -> Iterator[Batch]:
    """Batches from the blocks of `lanes` groups at a time, one patch per group. The first turn skips `skip` patches."""
    while turn := list(islice(blocks, lanes)):
        for i in range(skip, len(turn[0]["row"])):
            yield Batch(*(np.stack([block[name][i] for block in turn]) for name in Batch._fields))
        skip = 0
