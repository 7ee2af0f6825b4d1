"""The cost of chunks, shards and codecs: time and bytes of whole reads and slab reads.

    PYTHONPATH=storage python ci/bench_storage.py [VOLUME.nii.gz]

Without a file, a synthetic head of 256x320x320 int16 voxels is measured: smooth tissue with fine detail, 2 %
noise inside, and scanner noise outside. Every figure is the median of five reads of a freshly opened array,
files in the page cache.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from voxelstore import read_volume
from voxelstore.subject import write_array

SHAPE = (256, 320, 320)
SLAB = 16
CODECS: dict[str, list[Any]] = {
    "none": [],
    "blosc lz4": [BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")],
    "blosc zstd 1": [BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")],
    "blosc zstd 3": [BloscCodec(cname="zstd", clevel=3, shuffle="shuffle")],
    "zstd 3": [ZstdCodec(level=3)],
    "blosc zstd 1 + crc32c": [BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"), Crc32cCodec()],
}
LAYOUTS: dict[str, tuple[tuple[int, int, int], bool]] = {
    "32^3, one shard": ((32, 32, 32), True),
    "64^3, one shard": ((64, 64, 64), True),
    "64^3, 80 files": ((64, 64, 64), False),
    "128^3, one shard": ((128, 128, 128), True),
    "16x320x320, one shard": ((16, 320, 320), True),
    "whole": ((256, 320, 320), False),
}


CHOSEN = "64^3, one shard", "blosc zstd 1 + crc32c"  # what voxelstore.subject.write_array does


def synthetic_head(seed: int = 0) -> np.ndarray:
    """(256, 320, 320) int16, a bright ellipsoid with structure at several scales in a noisy background."""
    rng = np.random.default_rng(seed)
    tissue = np.zeros(SHAPE, np.float32)
    for edge in (8, 24, 80):
        coarse = rng.standard_normal((edge, edge, edge), dtype=np.float32)
        tissue += ndimage.zoom(coarse, [n / edge for n in SHAPE], order=1)[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE), indexing="ij", sparse=True)
    inside = sum((axis / 0.75) ** 2 for axis in axes) < 1
    noise = rng.standard_normal(SHAPE, dtype=np.float32)
    return np.where(inside, 500 + 120 * tissue + 10 * noise, np.abs(6 * noise)).clip(0, 4095).astype(np.int16)


def measure(
    data: np.ndarray, chunks: tuple[int, int, int], sharded: bool, codecs: list[Any], repeats: int = 5
) -> list[float]:
    """Megabytes, seconds to write, to read the whole, and to read a slab across each axis."""
    folder = Path(tempfile.mkdtemp(prefix="bench-storage-"))
    chunks = (min(chunks[0], data.shape[0]), min(chunks[1], data.shape[1]), min(chunks[2], data.shape[2]))
    shard = tuple(-(-n // c) * c for n, c in zip(data.shape, chunks, strict=True))
    try:
        start = time.perf_counter()
        array = zarr.create_array(
            zarr.storage.LocalStore(folder / "a"),
            shape=data.shape,
            dtype=data.dtype,
            chunks=chunks,
            shards=shard if sharded else None,
            compressors=codecs,
        )
        array[...] = data
        figures = [time.perf_counter() - start]
        regions: list[Any] = [...]
        for axis, length in enumerate(data.shape):
            middle = length // 2 - SLAB // 2
            regions.append(tuple(slice(middle, middle + SLAB) if a == axis else slice(None) for a in range(3)))
        for region in regions:
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                part = zarr.open_array(folder / "a", mode="r")[region]
                times.append(time.perf_counter() - start)
            if not np.array_equal(part, data[region]):
                raise RuntimeError(f"chunks {chunks}, {codecs}: the read differs from what was written")
            figures.append(statistics.median(times))
        megabytes = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
        return [megabytes, *figures]
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Measure every layout with one codec, every codec with one layout, and concurrent readers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("volume", nargs="?", help="a .nii, .nii.gz or .mgz file instead of the synthetic head")
    volume = parser.parse_args().volume
    data = read_volume(volume).voxels if volume else synthetic_head()
    console = Console(width=130)
    table = Table("layout", "codec", "MB", "write s", "whole s", "slab 0 s", "slab 1 s", "slab 2 s")
    rows = [(layout, CHOSEN[1]) for layout in LAYOUTS] + [(CHOSEN[0], codec) for codec in CODECS]
    for layout, codec in dict.fromkeys(rows):
        figures = measure(data, *LAYOUTS[layout], CODECS[codec])
        table.add_row(layout, codec, f"{figures[0]:.1f}", *(f"{value:.3f}" for value in figures[1:]))
    console.print(f"{data.shape} {data.dtype}, {data.nbytes / 1e6:.1f} MB raw", table)
    readers = Table("reading processes", "threads of Zarr in each", "whole volumes per s, in sum")
    for processes in (1, 2):
        for threads in (1, 2, None):
            rate = concurrent_rate(data, processes, threads)
            readers.add_row(str(processes), str(threads or "default"), f"{rate:.1f}")
    console.print(f"{os.cpu_count()} cores, {CHOSEN[0]}, {CHOSEN[1]}", readers)


def concurrent_rate(data: np.ndarray, processes: int, threads: int | None, reads: int = 20) -> float:
    """Whole volumes per second that `processes` readers get together; Zarr's pool is made once per process."""
    with tempfile.TemporaryDirectory(prefix="bench-storage-") as folder:
        write_array(Path(folder, "a"), data)
        context = multiprocessing.get_context("spawn")
        pool = context.Pool(processes, _set_threads, (threads,))
        pool.map(_read, [folder] * processes * 4, chunksize=1)  # start-up and page cache
        start = time.perf_counter()
        pool.map(_read, [folder] * reads, chunksize=1)
        seconds = time.perf_counter() - start
        pool.close()
        pool.join()
        return reads / seconds


def _set_threads(threads: int | None) -> None:
    zarr.config.set({"threading.max_workers": threads})


def _read(folder: str) -> None:
    zarr.open_array(Path(folder, "a"), mode="r")[...]


if __name__ == "__main__":
    main()
