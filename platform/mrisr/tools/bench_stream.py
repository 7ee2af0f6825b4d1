"""How many patches per second a machine streams, and where the time goes (`mrisr bench stream`)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy import fft

from mrisr.config import ConfigError, Experiment
from mrisr.data.patches import cut, sample_corners
from mrisr.data.rows import PatchMaker, Row, open_store
from mrisr.data.stream import StreamLimits, rank_batches
from mrisr.degradation import degrade, spectral_weight
from voxelstore import VolumeStore

STAGES = ("draw", "read", "transform", "cut", "mix")


class Stopwatch:
    """Seconds by stage: called at the end of each."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.start()

    def start(self) -> None:
        """Begin a row: what lay between it and the last one belongs to no stage."""
        self._last = time.perf_counter()

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now


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
        """Share of the cores' time by stage; `rest` is what no stage has: the framework, and cores that idle."""
        total = self.wall * self.cores
        shares = {name: seconds / total for name, seconds in self.stages.items()}
        return {**shares, "rest": 1.0 - sum(shares.values())}


@dataclass(frozen=True)
class Measured:
    """The stream and two loops without Ray over as many rows of the same plan.

    plain: whole volumes and full transforms, as one would write it with numpy and scipy; bare: the stream's own rows.
    patch: edge in voxels; per_row: patches of a volume; stored, decoded: mean bytes of a volume's voxels in the store
    and in memory.
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
        out = [f"{'':<26}{'patches/s':>10}{head}"]
        for name, speed in speeds.items():
            shares = "".join(f"{share:>11.1%}" for share in speed.shares().values())
            out.append(f"{name:<26}{speed.per_second:>10.1f}{shares}")
        out += [f"shares of {self.stream.cores:g} cores' time; mix: patches put in their order, batches", ""]
        out.append(f"{'seconds of a core a volume':<26}{'in all':>10}{head}")
        for name, speed in speeds.items():
            total = self.per_row * speed.cores / speed.per_second
            parts = "".join(f"{share * total:>11.3f}" for share in speed.shares().values())
            out.append(f"{name:<26}{total:>10.3f}{parts}")
        transform = self.per_row * self.plain.stages["transform"] / self.plain.patches
        return [
            *out,
            f"the floor, a volume: at most {self.stored / 1e6:.1f} MB read and {self.decoded / 1e6:.1f} MB decoded, "
            f"and {transform:.3f} s of a core in the full rfftn and irfftn",
            f"{self.per_row} patches of {self.patch}^3 a volume; stream / plain loop "
            f"{self.stream.per_second / self.plain.per_second:.0%}; stream / its rows without Ray "
            f"{self.stream.per_second / self.bare.per_second:.0%}",
        ]


__all__ = ["STAGES", "Measured", "Speed", "Stopwatch", "bare_loop", "measure_stream", "plain_patches", "ray_stream"]

WORKER_CPUS = 0.01
WARM_UP = 6  # groups of every lane before the clock starts: Ray takes seconds to start a process for each core
SIZED = 100  # subjects whose sizes are averaged
REPORTED_S = 60.0  # how long the actor may take to hear of groups that have already arrived


@dataclass(frozen=True)
class TimedPatchMaker(PatchMaker):
    """A PatchMaker that tells an actor how long each stage of each group took."""

    sink: Any = None

    def group_patches(self, turn: int, lane: int, skip: int = 0, mark: Any = None) -> dict[str, np.ndarray]:
        watch = Stopwatch()
        group = super().group_patches(turn, lane, skip, watch)
        self.sink.add.remote(watch.seconds)
        return group


class Sums:
    """The actor that gathers what the data tasks measured."""

    def __init__(self) -> None:
        self.groups: list[dict[str, float]] = []

    def add(self, seconds: dict[str, float]) -> None:
        self.groups.append(seconds)

    def take(self, count: int) -> list[dict[str, float]]:
        """`count` groups' seconds, or nothing while fewer have reported: reports may come after their patches."""
        if len(self.groups) < count:
            return []
        taken, self.groups = self.groups[:count], self.groups[count:]
        return taken


def plain_patches(maker: PatchMaker, row: Row, mark: Callable[[str], None]) -> tuple[np.ndarray, np.ndarray]:
    """(lr, hr), each (K, P, P, P) float32: the row as one would write it with numpy and scipy, without any saving."""
    store = open_store(str(maker.store))
    rng = maker.plan.row_rng(row)
    degradation = maker.degradation.sample(rng)
    record = store.record(row.subject)
    corners = sample_corners(
        store.foreground(row.subject), record.mask_block, record.shape, maker.patch_size,
        maker.plan.patches_per_row, maker.min_foreground, rng,
    )  # fmt: skip
    mark("draw")
    hr = store.read_normalised(row.subject)
    mark("read")
    if degradation.kind == "report_literal" or degradation.noise > 0:
        lr = degrade(hr, degradation, no_signal=record.intensity.no_signal)
    else:
        axes = degradation.transform_axes
        spectrum = fft.rfftn(hr, axes=axes)
        spectrum *= spectral_weight(hr.shape, degradation)
        lr = fft.irfftn(spectrum, s=[hr.shape[axis] for axis in axes], axes=axes, overwrite_x=True)
    mark("transform")
    pair = [np.stack([cut(volume, corner, maker.patch_size) for corner in corners]) for volume in (lr, hr)]
    mark("cut")
    return pair[0], pair[1]


