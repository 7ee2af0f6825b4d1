"""The stream against the same work in MONAI and TorchIO: patches per second as ratios, in one run on one machine.

    pip install -c ci/constraints.txt '.[bench]'
    python ci/bench_stream.py [--rows 32] [--cores 2] [--folder bench]

Four volumes of 256x320x320 int16 (synthetic heads), pairs of 64^3, a low-pass with a random strength per volume, 16
patches per volume. Every loader ends with float32 torch tensors and uses `--cores` worker processes; files are in the
page cache. Every clock starts when the processes work: the stream has delivered a few groups (Ray takes seconds to
start a process for every core), the peers as many volumes, and MONAI's cache is filled. The peers read uncompressed
NIfTI and fork their workers. The stream, the loops and TorchIO are measured three times in turns, and the median
counts; MONAI, by far the slowest, once. Two loops without Ray and torch use as many processes: the same rows in plain
numpy and scipy, with whole volumes and full transforms, and the stream's own rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from bench_storage import synthetic_head
from rich.console import Console
from rich.table import Table

from mrisr.cluster import prepare_environment
from mrisr.config import load_experiment
from voxelstore import VolumeStore, read_volume

PATCH, PER_VOLUME = 64, 16
STRENGTH = (0.3, 0.7)
WARM_ROWS = 12
REPEATS = 3


def make_data(folder: Path) -> list[Path]:
    """Four NIfTI files and a store of them in `folder`; existing files are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"sub-{i}.nii" for i in range(4)]
    store = VolumeStore.create(folder / "store.zarr")
    for i, path in enumerate(paths):
        if not path.exists():
            nib.save(nib.Nifti1Image(synthetic_head(i), np.eye(4)), path)
        if f"sub-{i}" not in store.stored_records():
            store.write_subject(f"sub-{i}", read_volume(path))
    store.update_manifest({"train": 1.0}, seed=0)
    return paths


