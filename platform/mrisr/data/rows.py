"""Rows of the stream: the order of volumes, the seeds of their randomness, and the patches made from them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrisr.augmentation import Augmentation, Orientation
from mrisr.data.patches import Corner, bounding_region, copy_overlaps, sample_corners
from mrisr.degradation import DegradationRange, degrader
from voxelstore import StoreError, VolumeStore
from voxelstore.manifest import MANIFEST

# Patches travel as float16: a rounding error of at most 2^-11 of the value. A value above 65504 is an error.
WIRE_DTYPE = np.float16
NO_AUGMENTATION = Augmentation()
# Voxels of one part where slices are independent: 1.3 MB of float32.
PART_VOXELS = 5 * 2**16


@dataclass(frozen=True)
class Row:
    """One volume, degraded once. `index` is its position in the endless sequence of rows."""

    index: int
    epoch: int
    subject: str


@dataclass(frozen=True)
class RowPlan:
    """The endless, seeded sequence of rows. subjects: in any order; seed: the experiment's."""

    subjects: tuple[str, ...]
    seed: int
    patches_per_row: int
    rows_per_group: int
    lanes: int

    @property
    def group_size(self) -> int:
        """Patches per group, equal to the number of steps that use the group."""
        return self.patches_per_row * self.rows_per_group

    def row(self, index: int) -> Row:
        epoch, place = divmod(index, len(self.subjects))
        return Row(index, epoch, sorted(self.subjects)[_permutation(self.seed, epoch, len(self.subjects))[place]])

    def epoch_rows(self, epoch: int) -> list[Row]:
        n = len(self.subjects)
        return [self.row(i) for i in range(epoch * n, (epoch + 1) * n)]

    def group(self, turn: int, lane: int) -> list[Row]:
        """The rows of a lane's group number `turn`, for steps turn*group_size ... (turn+1)*group_size - 1."""
        first = (turn * self.lanes + lane) * self.rows_per_group
        return [self.row(first + i) for i in range(self.rows_per_group)]

    def order(self, turn: int, lane: int) -> np.ndarray:
        """Seeded permutation of a group's patches: (group_size,) indices into its rows' patches, row after row."""
        return np.random.default_rng([self.seed, 1, turn, lane]).permutation(self.group_size)

    def row_seed(self, row: Row) -> list[int]:
        """The seed of all randomness of a row. It uses the subject's name, so new subjects change no other draws."""
        name = int.from_bytes(hashlib.sha256(row.subject.encode()).digest()[:8], "little")
        return [self.seed, 2, row.epoch, name]

    def augmentation_rng(self, row: Row) -> np.random.Generator:
        """A generator of its own: augmentation changes no other draw of the row."""
        return np.random.default_rng([*self.row_seed(row), 5])

    def row_rng(self, row: Row) -> np.random.Generator:
        return np.random.default_rng(self.row_seed(row))


@lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch]).permutation(n)


class PreparedRow(NamedTuple):
    """A row whose degradation parameters and patch positions are drawn.

    parts: the normalised high-resolution voxels that its patches need, each with the number of its first slice along
    `axis`. degrade: high to low resolution, for one part. corners: of the K patches, relative to the start of the
    parts. orientations: of the K patches; None without exchanged or mirrored axes.
    """

    parts: Iterable[tuple[int, np.ndarray]]
    degrade: Callable[[np.ndarray], np.ndarray]
    corners: list[Corner]
    axis: int
    orientations: list[Orientation] | None


