"""Where one row of the stream spends its time on one core, and what each saving is worth.

    taskset -c 0 python ci/profile_stream.py [--folder bench]

A volume of 256x320x320 int16 (a synthetic head), 16 patches of 64^3, truncate with f = 0.5. Best of three, files in the
page cache. The plain variants compute the same numbers without the saving; the table has the largest difference.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from bench_stream import PATCH, PER_VOLUME, make_data
from rich.console import Console
from rich.table import Table
from scipy import fft

import mrisr.data.rows
from mrisr.data.patches import copy_overlaps, sample_corners
from mrisr.data.rows import PatchMaker, RowPlan
from mrisr.degradation import Degradation, DegradationRange, applying, degrade, spectral_weight
from mrisr.tools.bench_stream import Stopwatch, plain_patches
from voxelstore import VolumeStore

T = TypeVar("T")


def best(work: Callable[[], T], repeats: int = 3) -> tuple[float, T]:
    """(seconds of the fastest of `repeats` runs, the result)."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def whole(hr: np.ndarray, d: Degradation) -> np.ndarray:
    """The transform of the whole volume at once, all columns, as defined."""
    spectrum = fft.rfftn(hr, axes=d.transform_axes) * spectral_weight(hr.shape, d)
    return fft.irfftn(spectrum, s=[hr.shape[a] for a in d.transform_axes], axes=d.transform_axes)


def slabs(hr: np.ndarray, d: Degradation) -> np.ndarray:
    """Slab by slab along the first axis, all columns."""
    step = max(1, applying.SLAB_VOXELS // hr[0].size)
    return np.concatenate([whole(hr[i : i + step], d) for i in range(0, len(hr), step)])


def by_parts(store: VolumeStore, subject: str) -> None:
    """The whole volume, normalised, PART_VOXELS at a time."""
    for _ in store.normalised_parts(subject, (slice(None),) * 3, 0, mrisr.data.rows.PART_VOXELS):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("bench"), help="where the volumes are made")
    make_data(folder := parser.parse_args().folder.absolute())
    store = VolumeStore.open(folder / "store.zarr")
    subject = store.subjects()[0]
    record = store.record(subject)
    rng = np.random.default_rng(0)
    in_plane = Degradation("truncate", (1, 2), 0.5)
    plan = RowPlan((subject,), 0, PER_VOLUME, 2, 1)
    maker = PatchMaker(store.path, plan, DegradationRange("truncate"), PATCH, 0.3)
    rows: list[tuple[str, float, float | None]] = []

    def timed(name: str, work: Callable[[], T], reference: np.ndarray | None = None) -> T:
        seconds, result = best(work)
        difference = None if reference is None else float(np.abs(np.asarray(result) - reference).max())
        rows.append((name, seconds, difference))
        return result

    physical = timed("read, decode, to float32", lambda: store.read(subject))
    hr = timed("read, decode, normalise in one pass", lambda: store.read_normalised(subject))
    timed("the same in small parts, one layer of blocks in memory", lambda: by_parts(store, subject))
    timed("to normalise alone, after a plain read", lambda: record.intensity.normalise(physical))
    plain = timed("transform: whole volume", lambda: whole(hr, in_plane))
    timed("transform: slab by slab", lambda: slabs(hr, in_plane), plain)
    timed("transform: slab by slab, kept columns only: degrade()", lambda: degrade(hr, in_plane), plain)
    for name, d in (
        ("f = 0.3", Degradation("truncate", (1, 2), 0.3)),
        ("f = 0.8", Degradation("truncate", (1, 2), 0.8)),
        ("box, f = 0.5", Degradation("box", (1, 2), 0.5)),
        ("three axes, f = 0.5", Degradation("truncate", (0, 1, 2), 0.5)),
        ("with noise", in_plane._replace(noise=0.02, noise_seed=0)),
    ):
        timed(f"degrade(): {name}", lambda d=d: degrade(hr, d))  # type: ignore[misc]
    matrix = np.eye(hr.shape[2], dtype=np.float32)
    timed("a matrix product along one axis instead", lambda: hr @ matrix)
    mask = store.foreground(subject)
    corners = timed(
        "draw corners",
        lambda: sample_corners(mask, record.mask_block, record.shape, PATCH, PER_VOLUME, 0.3, rng),
    )
    cubes = np.empty((2, PER_VOLUME, PATCH, PATCH, PATCH), np.float16)

    def cut_all() -> None:
        for target in cubes:
            copy_overlaps(target, corners, hr, 0, 0)

    timed("cut 16 pairs, to float16", cut_all)
    timed("one row: whole volume, full transform, float32", lambda: plain_patches(maker, plan.row(0), Stopwatch()))
    timed("one row: as the stream makes it, part by part", lambda: maker.row_patches(plan.row(0))[0])
    chosen = mrisr.data.rows.PART_VOXELS
    for voxels in (2**17, 2**19, 2**20):
        mrisr.data.rows.PART_VOXELS = applying.SLAB_VOXELS = voxels
        timed(f"the same in parts of {voxels / chosen:.1f} times that size", lambda: maker.row_patches(plan.row(0))[0])
    mrisr.data.rows.PART_VOXELS = applying.SLAB_VOXELS = chosen
    timed("a group of two such rows, interleaved", lambda: maker.group_patches(0, 0))
    table = Table("step", "seconds", "largest difference")
    for name, seconds, difference in rows:
        table.add_row(name, f"{seconds:.3f}", "" if difference is None else f"{difference:.1g}")
    Console(width=100, highlight=False).print(table)


if __name__ == "__main__":
    main()
