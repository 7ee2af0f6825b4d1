"""The figures of a stream: patches per second, and what each stage has of the cores' time."""

from __future__ import annotations

import time
from dataclasses import dataclass

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
