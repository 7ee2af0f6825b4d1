"""Rows of the stream: which volume comes when, with what randomness, and the patches that are made of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from mrisr.data.patches import copy_overlaps, sample_corners, spanned
from mrisr.degradation import DegradationRange, degrader
from voxelstore import VolumeStore
from voxelstore.manifest import MANIFEST

# Patches travel from the data tasks to the workers as float16. On normalised intensities in [0, 2) the rounding error
# is at most 2^-11 of the value (4.9e-4 at 1, below 1/1000 of the intensity range), about 75 dB below a unit range. What
# is beyond its range, 65504 times the subject's own, is an error and never an infinity.
WIRE_DTYPE = np.float16
# Voxels that go from the store to the patches at a time, where slices are independent: 1.3 MB of float32.
PART_VOXELS = 5 * 2**16


@dataclass(frozen=True)
class Row:
    """One volume, degraded once. `index` is its place in the endless sequence of rows."""

    index: int
    epoch: int
    subject: str


@dataclass(frozen=True)
class RowPlan:
    """The endless, seeded sequence of rows over a fixed list of subjects.

    subjects: names, in any order (sorted inside); seed: the experiment's.
    """

    subjects: tuple[str, ...]
    seed: int
    patches_per_row: int
    rows_per_group: int
    lanes: int

    @property
    def group_size(self) -> int:
        """Patches per group, which is the number of steps a group lasts."""
        return self.patches_per_row * self.rows_per_group

    def row(self, index: int) -> Row:
        epoch, place = divmod(index, len(self.subjects))
        return Row(index, epoch, sorted(self.subjects)[_permutation(self.seed, epoch, len(self.subjects))[place]])

    def epoch_rows(self, epoch: int) -> list[Row]:
        n = len(self.subjects)
        return [self.row(i) for i in range(epoch * n, (epoch + 1) * n)]

    def group(self, turn: int, lane: int) -> list[Row]:
        """The rows of a lane's group number `turn`, which feeds steps turn*group_size ... (turn+1)*group_size - 1."""
        first = (turn * self.lanes + lane) * self.rows_per_group
        return [self.row(first + i) for i in range(self.rows_per_group)]

    def order(self, turn: int, lane: int) -> np.ndarray:
        """Seeded interleave of a group's patches: (group_size,) indices into its rows' patches, row after row."""
        return np.random.default_rng([self.seed, 1, turn, lane]).permutation(self.group_size)

    def row_seed(self, row: Row) -> list[int]:
        """The seed of all randomness of a row; the subject enters by name, so that adding subjects changes no other's
        draws."""
        name = int.from_bytes(hashlib.sha256(row.subject.encode()).digest()[:8], "little")
        return [self.seed, 2, row.epoch, name]

    def row_rng(self, row: Row) -> np.random.Generator:
        return np.random.default_rng(self.row_seed(row))


@lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch]).permutation(n)


