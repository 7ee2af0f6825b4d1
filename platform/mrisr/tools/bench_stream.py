"""Patches per second that a machine streams, and the time of each stage (`mrisr bench stream`)."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy import fft

from mrisr.config import ConfigError, Experiment
from mrisr.data.patches import cut, sample_corners
from mrisr.data.rows import PatchMaker, PreparedRow, Row, cached_store
from mrisr.data.stream import StreamLimits, rank_batches
from mrisr.degradation import KINDS, degrade, spectral_weight
from voxelstore import VolumeStore

STAGES = ("draw", "read", "transform", "cut", "mix")
WORKER_CPUS = 0.01  # of the Ray Train worker, which only receives: a data task must fit on every core
WARM_UP = 6  # groups of every lane before the clock starts: Ray takes seconds to start a process for each core
SIZED = 100  # subjects whose sizes are averaged


class Stopwatch:
    """Seconds by stage. The time of a nested stage counts for the inner stage only."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._inner = 0.0  # seconds of the stages inside the running one

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        outer, self._inner, start = self._inner, 0.0, time.perf_counter()
        yield
        took = time.perf_counter() - start
        self.seconds[name] += took - self._inner
        self._inner = outer + took


@dataclass(frozen=True)
class TimedPatchMaker(PatchMaker):
    """A PatchMaker that times its stages: `cut` is the rest of `write_row`, `mix` the rest of `group_patches`. reports:
    a folder that every node sees, for one file per group with its seconds.
    """

    reports: Path | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)

    @classmethod
    def of(cls, maker: PatchMaker, reports: Path | None = None) -> TimedPatchMaker:
        return cls(**{one.name: getattr(maker, one.name) for one in fields(PatchMaker)}, reports=reports)

    def prepare(self, row: Row) -> PreparedRow:
        with self.watch.stage("draw"):
            prepared = super().prepare(row)

        def transform(part: np.ndarray) -> np.ndarray:
            with self.watch.stage("transform"):
                return prepared.degrade(part)

        return prepared._replace(parts=self._read(iter(prepared.parts)), degrade=transform)

    def _read(self, parts: Iterator[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
        while True:
            with self.watch.stage("read"):
                part = next(parts, None)
            if part is None:
                return
            yield part

    def write_row(self, row: Row, cubes: tuple[Sequence[np.ndarray], Sequence[np.ndarray]]) -> None:
        with self.watch.stage("cut"):
            super().write_row(row, cubes)

    def group_patches(self, turn: int, lane: int, skip: int = 0) -> dict[str, np.ndarray]:
        before = dict(self.watch.seconds)
        with self.watch.stage("mix"):
            group = super().group_patches(turn, lane, skip)
        seconds = {name: total - before[name] for name, total in self.watch.seconds.items()}
        assert self.reports is not None
        (self.reports / f"{turn}-{lane}.json").write_text(json.dumps(seconds))
        return group


@dataclass(frozen=True)
class Speed:
    """Patches made in `wall` seconds on `cores` cores, and the seconds of all cores by stage."""

    patches: int
    wall: float
    cores: float
    stages: dict[str, float]

    @property
    def per_second(self) -> float:
        return self.patches / self.wall

    def shares(self) -> dict[str, float]:
        """Share of the cores' time by stage; `rest` is the framework and idle cores."""
        total = self.wall * self.cores
        shares = {name: seconds / total for name, seconds in self.stages.items()}
        return {**shares, "rest": 1.0 - sum(shares.values())}


@dataclass(frozen=True)
class Measured:
    """The stream and two loops without Ray over as many rows of the same plan.

    plain: whole volumes and full transforms in numpy and scipy; bare: the stream's own rows. patch: edge in voxels;
    per_row: patches of a volume; stored, decoded: mean bytes of a volume in the store and in memory.
    """

    plain: Speed
    bare: Speed
    stream: Speed
    patch: int
    per_row: int
    stored: float
    decoded: float

    def lines(self) -> list[str]:
        speeds = {
            "plain numpy/scipy loop": self.plain,
            "the stream's rows, no Ray": self.bare,
            "Ray Train worker": self.stream,
        }
        head = "".join(f"{name:>11}" for name in (*STAGES, "rest"))
        rates, seconds = (
            [f"{'':<26}{'patches/s':>10}{head}"],
            [f"{'seconds of a core a volume':<26}{'in all':>10}{head}"],
        )
        for name, speed in speeds.items():
            shares, total = speed.shares().values(), self.per_row * speed.cores / speed.per_second
            rates.append(f"{name:<26}{speed.per_second:>10.1f}" + "".join(f"{share:>11.1%}" for share in shares))
            seconds.append(f"{name:<26}{total:>10.3f}" + "".join(f"{share * total:>11.3f}" for share in shares))
        transform = self.per_row * self.plain.stages["transform"] / self.plain.patches
        return [
            *rates,
            f"shares of {self.stream.cores:g} cores' time; mix: patches put in their order, batches",
            "",
            *seconds,
            f"the floor, a volume: at most {self.stored / 1e6:.1f} MB read and {self.decoded / 1e6:.1f} MB decoded, "
            f"and {transform:.3f} s of a core in the full rfftn and irfftn",
            f"{self.per_row} patches of {self.patch}^3 a volume; stream / plain loop "
            f"{self.stream.per_second / self.plain.per_second:.0%}; stream / its rows without Ray "
            f"{self.stream.per_second / self.bare.per_second:.0%}",
        ]


def plain_patches(maker: PatchMaker, row: Row, watch: Stopwatch) -> tuple[np.ndarray, np.ndarray]:
    """(lr, hr), each (K, P, P, P) float32: the row from whole volumes and full transforms in numpy and scipy."""
    with watch.stage("draw"):
        store = cached_store(str(maker.store))
        rng = maker.plan.row_rng(row)
        degradation = maker.degradation.sample(rng)
        record = store.record(row.subject)
        corners = sample_corners(
            store.foreground(row.subject), record.mask_block, record.shape, maker.patch_size,
            maker.plan.patches_per_row, maker.min_foreground, rng,
        )  # fmt: skip
    with watch.stage("read"):
        hr = store.read_normalised(row.subject)
    with watch.stage("transform"):
        if KINDS[degradation.kind].weight is None or degradation.noise > 0:
            lr = degrade(hr, degradation, no_signal=record.intensity.no_signal)
        else:
            axes = degradation.transform_axes
            spectrum = fft.rfftn(hr, axes=axes)
            spectrum *= spectral_weight(hr.shape, degradation)
            lr = fft.irfftn(spectrum, s=[hr.shape[axis] for axis in axes], axes=axes, overwrite_x=True)
    with watch.stage("cut"):
        low, high = (np.stack([cut(volume, corner, maker.patch_size) for corner in corners]) for volume in (lr, hr))
    return low, high


def _plain_rows(maker: PatchMaker, rows: Sequence[Row]) -> dict[str, float]:
    watch = Stopwatch()
    for row in rows:
        plain_patches(maker, row, watch)
    return watch.seconds


def _stream_rows(maker: PatchMaker, rows: Sequence[Row]) -> dict[str, float]:
    timed = TimedPatchMaker.of(maker)
    for row in rows:
        timed.row_patches(row)
    return timed.watch.seconds


def bare_loop(
    loop: Callable[[PatchMaker, Sequence[Row]], dict[str, float]], maker: PatchMaker, rows: Sequence[Row], cores: int
) -> Speed:
    """Run `loop`, which returns its seconds by stage, over the rows in one process per core, without Ray."""
    with _one_thread(), ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        parts = [list(rows[i::cores]) for i in range(cores)]
        list(pool.map(loop, [maker] * cores, [part[:1] for part in parts]))  # imports, opens, page cache
        start = time.perf_counter()
        seconds = list(pool.map(loop, [maker] * cores, parts))
        wall = time.perf_counter() - start
    return Speed(len(rows) * maker.plan.patches_per_row, wall, cores, _summed(seconds))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Give processes started here one thread of linear algebra, as Ray gives its tasks."""
    keys = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {key: os.environ[key] for key in keys if key in os.environ}
    os.environ.update(dict.fromkeys(keys, "1"))
    try:
        yield
    finally:
        for key in keys:
            del os.environ[key]
        os.environ.update(before)


def ray_stream(maker: PatchMaker, turns: int, limits: StreamLimits, cores: int) -> Speed:
    """The stream as in training: Ray Data tasks, float32 torch tensors inside one Ray Train worker."""
    import ray.train
    from ray.train.torch import TorchTrainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            _consume,
            train_loop_config={"maker": TimedPatchMaker.of(maker, Path(folder)), "limits": limits, "turns": turns},
            scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": WORKER_CPUS}),
            run_config=ray.train.RunConfig(name=f"bench-{os.getpid()}", storage_path=folder),
        )
        patches, wall, mixed = trainer.fit().return_value
        groups = [(turn, lane) for turn in range(WARM_UP, WARM_UP + turns) for lane in range(maker.plan.lanes)]
        stages = _summed([json.loads(Path(folder, f"{turn}-{lane}.json").read_text()) for turn, lane in groups])
    stages["mix"] += mixed
    return Speed(patches, wall, cores, stages)


def _consume(settings: dict[str, Any]) -> tuple[int, float, float]:
    """The Ray Train worker: takes every batch as float32 tensors and discards it. Returns the patches after the
    warm-up, their seconds, and the seconds of stacking and converting batches.
    """
    import torch

    from mrisr import cluster

    cluster.quiet()
    torch.set_num_threads(1)
    maker, limits = settings["maker"], settings["limits"]
    size, step = maker.plan.group_size, WARM_UP * maker.plan.group_size
    for _ in rank_batches(maker, 0, 1, 0, step, limits):  # until Ray has started a process for every core
        pass
    seen, mixed = 0, 0.0
    start = last = time.perf_counter()
    for i, batch in enumerate(rank_batches(maker, 0, 1, step, step + settings["turns"] * size, limits)):
        lr, hr = torch.from_numpy(batch.lr).float(), torch.from_numpy(batch.hr).float()
        assert lr.shape == hr.shape
        seen += len(lr)
        now = time.perf_counter()
        # The time of a round's first batch may include a wait for its patches.
        mixed += now - last if i % (size * limits.rounds) else 0.0
        last = now
    return seen, last - start, mixed


def _summed(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(part[name] for part in parts) for name in STAGES}


def measure_stream(experiment: Experiment, rows: int, cores: int | None = None) -> Measured:
    """Measure all three, one after the other, on the experiment's store and settings.

    rows: volumes, rounded up to whole groups of every lane; cores: processes of the loops, and data tasks; default:
    Ray's CPUs. Raises ConfigError for a store without training volumes.
    """
    from mrisr import cluster
    from mrisr.training.build import patch_maker

    store = VolumeStore.open(experiment.data.store)
    subjects = store.subjects("train")
    if not subjects:
        raise ConfigError(f"data.store: {store.path} has no subjects in split 'train'; convert some first")
    cluster.connect()
    if cores is None:
        cores = max(1, int(cluster.available()[0]))
    maker = patch_maker(experiment, subjects)
    plan = maker.plan
    per_turn = plan.lanes * plan.rows_per_group
    turns = -(-rows // per_turn)
    limits = StreamLimits((cores - WORKER_CPUS) / cores, cores - WORKER_CPUS, experiment.stream.rounds)
    stream = ray_stream(maker, turns, limits, cores)
    measured = [plan.row(WARM_UP * per_turn + i) for i in range(turns * per_turn)]
    plain, bare = (bare_loop(loop, maker, measured, cores) for loop in (_plain_rows, _stream_rows))
    stored, decoded = np.mean([store.sizes(subject) for subject in subjects[:SIZED]], axis=0)
    return Measured(plain, bare, stream, maker.patch_size, plan.patches_per_row, float(stored), float(decoded))
