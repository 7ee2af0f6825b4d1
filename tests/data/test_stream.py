"""The stream is exact: the same patches for any number of workers, at any resumption, whatever Ray does."""

from __future__ import annotations

import hashlib
import os
import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import RayTaskError, UserCodeException

from mrisr import cluster
from mrisr.data import stream
from mrisr.data.rows import PatchMaker, Row, RowPlan
from mrisr.data.stream import Batch, StreamError, StreamLimits, interleave, rank_batches, rank_lanes
from mrisr.degradation import Degradation, DegradationRange, degrade
from voxelstore import VolumeStore

LIMITS = StreamLimits(cpus_per_task=1.0, cpus=2.0, rounds=1)
RANGE = DegradationRange("truncate", fraction=(0.3, 0.7))


def make(store: Path, lanes: int = 6, seed: int = 3, per_row: int = 3, rows: int = 2) -> PatchMaker:
    subjects = tuple(VolumeStore.open(store).subjects("train"))
    return PatchMaker(store, RowPlan(subjects, seed, per_row, rows, lanes), RANGE, 16, 0.3)


def local_batches(maker: PatchMaker, rank: int, world: int, start: int, steps: int) -> list[Batch]:
    """What `rank_batches` promises, computed without Ray, group by group."""
    lanes = rank_lanes(maker.plan.lanes, rank, world)
    first, skip = divmod(start, maker.plan.group_size)
    turns = range(first, first + steps // maker.plan.group_size + 2)
    blocks = (maker.group_patches(t, lane, skip if t == first else 0) for t in turns for lane in lanes)
    return list(islice(interleave(blocks, len(lanes), skip), steps))


def digests(batches: list[Batch]) -> list[list[str]]:
    """One digest per patch pair, step by step."""
    return [
        [hashlib.sha256(lr.tobytes() + hr.tobytes()).hexdigest() for lr, hr in zip(b.lr, b.hr, strict=True)]
        for b in batches
    ]


def test_every_step_is_the_same_for_1_2_and_3_workers(small_store: Path) -> None:
    maker = make(small_store)
    whole = digests(local_batches(maker, 0, 1, 0, 14))
    for world in (2, 3):
        ranks = [digests(local_batches(maker, r, world, 0, 14)) for r in range(world)]
        assert [[digest for rank in ranks for digest in rank[i]] for i in range(14)] == whole


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("world", "start"), [(1, 0), (2, 0), (2, 4), (3, 7)])
def test_ray_delivers_exactly_the_planned_batches(small_store: Path, world: int, start: int) -> None:
    maker = make(small_store)
    for rank in range(world):
        got = list(rank_batches(maker, rank, world, start, start + 9, LIMITS))
        expected = local_batches(maker, rank, world, start, 9)
        for g, e in zip(got, expected, strict=True):
            for name in Batch._fields:
                np.testing.assert_array_equal(getattr(g, name), getattr(e, name))


class EnvironmentTeller(PatchMaker):
    """Tells, instead of patches, what glibc was told in its process."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"told": np.array([os.environ.get("GLIBC_TUNABLES", "")])}


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_a_worker_keeps_its_memory_and_its_data_tasks_do_not(small_store: Path) -> None:
    """The settings of glibc that make a training step faster are no use in other processes, and cost memory there."""
    maker = make(small_store)
    teller = EnvironmentTeller(maker.store, maker.plan, RANGE, 16, 0.3)

    def told() -> tuple[str, str]:
        (row,) = stream.group_dataset(teller, [0], range(1), 0, LIMITS).take_all()
        return os.environ.get("GLIBC_TUNABLES", ""), row["told"]

    options = {"num_cpus": 0, "runtime_env": {"env_vars": cluster.worker_environment(gpu=False)}}
    worker, task = ray.get(ray.remote(told).options(**options).remote())
    assert "arena_max=1" in worker
    assert task == ""
    assert not any(key.startswith("MALLOC_") for key in cluster.ENVIRONMENT)


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_rounds_join_without_a_seam_and_closing_early_is_clean(small_store: Path) -> None:
    maker = make(small_store)
    expected = digests(local_batches(maker, 0, 3, 0, 20))
    for rounds in (1, 3):
        stream = rank_batches(maker, 0, 3, 0, 20, LIMITS._replace(rounds=rounds))
        assert digests(list(islice(stream, 17))) == expected[:17]
        stream.close()
    assert digests(list(rank_batches(maker, 0, 3, 0, 20, LIMITS))) == expected


class Failed:
    """A dataset whose task has failed, with what Ray Data makes of any error of its task."""

    def iter_batches(self, **options: object) -> None:
        cause = UserCodeException("UDF failed to process a data block.")
        raise RayTaskError("MapBatches", "a traceback as text", cause, proctitle="ray::MapBatches", pid=1, ip="::1")


def test_a_row_that_cannot_be_made_is_told_from_a_task_that_failed(
    small_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of the row itself, without Ray's about its task; Ray's for a row that can be made."""
    maker = make(small_store)
    monkeypatch.setattr(stream, "group_dataset", lambda *arguments: Failed())
    with pytest.raises(RayTaskError):
        next(rank_batches(maker, 0, 3, 0, 9, LIMITS))
    original, broken = PatchMaker.write_row, maker.plan.group(0, 1)[1].subject

    def write_row(self: PatchMaker, row: Row, *rest: Any) -> None:
        if row.subject == broken:
            raise ValueError(f"{broken} reaches 7e4; mend that file")
        original(self, row, *rest)

    monkeypatch.setattr(PatchMaker, "write_row", write_row)
    with pytest.raises(StreamError, match=f"^{broken} reaches 7e4; mend that file$"):
        next(rank_batches(maker, 0, 3, 0, 9, LIMITS))


