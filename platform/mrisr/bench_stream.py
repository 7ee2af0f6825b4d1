"""How many patches per second a machine streams, and where the time goes (`mrisr bench stream`)."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from mrisr.config import ConfigError, Experiment
from mrisr.rows import PatchMaker, Row
from mrisr.stream import StreamLimits, rank_batches
from voxelstore import VolumeStore

WORKER_CPUS = 0.01
STAGES = ("draw", "read", "transform", "cut")


class Stopwatch:
    """Seconds by stage: called at the end of each."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._last = time.perf_counter()

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now


@dataclass(frozen=True)
class TimedPatchMaker(PatchMaker):
    """A PatchMaker that tells an actor how long each stage of each row took."""

    sink: Any = None

    def row_patches(self, row: Row, mark: Any = None) -> tuple[np.ndarray, np.ndarray]:
        watch = Stopwatch()
        patches = super().row_patches(row, watch)
        self.sink.add.remote(watch.seconds)
        return patches


class Sums:
    """The actor that gathers what the data tasks measured."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def add(self, seconds: dict[str, float]) -> None:
        self.rows.append(seconds)

    def take(self) -> list[dict[str, float]]:
        rows, self.rows = self.rows, []
        return rows


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
        """Share of the cores' time by stage; `rest` is what no stage has: the framework, copies, waiting."""
        total = self.wall * self.cores
        shares = {name: seconds / total for name, seconds in self.stages.items()}
        return {**shares, "rest": 1.0 - sum(shares.values())}


@dataclass(frozen=True)
class Measured:
    """The bare loop and the stream over as many rows of the same plan."""

    bare: Speed
    stream: Speed
    patch: int

    def lines(self) -> list[str]:
        out = [f"{'':<22}{'patches/s':>10}" + "".join(f"{name:>11}" for name in (*STAGES, "rest"))]
        for name, speed in (("bare numpy/scipy loop", self.bare), ("Ray Train worker", self.stream)):
            out.append(
                f"{name:<22}{speed.per_second:>10.1f}" + "".join(f"{share:>11.1%}" for share in speed.shares().values())
            )
        return [
            *out,
            f"shares of {self.stream.cores:g} cores' time; rest: Ray, copies, start-up and waiting",
            f"patches of {self.patch}^3; stream / bare loop {self.stream.per_second / self.bare.per_second:.0%}",
        ]


def _bare_rows(maker: PatchMaker, rows: Sequence[Row]) -> dict[str, float]:
    """One process of the bare loop."""
    watch = Stopwatch()
    for row in rows:
        maker.row_patches(row, watch)
    return watch.seconds


def bare_loop(maker: PatchMaker, rows: Sequence[Row], processes: int) -> Speed:
    """Rows to patches by `processes` processes and nothing else: what a stream could reach without any framework."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        parts = [list(rows[i::processes]) for i in range(processes)]
        list(pool.map(_bare_rows, [maker] * processes, [part[:1] for part in parts]))  # imports, opens, page cache
        start = time.perf_counter()
        sums = list(pool.map(_bare_rows, [maker] * processes, parts))
        wall = time.perf_counter() - start
    stages = {name: sum(part[name] for part in sums) for name in STAGES}
    return Speed(len(rows) * maker.plan.patches_per_row, wall, processes, stages)


def _consume(settings: dict[str, Any]) -> dict[str, Any]:
    """The Ray Train worker: takes every batch as float32 tensors, as training does, and throws it away."""
    import ray
    import ray.train
    import torch

    from mrisr import cluster

    cluster.quiet()
    torch.set_num_threads(1)
    maker, limits = settings["maker"], settings["limits"]
    step = maker.plan.group_size
    for _ in rank_batches(maker, 0, 1, 0, step, limits):  # starts and warms the data tasks
        pass
    ray.get(maker.sink.take.remote())
    seen = 0
    start = time.perf_counter()
    for batch in rank_batches(maker, 0, 1, step, step + settings["steps"], limits):
        lr, hr = torch.from_numpy(batch.lr).float(), torch.from_numpy(batch.hr).float()
        assert lr.shape == hr.shape
        seen += len(lr)
    wall = time.perf_counter() - start
    return {"patches": seen, "wall": wall, "rows": ray.get(maker.sink.take.remote())}


def ray_stream(maker: PatchMaker, turns: int, limits: StreamLimits, cores: int, folder: Path) -> Speed:
    """The stream as training has it: Ray Data tasks, float32 torch tensors inside one Ray Train worker."""
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    sink = ray.remote(Sums).options(num_cpus=0).remote()
    timed = TimedPatchMaker(
        maker.store, maker.plan, maker.degradation, maker.patch_size, maker.min_foreground, sink=sink
    )
    settings = {"maker": timed, "limits": limits, "steps": turns * maker.plan.group_size}
    trainer = TorchTrainer(
        _consume,
        train_loop_config=settings,
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": WORKER_CPUS}),
        run_config=ray.train.RunConfig(name=f"bench-{os.getpid()}", storage_path=str(folder)),
    )
    found: Any = trainer.fit().return_value
    stages = {name: sum(row[name] for row in found["rows"]) for name in STAGES}
    return Speed(found["patches"], found["wall"], cores, stages)


def measure_stream(experiment: Experiment, rows: int, cores: int | None = None) -> Measured:
    """Measure both on the experiment's store and settings, one after the other.

    rows: volumes, rounded up to whole groups of every lane; cores: processes of the bare loop and data tasks, by
    default what Ray has. Raises ConfigError for a store without training volumes.
    """
    import tempfile

    from mrisr import cluster
    from mrisr.training.worker import patch_maker

    store = VolumeStore.open(experiment.data.store)
    subjects = store.subjects("train")
    if not subjects:
        raise ConfigError(f"data.store: {store.path} has no subjects in split 'train'; convert some first")
    cluster.connect()
    if cores is None:
        cores = max(1, int(cluster.available()[0]))
    maker = patch_maker(experiment, subjects)
    plan = maker.plan
    turns = -(-rows // (plan.lanes * plan.rows_per_group))
    per_turn = plan.lanes * plan.rows_per_group
    # The worker that only receives reserves next to nothing, so that a data task fits on every core.
    limits = StreamLimits((cores - WORKER_CPUS) / cores, cores - WORKER_CPUS, experiment.stream.rounds)
    with tempfile.TemporaryDirectory() as folder:
        stream = ray_stream(maker, turns, limits, cores, Path(folder))
    bare = bare_loop(maker, [plan.row(per_turn + i) for i in range(turns * per_turn)], cores)
    return Measured(bare, stream, maker.patch_size)