@contextmanager
def one_thread() -> Iterator[None]:
    """Processes started here get one thread of linear algebra, as Ray gives its tasks: more would spin on the cores."""
    keys = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {key: os.environ[key] for key in keys if key in os.environ}
    os.environ.update(dict.fromkeys(keys, "1"))
    try:
        yield
    finally:
        for key in keys:
            del os.environ[key]
        os.environ.update(before)


def _loop(make: Callable[..., Any], maker: PatchMaker, rows: Sequence[Row]) -> dict[str, float]:
    """One process of a loop without Ray."""
    watch = Stopwatch()
    for row in rows:
        watch.start()
        make(maker, row, watch)
    return watch.seconds


def bare_loop(make: Callable[..., Any], maker: PatchMaker, rows: Sequence[Row], processes: int) -> Speed:
    """`make(maker, row, mark)` over the rows in `processes` processes, and nothing else."""
    with one_thread(), ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        parts = [list(rows[i::processes]) for i in range(processes)]
        work = [make] * processes, [maker] * processes
        list(pool.map(_loop, *work, [part[:1] for part in parts]))  # imports, opens, page cache
        start = time.perf_counter()
        sums = list(pool.map(_loop, *work, parts))
        wall = time.perf_counter() - start
    stages = {name: sum(part[name] for part in sums) for name in STAGES}
    return Speed(len(rows) * maker.plan.patches_per_row, wall, processes, stages)


def _reported(sink: Any, groups: int) -> list[dict[str, float]]:
    """What the data tasks measured, once all of `groups` groups have reported."""
    import ray

    deadline = time.monotonic() + REPORTED_S
    while not (taken := ray.get(sink.take.remote(groups))):
        if time.monotonic() > deadline:
            raise RuntimeError(f"fewer than {groups} groups reported their seconds within {REPORTED_S:g} s; run again")
        time.sleep(0.05)
    return list(taken)


def _consume(settings: dict[str, Any]) -> dict[str, Any]:
    """The Ray Train worker: takes every batch as float32 tensors, as training does, and throws it away."""
    import torch

    from mrisr import cluster

    cluster.quiet()
    torch.set_num_threads(1)
    maker, limits, turns = settings["maker"], settings["limits"], settings["turns"]
    size, lanes = maker.plan.group_size, maker.plan.lanes
    step = WARM_UP * size
    for _ in rank_batches(maker, 0, 1, 0, step, limits):  # until Ray has started a process for every core
        pass
    _reported(maker.sink, WARM_UP * lanes)
    seen, mixed = 0, 0.0
    start = last = time.perf_counter()
    for i, batch in enumerate(rank_batches(maker, 0, 1, step, step + turns * size, limits)):
        lr, hr = torch.from_numpy(batch.lr).float(), torch.from_numpy(batch.hr).float()
        assert lr.shape == hr.shape
        seen += len(lr)
        now = time.perf_counter()
        # The first batch of a round may have had to wait for its patches.
        mixed += now - last if i % (size * limits.rounds) else 0.0
        last = now
    return {"patches": seen, "wall": last - start, "mixed": mixed, "groups": _reported(maker.sink, turns * lanes)}


def ray_stream(maker: PatchMaker, turns: int, limits: StreamLimits, cores: int, folder: Path) -> Speed:
    """The stream as training has it: Ray Data tasks, float32 torch tensors inside one Ray Train worker."""
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    sink = ray.remote(Sums).options(num_cpus=0).remote()
    timed = TimedPatchMaker(
        maker.store, maker.plan, maker.degradation, maker.patch_size, maker.min_foreground, sink=sink
    )
    settings = {"maker": timed, "limits": limits, "turns": turns}
    trainer = TorchTrainer(
        _consume,
        train_loop_config=settings,
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": WORKER_CPUS}),
        run_config=ray.train.RunConfig(name=f"bench-{os.getpid()}", storage_path=str(folder)),
    )
    found: Any = trainer.fit().return_value
    stages = {name: sum(group[name] for group in found["groups"]) for name in STAGES}
    stages["mix"] += found["mixed"]
    return Speed(found["patches"], found["wall"], cores, stages)


def measure_stream(experiment: Experiment, rows: int, cores: int | None = None) -> Measured:
    """Measure all three on the experiment's store and settings, one after the other.

    rows: volumes, rounded up to whole groups of every lane; cores: processes of the loops, and data tasks, by
    default what Ray has. Raises ConfigError for a store without training volumes.
    """
    import tempfile

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
    turns = -(-rows // (plan.lanes * plan.rows_per_group))
    per_turn = plan.lanes * plan.rows_per_group
    # The worker that only receives reserves next to nothing, so that a data task fits on every core.
    limits = StreamLimits((cores - WORKER_CPUS) / cores, cores - WORKER_CPUS, experiment.stream.rounds)
    with tempfile.TemporaryDirectory() as folder:
        stream = ray_stream(maker, turns, limits, cores, Path(folder))
    measured = [plan.row(WARM_UP * per_turn + i) for i in range(turns * per_turn)]
    plain, bare = (bare_loop(make, maker, measured, cores) for make in (plain_patches, PatchMaker.row_patches))
    stored, decoded = np.mean([store.sizes(subject) for subject in subjects[:SIZED]], axis=0)
    return Measured(plain, bare, stream, maker.patch_size, plan.patches_per_row, float(stored), float(decoded))
