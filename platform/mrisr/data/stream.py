"""The stream: a plan of rows, turned into batches of (lr, hr) patches by Ray Data.

A row is one volume, degraded once, from which K patches are cut. The plan is an endless sequence of rows: epoch after
epoch, each a seeded permutation of the subjects. All randomness of a row is a function of (seed, epoch, subject), so it
does not matter which worker computes it, or when.

The rows are dealt to G lanes, one per element of the global batch. A lane works through groups of R rows and mixes the
R*K patches of a group by a seeded permutation; at step s every lane contributes its patch number s. Rank r of W owns a
contiguous block of G/W lanes. From this follows what training relies on:

- step s sees the same G patches in the same order for every W that divides G;
- the position in the stream is the step, so a run resumes in the middle of a row, and consumed rows are not re-read;
- every volume is read and transformed once per row, whatever W is;
- a batch holds patches of up to G different volumes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mrisr.data.rows import WIRE_DTYPE, PatchMaker, Row, RowPlan
from voxelstore import StoreError

if TYPE_CHECKING:
    from ray.data import Dataset

__all__ = [
    "Batch",
    "PatchMaker",
    "Row",
    "RowPlan",
    "StreamError",
    "StreamLimits",
    "group_dataset",
    "rank_batches",
    "rank_lanes",
]


# Rounds that are computed while one is consumed.
AHEAD = 2


class StreamError(ValueError):
    """A row that cannot be made, now or another time; the message names its subject and the remedy."""


class Batch(NamedTuple):
    """What one rank sees in one step: lr, hr (B, 1, P, P, P) float16; row, patch (B,) int64 name them for replay."""

    lr: np.ndarray
    hr: np.ndarray
    row: np.ndarray
    patch: np.ndarray


def rank_lanes(lanes: int, rank: int, world_size: int) -> range:
    """The lanes of a rank: a contiguous block, so that ranks in order give the global batch in order."""
    if lanes % world_size:
        raise ValueError(
            f"training.batch_size = {lanes} does not divide among {world_size} workers; use a multiple of {world_size}"
        )
    per_rank = lanes // world_size
    return range(rank * per_rank, (rank + 1) * per_rank)


class StreamLimits(NamedTuple):
    """What one rank's stream may use.

    cpus_per_task: logical CPUs that a data task reserves; cpus: those of all its tasks. rounds: groups per lane that
    are computed at a time; up to three times as many are in memory: those in use and those of the AHEAD next rounds.
    """

    cpus_per_task: float
    cpus: float
    rounds: int


def group_bytes(maker: PatchMaker) -> int:
    """Bytes of one group of one lane in the object store: both sides of its pairs."""
    return 2 * np.dtype(WIRE_DTYPE).itemsize * maker.patch_size**3 * maker.plan.group_size


def object_store_bytes(maker: PatchMaker, rounds: int) -> int:
    """The most bytes that the stream of all ranks together keeps in the cluster's object stores."""
    return (1 + AHEAD) * rounds * maker.plan.lanes * group_bytes(maker)


def group_dataset(maker: PatchMaker, lanes: Sequence[int], turns: range, skip: int, limits: StreamLimits) -> Dataset:
    """A Ray dataset with one block per group, ordered by (turn, lane). Rows are three integers until the map.

    skip: consumed patches of the first turn. limits: of this rank, since every rank runs its own executor, which would
    otherwise plan with the whole cluster.
    """
    import ray.data
    from ray.data import ExecutionResources

    items = [{"turn": t, "lane": lane, "skip": skip if t == turns.start else 0} for t in turns for lane in lanes]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        maker, batch_size=None, batch_format="numpy", num_cpus=limits.cpus_per_task, zero_copy_batch=True
    )
    context: Any = dataset.context
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources(cpu=limits.cpus)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A group stays one block, so that consuming it in order copies nothing.
    context.target_max_block_size = max(context.target_max_block_size or 0, 2 * group_bytes(maker))
    return dataset


def rank_batches(
    maker: PatchMaker, rank: int, world_size: int, start_step: int, stop_step: int, limits: StreamLimits
) -> Generator[Batch, None, None]:
    """The batches of a rank for steps start_step ... stop_step - 1, streamed by Ray Data; close it to stop early.

    One dataset computes `limits.rounds` groups of every lane to the end, and AHEAD of them run while the ones before
    are consumed. Two, because Ray Data looks for finished tasks ten times a second and starts others only then: the
    tasks of the second dataset wait in Ray's own queue, so that no core does. A single endless dataset would get ahead
    by backpressure, but then Ray Data's executor, a thread in the training process, spins whenever it has nothing to
    start, and its hold of the GIL made a CPU training step three times as slow.
    Raises StreamError for a row at fault, and what Ray raises for a task that failed for another reason.
    """
    from ray.exceptions import RayTaskError, UserCodeException

    plan = maker.plan
    lanes = rank_lanes(plan.lanes, rank, world_size)
    first, skip = divmod(start_step, plan.group_size)
    end = -(-stop_step // plan.group_size)

    def compute(turns: range) -> list[dict[str, np.ndarray]]:
        consumed = skip if turns.start == first else 0
        dataset = group_dataset(maker, lanes, turns, consumed, limits)
        try:
            return list(dataset.iter_batches(batch_size=plan.group_size, batch_format="numpy", prefetch_batches=0))
        except (RayTaskError, UserCodeException):
            _make_here(maker, lanes, turns, consumed)
            raise  # nothing is wrong with the rows

    rounds = [range(begin, min(begin + limits.rounds, end)) for begin in range(first, end, limits.rounds)]
    pool = ThreadPoolExecutor(max_workers=AHEAD, thread_name_prefix="stream")
    try:
        ahead = deque(pool.submit(compute, turns) for turns in rounds[:AHEAD])
        left = stop_step - start_step
        for number, turns in enumerate(rounds):
            blocks = ahead.popleft().result()
            if number + AHEAD < len(rounds):
                ahead.append(pool.submit(compute, rounds[number + AHEAD]))
            consumed = skip if turns.start == first else 0
            for batch in islice(interleave(iter(blocks), len(lanes), consumed), left):
                yield batch
                left -= 1
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _make_here(maker: PatchMaker, lanes: Sequence[int], turns: range, skip: int) -> None:
    """Make the groups of a dataset that failed once more, in this process; raises StreamError for a row at fault.

    Ray Data hands on only the text of a task's error, behind one of its own. Such a row fails wherever it is made.
    """
    for turn in turns:
        for lane in lanes:
            try:
                maker.group_patches(turn, lane, skip if turn == turns.start else 0)
            except StoreError:
                return  # a store that is away comes back, perhaps: the workers are started again
            except ValueError as error:
                raise StreamError(str(error)) from None


def interleave(blocks: Iterator[dict[str, np.ndarray]], lanes: int, skip: int) -> Iterator[Batch]:
    """Step by step through `lanes` groups at a time, each giving its next patch; the first turn starts at skip."""
    while turn := list(islice(blocks, lanes)):
        for i in range(skip, len(turn[0]["row"])):
            yield Batch(*(np.stack([block[name][i] for block in turn]) for name in Batch._fields))
        skip = 0
