"""Where one row of the stream spends its time on one core, and what each saving is worth.

    taskset -c 0 python ci/profile_stream.py [--folder bench]

A volume of 256x320x320 int16 (a synthetic head), 16 patches of 64^3, truncate with f = 0.5. Best of three, files in the
page cache. The plain variants compute the same numbers without the saving; the largest difference stands beside them.
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

from mrisr.degradation import Degradation, apply_weight, degrade, spectral_weight
from mrisr.degradation.applying import SLAB_VOXELS
from mrisr.patches import cut, sample_corners
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
    """The transform of the whole volume at once, all columns, as the definition has it."""
    spectrum = fft.rfftn(hr, axes=d.transform_axes) * spectral_weight(hr.shape, d)
    return fft.irfftn(spectrum, s=[hr.shape[a] for a in d.transform_axes], axes=d.transform_axes)


def slabs(hr: np.ndarray, d: Degradation) -> np.ndarray:
    """Slab by slab along the first axis, all columns."""
    step = max(1, SLAB_VOXELS // hr[0].size)
    return np.concatenate([whole(hr[i : i + step], d) for i in range(0, len(hr), step)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("bench"), help="where the volumes are made")
    make_data(folder := parser.parse_args().folder.absolute())
    store = VolumeStore.open(folder / "store.zarr")
    subject = store.subjects()[0]
    record = store.record(subject)
    rng = np.random.default_rng(0)
    in_plane = Degradation("truncate", (1, 2), 0.5)
    rows: list[tuple[str, float, float | None]] = []

    seconds, physical = best(lambda: store.read(subject))
    rows.append(("read, decode, to float32", seconds, None))
    seconds, hr = best(lambda: store.read_normalised(subject))
    rows.append(("read, decode, normalise in one pass", seconds, None))
    rows.append(("to normalise alone, after a plain read", best(lambda: record.intensity.normalise(physical))[0], None))
    plain, reference = best(lambda: whole(hr, in_plane))
    rows.append(("transform: whole volume", plain, 0.0))
    for name, work in (("slab by slab", slabs), ("slab by slab, kept columns only: degrade()", degrade)):
        seconds, lr = best(lambda work=work: work(hr, in_plane))  # type: ignore[misc]
        rows.append((f"transform: {name}", seconds, float(np.abs(lr - reference).max())))
    for name, d in (
        ("f = 0.8", Degradation("truncate", (1, 2), 0.8)),
        ("box, f = 0.5", Degradation("box", (1, 2), 0.5)),
        ("three axes, f = 0.5", Degradation("truncate", (0, 1, 2), 0.5)),
        ("with noise", in_plane._replace(noise=0.02, noise_seed=0)),
    ):
        rows.append((f"degrade(): {name}", best(lambda d=d: degrade(hr, d))[0], None))  # type: ignore[misc]
    matrix = np.eye(hr.shape[2], dtype=np.float32)
    rows.append(("a matrix product along one axis instead", best(lambda: hr @ matrix)[0], None))
    mask = store.foreground(subject)
    seconds, corners = best(lambda: sample_corners(mask, record.mask_block, record.shape, PATCH, PER_VOLUME, 0.3, rng))
    rows.append(("draw corners", seconds, None))
    lr = apply_weight(hr, spectral_weight(hr.shape, in_plane), in_plane.transform_axes)

    def cut_all() -> np.ndarray:
        pair = np.empty((2, PER_VOLUME, PATCH, PATCH, PATCH), np.float16)
        for patches, volume in zip(pair, (lr, hr), strict=True):
            for i, corner in enumerate(corners):
                patches[i] = cut(volume, corner, PATCH)
        return pair

    rows.append(("cut 16 pairs, to float16", best(cut_all)[0], None))
    table = Table("step", "seconds", "largest difference")
    for name, seconds, difference in rows:
        table.add_row(name, f"{seconds:.3f}", "" if difference is None else f"{difference:.1g}")
    Console(width=100, highlight=False).print(table)


if __name__ == "__main__":
    main()