@dataclass(frozen=True)
class PatchMaker:
    """Makes patches from rows inside Ray tasks: reads a volume, degrades it, and cuts patches with foreground.

    dataset: the fingerprint of the store that the run began with. A row of another store raises StoreError.
    """

    store: Path
    plan: RowPlan
    degradation: DegradationRange
    patch_size: int
    min_foreground: float
    augmentation: Augmentation = NO_AUGMENTATION
    dataset: str | None = None

    def row_patches(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        """(lr, hr), each (K, P, P, P) float16, of one row. Raises ValueError like `write_row`."""
        lr, hr = (np.empty((self.plan.patches_per_row, *(self.patch_size,) * 3), WIRE_DTYPE) for _ in range(2))
        self.write_row(row, (list(lr), list(hr)))
        return lr, hr

    def prepare(self, row: Row) -> PreparedRow:
        """Draw the degradation and the patch positions of a row. Iterating the parts reads its voxels.

        Along an axis with independent slices, only the slices that patches need are read, a few at a time.
        """
        store = cached_store(str(self.store))
        if self.dataset not in (None, store.fingerprint()):
            raise StoreError(f"data.store = {self.store}: its subjects or splits have changed since the run began")
        rng = self.plan.row_rng(row)
        degradation = self.degradation.sample(rng)
        record = store.record(row.subject)
        corners = sample_corners(
            store.foreground(row.subject), record.mask_block, record.shape, self.patch_size,
            self.plan.patches_per_row, self.min_foreground, rng,
        )  # fmt: skip
        free = degradation.independent_axes
        region, corners = bounding_region(corners, self.patch_size, record.shape, free)
        axis, voxels = (free[0], PART_VOXELS) if free else (0, None)
        parts = store.normalised_parts(row.subject, region, axis, voxels)
        apply = degrader(record.shape, degradation, no_signal=record.intensity.no_signal)
        rng, start = self.plan.augmentation_rng(row), [side.start for side in region]
        contrast, orientations = self.augmentation.contrast(rng), None
        if self.augmentation.mirror or self.augmentation.exchange:
            orientations = [self.augmentation.orientation(rng) for _ in corners]

        def changed() -> Iterator[tuple[int, np.ndarray]]:
            for first, part in parts:
                start[axis] = first
                yield first - region[axis].start, contrast.apply(part, record.shape, tuple(start))

        return PreparedRow(changed(), apply, corners, axis, orientations)

    def write_row(self, row: Row, cubes: tuple[Sequence[np.ndarray], Sequence[np.ndarray]]) -> None:
        """Write a row's patches into K arrays of lr and of hr, (P, P, P) float16. Raises ValueError on overflow."""
        prepared = self.prepare(row)
        for first, hr in prepared.parts:
            lr = prepared.degrade(hr)
            with np.errstate(over="ignore"):  # checked below, with the subject's name
                for side, part in zip(cubes, (lr, hr), strict=True):
                    copy_overlaps(side, prepared.corners, part, prepared.axis, first)
        for index, orientation in enumerate(prepared.orientations or ()):
            for side in cubes:
                side[index][...] = orientation.apply(side[index]).copy()
        if any(map(_overflowed, (*cubes[0], *cubes[1]))):
            raise ValueError(_beyond_range(cached_store(str(self.store)), row.subject))

    def group_patches(self, turn: int, lane: int, skip: int = 0) -> dict[str, np.ndarray]:
        """One group in its interleaved order: lr, hr (R*K, 1, P, P, P) float16; row, patch (R*K,) int64 for replay.

        skip: number of patches already consumed. Rows that only those patches need are not read.
        """
        plan, k = self.plan, self.plan.patches_per_row
        order = plan.order(turn, lane)
        rows = plan.group(turn, lane)
        shape = (plan.group_size, self.patch_size, self.patch_size, self.patch_size)
        lr, hr = np.zeros(shape, WIRE_DTYPE), np.zeros(shape, WIRE_DTYPE)
        for i, row in enumerate(rows):
            places = np.flatnonzero(order // k == i)
            if (places >= skip).any():
                places = places[np.argsort(order[places])]
                self.write_row(row, ([lr[place] for place in places], [hr[place] for place in places]))
        index = np.array([row.index for row in rows], dtype=np.int64)[order // k]
        return {"lr": lr[:, None], "hr": hr[:, None], "row": index, "patch": order % k}

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (turn,), (lane,), (skip,) = batch["turn"], batch["lane"], batch["skip"]
        return self.group_patches(int(turn), int(lane), int(skip))


def _overflowed(patch: np.ndarray) -> bool:
    """Whether a float16 patch holds an infinity. The test of bit patterns is 25 times as fast as isinf."""
    infinity = np.float16(np.inf).view(np.int16), np.float16(-np.inf).view(np.uint16)
    suspect = patch.view(np.int16).max() >= infinity[0] or patch.view(np.uint16).max() >= infinity[1]
    return bool(suspect and np.isinf(patch).any())


def cached_store(path: str) -> VolumeStore:
    """The store at `path`, opened once per process and again if its manifest changes: Ray reuses processes."""
    try:
        found = os.stat(os.path.join(path, MANIFEST))
    except OSError:
        return VolumeStore.open(path)  # raises an error that says what is missing
    return _opened(path, (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


@lru_cache(maxsize=4)
def _opened(path: str, version: tuple[int, ...]) -> VolumeStore:
    return VolumeStore.open(path)


def _beyond_range(store: VolumeStore, subject: str) -> str:
    record, limit = store.record(subject), float(np.finfo(WIRE_DTYPE).max)
    volume = store.read_normalised(subject)
    value = float(volume.flat[int(np.argmax(np.abs(volume)))])
    low, high = record.intensity.low, record.intensity.high
    return (
        f"{store.path}: {subject} reaches {value:.4g} in normalised intensity, and patches are float16, which holds "
        f"{limit:g} at most; its robust range is {low:g} to {high:g}, from {record.source}. Correct that file (a hot "
        "voxel, or a range of next to nothing) and convert it again, or take it out of the store"
    )