@dataclass(frozen=True)
class PatchMaker:
    """Rows to patches: reads a volume, degrades all of it, cuts where there is foreground. Runs inside Ray tasks."""

    store: Path
    plan: RowPlan
    degradation: DegradationRange
    patch_size: int
    min_foreground: float

    def row_patches(self, row: Row, mark: Callable[[str], None] = lambda stage: None) -> tuple[np.ndarray, np.ndarray]:
        """(lr, hr), each (K, P, P, P) float16, of one row; mark and errors as in `write_row`."""
        lr, hr = (np.empty((self.plan.patches_per_row, *(self.patch_size,) * 3), WIRE_DTYPE) for _ in range(2))
        self.write_row(row, (list(lr), list(hr)), mark)
        return lr, hr

    def write_row(
        self, row: Row, cubes: tuple[Sequence[np.ndarray], Sequence[np.ndarray]], mark: Callable[[str], None]
    ) -> None:
        """Write the patches of one row into the K arrays of each side, lr and hr, each (P, P, P) float16.

        Along an axis on which the degradation treats every slice by itself only the slices that patches need are read,
        and a few at a time go all the way from the store to the patches: what is in work then stays in a core's cache.
        mark: called after each stage, "draw", "read", "transform" and "cut", by who measures.
        Raises ValueError for a patch that float16 cannot hold.
        """
        store = open_store(str(self.store))
        rng = self.plan.row_rng(row)
        degradation = self.degradation.sample(rng)
        record = store.record(row.subject)
        corners = sample_corners(
            store.foreground(row.subject), record.mask_block, record.shape, self.patch_size,
            self.plan.patches_per_row, self.min_foreground, rng,
        )  # fmt: skip
        free = degradation.independent_axes
        region, corners = spanned(corners, self.patch_size, record.shape, free)
        apply = degrader(record.shape, degradation, no_signal=record.intensity.no_signal)
        axis = free[0] if free else 0
        mark("draw")
        voxels = PART_VOXELS if free else None
        for first, hr in store.normalised_parts(row.subject, region, axis, voxels):
            mark("read")
            lr = apply(hr)
            mark("transform")
            with np.errstate(over="ignore"):  # told below, with the subject's name
                for side, part in zip(cubes, (lr, hr), strict=True):
                    copy_overlaps(side, corners, part, axis, first - region[axis].start)
            mark("cut")
        if any(map(_overflowed, (*cubes[0], *cubes[1]))):
            raise ValueError(_beyond_range(store, row.subject))
        mark("cut")

    def group_patches(
        self, turn: int, lane: int, skip: int = 0, mark: Callable[[str], None] = lambda stage: None
    ) -> dict[str, np.ndarray]:
        """One group in its interleaved order: lr, hr (R*K, 1, P, P, P) float16; row, patch (R*K,) int64 for replay.

        skip: patches of the group that were consumed before; rows needed by none of the others are not read.
        mark: called after each stage, those of `write_row` and "mix", which finds a row's patches their places.
        """
        plan, k = self.plan, self.plan.patches_per_row
        order = plan.order(turn, lane)
        rows = plan.group(turn, lane)
        shape = (plan.group_size, self.patch_size, self.patch_size, self.patch_size)
        lr, hr = np.zeros(shape, WIRE_DTYPE), np.zeros(shape, WIRE_DTYPE)
        mark("mix")
        for i, row in enumerate(rows):
            places = np.flatnonzero(order // k == i)
            if (places >= skip).any():
                places = places[np.argsort(order[places])]
                mark("mix")
                self.write_row(row, ([lr[place] for place in places], [hr[place] for place in places]), mark)
        index = np.array([row.index for row in rows], dtype=np.int64)[order // k]
        return {"lr": lr[:, None], "hr": hr[:, None], "row": index, "patch": order % k}

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (turn,), (lane,), (skip,) = batch["turn"], batch["lane"], batch["skip"]
        return self.group_patches(int(turn), int(lane), int(skip))


def _overflowed(patch: np.ndarray) -> bool:
    """Whether a float16 of it is infinite. Of its sign, only what is no number has larger bits than infinity, and numpy
    finds the largest integer 25 times as fast as it looks for infinities."""
    infinity = np.float16(np.inf).view(np.int16), np.float16(-np.inf).view(np.uint16)
    suspect = patch.view(np.int16).max() >= infinity[0] or patch.view(np.uint16).max() >= infinity[1]
    return bool(suspect and np.isinf(patch).any())


def open_store(path: str) -> VolumeStore:
    """The store at `path`, opened once in each process for as long as its manifest is the same file.

    A data task's process outlives runs: a store that has been converted further since must not be seen as it was.
    """
    try:
        found = os.stat(os.path.join(path, MANIFEST))
    except OSError:
        return VolumeStore.open(path)  # which says what is missing
    return _opened(path, (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


@lru_cache(maxsize=4)
def _opened(path: str, version: tuple[int, ...]) -> VolumeStore:
    return VolumeStore.open(path)


def _beyond_range(store: VolumeStore, subject: str) -> str:
    """What is wrong with a subject whose patches overflow float16."""
    record, limit = store.record(subject), float(np.finfo(WIRE_DTYPE).max)
    volume = store.read_normalised(subject)
    value = float(volume.flat[int(np.argmax(np.abs(volume)))])
    low, high = record.intensity.low, record.intensity.high
    return (
        f"{store.path}: {subject} reaches {value:.4g} in normalised intensity, and patches are float16, which holds "
        f"{limit:g} at most; its robust range is {low:g} to {high:g}, from {record.source}. Mend that file (a hot "
        "voxel, or a range of next to nothing) and convert it again, or take it out of the store"
    )