def test_resuming_after_k_steps_yields_exactly_the_rest_and_reads_nothing_consumed(
    small_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = make(small_store)
    whole = digests(local_batches(maker, 0, 1, 0, 16))
    for k in (1, 5, 6, 11):
        assert digests(local_batches(maker, 0, 1, k, 16 - k)) == whole[k:]
    # Row r of a lane is done when all of its patches came before the start.
    read: list[int] = []
    original = PatchMaker.write_row
    monkeypatch.setattr(
        PatchMaker, "write_row", lambda self, row, *rest: read.append(row.index) or original(self, row, *rest)
    )
    rows = maker.plan.order(0, 0) // maker.plan.patches_per_row
    done = next(row for row in rows if row != rows[-1])
    skip = 1 + int(max(np.flatnonzero(rows == done)))
    assert 0 < skip < maker.plan.group_size, "inside the group"
    maker.group_patches(0, 0, skip)
    assert read == [row.index for i, row in enumerate(maker.plan.group(0, 0)) if i != done]
    read.clear()
    maker.group_patches(0, 0, maker.plan.group_size)
    assert not read


def test_every_subject_comes_once_an_epoch_with_other_randomness(small_store: Path) -> None:
    maker = make(small_store)
    epochs = [maker.plan.epoch_rows(e) for e in range(3)]
    for rows in epochs:
        assert sorted(row.subject for row in rows) == sorted(maker.plan.subjects)
    assert len({tuple(row.subject for row in rows) for rows in [maker.plan.epoch_rows(e) for e in range(12)]}) > 1
    first = {row.subject: maker.row_patches(row) for row in epochs[0]}
    second = {row.subject: maker.row_patches(row) for row in epochs[1]}
    for subject, (lr, hr) in first.items():
        assert not np.array_equal(lr, second[subject][0])
        assert not np.array_equal(hr, second[subject][1])


def test_a_rows_randomness_does_not_depend_on_the_other_subjects(small_store: Path) -> None:
    maker = make(small_store)
    fewer = RowPlan(maker.plan.subjects[:2], maker.plan.seed, 3, 2, 6)
    for row in fewer.epoch_rows(0):
        draws = maker.plan.row_rng(row).random(5), fewer.row_rng(row).random(5)
        np.testing.assert_array_equal(*draws)


def test_patches_are_cut_from_the_degraded_whole_volume(small_store: Path) -> None:
    """Independent recomputation: the patch must be found in the volume that was degraded as a whole."""
    maker = make(small_store)
    store = VolumeStore.open(small_store)
    row = maker.plan.row(0)
    lr, hr = maker.row_patches(row)
    volume = store.read_normalised(row.subject)
    degradation = RANGE.sample(maker.plan.row_rng(row))
    assert isinstance(degradation, Degradation)
    degraded = degrade(volume, degradation)
    windows = np.lib.stride_tricks.sliding_window_view(volume.astype(np.float16), (16, 16, 16))
    for low, high in zip(lr, hr, strict=True):
        places = np.argwhere((windows[..., 8, 8, 8] == high[8, 8, 8]) & (windows[..., 3, 5, 7] == high[3, 5, 7]))
        places = [p for p in places if np.array_equal(windows[tuple(p)], high)]
        assert places
        d, h, w = places[0]
        assert np.abs(degraded[d : d + 16, h : h + 16, w : w + 16] - low).max() < 1e-3


def test_batches_mix_volumes(small_store: Path) -> None:
    batches = local_batches(make(small_store), 0, 1, 0, 12)
    assert np.mean([len(set(b.row.tolist())) for b in batches]) > 3


def test_the_wire_format_is_exact_enough(small_store: Path) -> None:
    """float16 keeps normalised intensities to 1/1000 of their range, far below any figure that is reported."""
    store = VolumeStore.open(small_store)
    volume = store.read_normalised(store.subjects()[0])
    error = np.abs(volume.astype(np.float16).astype(np.float32) - volume)
    assert error.max() <= 2**-11 * max(1.0, float(volume.max()))
    assert 10 * np.log10(1.0 / np.square(error).mean()) > 70


def test_global_random_state_is_untouched(small_store: Path) -> None:
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    local_batches(make(small_store), 0, 1, 0, 3)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_lanes_that_do_not_divide_are_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"training\.batch_size = 4 does not divide among 3 workers; use a multiple of 3"
    ):
        rank_lanes(4, 0, 3)