def drain(loader: Iterable[Any], pair: Callable[[Any], tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Patches per second of a loader, from the end of its WARM_ROWS first volumes to the end of the last."""
    warm, seen, start = WARM_ROWS * PER_VOLUME, 0, 0.0
    for batch in loader:
        lr, hr = pair(batch)
        assert lr.shape == hr.shape
        assert lr.shape[-3:] == (PATCH,) * 3
        seen += len(lr)
        if not start and seen >= warm:
            start, warm = time.perf_counter(), seen
    return (seen - warm) / (time.perf_counter() - start)


def monai(paths: list[Path], folder: Path, cores: int, rows: int) -> float:
    """PersistentDataset, LoadImaged, RandGibbsNoised on the whole volume, RandSpatialCropSamplesd, DataLoader."""
    from monai.data import DataLoader, PersistentDataset
    from monai.transforms import (
        Compose,
        EnsureChannelFirstd,
        LoadImaged,
        RandGibbsNoised,
        RandSpatialCropSamplesd,
    )

    def with_lr(item: dict[str, Any]) -> dict[str, Any]:
        # A plain function, unlike CopyItemsd, is not cached, so one volume is cached and not two.
        return {**item, "lr": item["hr"]}

    transform = Compose(
        [
            LoadImaged("hr"),
            EnsureChannelFirstd("hr"),
            with_lr,
            RandGibbsNoised("lr", prob=1.0, alpha=STRENGTH),
            RandSpatialCropSamplesd(["lr", "hr"], roi_size=(PATCH,) * 3, num_samples=PER_VOLUME, random_size=False),
        ]
    )
    items = [{"hr": str(paths[i % len(paths)])} for i in range(rows)]
    dataset = PersistentDataset(items, transform, cache_dir=folder / "monai-hr")
    for i in range(len(paths)):
        dataset[i]
    loader = DataLoader(dataset, batch_size=1, num_workers=cores)
    return drain(loader, lambda batch: (batch["lr"].float(), batch["hr"].float()))


def torchio(paths: list[Path], cores: int, rows: int) -> float:
    """Queue with UniformSampler and an FFT low-pass transform: a random share of both in-plane axes."""
    import torchio as tio

    class LowPass(tio.Transform):
        def apply_transform(self, subject: tio.Subject) -> tio.Subject:
            hr = subject["hr"].data.float()
            fraction = float(torch.empty(1).uniform_(*STRENGTH))
            spectrum = torch.fft.rfftn(hr, dim=(2, 3))
            h = torch.fft.fftfreq(hr.shape[2]).abs() * 2 >= 1 - fraction
            w = torch.fft.rfftfreq(hr.shape[3]).abs() * 2 >= 1 - fraction
            spectrum[:, :, h] = 0
            spectrum[..., w] = 0
            lr = torch.fft.irfftn(spectrum, s=hr.shape[2:], dim=(2, 3))
            subject.add_image(tio.ScalarImage(tensor=lr, affine=subject["hr"].affine), "lr")
            return subject

    subjects = [tio.Subject(hr=tio.ScalarImage(paths[i % len(paths)])) for i in range(rows)]
    queue = tio.Queue(
        tio.SubjectsDataset(subjects, transform=LowPass()),
        max_length=4 * PER_VOLUME,
        samples_per_volume=PER_VOLUME,
        sampler=tio.data.UniformSampler(PATCH),
        num_workers=cores,
        shuffle_subjects=False,
    )
    loader = tio.SubjectsLoader(queue, batch_size=4, num_workers=0)
    return drain(loader, lambda b: (b["lr"]["data"], b["hr"]["data"].float()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32, help="volumes per loader")
    parser.add_argument("--cores", type=int, default=2, help="worker processes")
    parser.add_argument("--folder", type=Path, default=Path("bench"), help="where the volumes are made")
    options = parser.parse_args()
    prepare_environment()
    warnings.simplefilter("ignore")
    console = Console(highlight=False, width=120)
    folder = options.folder.absolute()
    paths = make_data(folder)

    import ray

    from mrisr.tools.bench_stream import Measured, Speed, measure_stream

    overrides = {
        "data.store": folder / "store.zarr",
        "stream.patch_size": PATCH,
        "stream.patches_per_row": PER_VOLUME,
        "degradation.fraction": list(STRENGTH),
    }
    experiment = load_experiment(None, [f"{key}={value}" for key, value in overrides.items()])
    rows = options.rows + WARM_ROWS
    runs: list[Measured] = []
    of_torchio = []
    torch.set_num_threads(1)
    for _ in range(REPEATS):
        ray.init(num_cpus=options.cores, logging_level="ERROR", object_store_memory=2 * 2**30)
        runs.append(measure_stream(experiment, options.rows, options.cores))
        ray.shutdown()
        of_torchio.append(torchio(paths, options.cores, rows))
    peers = {"TorchIO": statistics.median(of_torchio), "MONAI": monai(paths, folder, options.cores, rows)}

    def median(speeds: list[Speed]) -> Speed:
        return sorted(speeds, key=lambda speed: speed.per_second)[len(speeds) // 2]

    parts: dict[str, Any] = {name: median([getattr(run, name) for run in runs]) for name in ("plain", "bare", "stream")}
    measured = dataclasses.replace(runs[0], **parts)
    console.print("\n".join(measured.lines()), "\n")
    ours = measured.stream.per_second
    table = Table("loader", "patches/s", "the stream is faster by")
    loops = {"plain numpy/scipy loop": measured.plain, "the stream's rows without Ray": measured.bare}
    speeds = {"mrisr stream": ours, **{name: loop.per_second for name, loop in loops.items()}, **peers}
    for name, speed in speeds.items():
        table.add_row(name, f"{speed:.1f}", f"{ours / speed:.2f}x")
    console.print(table)
    console.print(f"over the better peer: {ours / max(peers.values()):.2f}x")
    for name, found in (("mrisr stream", [run.stream.per_second for run in runs]), ("TorchIO", of_torchio)):
        console.print(f"{name}: median of {', '.join(f'{speed:.1f}' for speed in found)} patches/s")


if __name__ == "__main__":
    main()
