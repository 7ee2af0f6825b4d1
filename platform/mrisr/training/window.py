"""The means of a run's figures between two records."""

from __future__ import annotations

from typing import Any

from mrisr.engine.networks import StepConfig
from mrisr.engine.schedule import Phase


class Window:
    """Sums since the last record. It travels in checkpoints, so that a resumed run's records are those of one run."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._waited = self._busy = 0.0
        self._steps = 0
        self._seconds_per_step = 0.0

    def add(self, phase: Phase, metrics: dict[str, float], waited: float, seconds: float) -> None:
        """One step. waited: seconds until its batch was there; seconds: the whole step, waiting included."""
        for name, value in metrics.items():
            key = f"{phase}/{name}"
            self._sums[key] = self._sums.get(key, 0.0) + value
            self._counts[key] = self._counts.get(key, 0) + 1
        self._waited += waited
        self._busy += seconds
        self._steps += 1

    def close(self, config: StepConfig, batch_size: int) -> dict[str, float]:
        """The record: means per phase, learning rates of the networks that moved, throughput; then starts anew.

        Throughput is this rank's clock times the global batch; data_wait_share is this rank's share of time without a
        batch (the worker reports the largest of all ranks').
        """
        record = {key: total / self._counts[key] for key, total in self._sums.items()}
        rates = {
            Phase.PRETRAIN: config.pretrain_lr, Phase.CRITIC: config.critic_lr, Phase.GENERATOR: config.generator_lr,
        }  # fmt: skip
        for phase, rate in rates.items():
            if f"{phase}/loss" in record:
                record[f"{phase}/learning_rate"] = rate
        if self._steps and self._busy > 0:
            record["throughput/steps_per_second"] = self._steps / self._busy
            record["throughput/patches_per_second"] = self._steps * batch_size / self._busy
            record["throughput/data_wait_share"] = self._waited / self._busy
            self._seconds_per_step = self._busy / self._steps
        self._sums, self._counts = {}, {}
        self._waited = self._busy = 0.0
        self._steps = 0
        return record

    def line(self, step: int, total: int, phase: Phase, record: dict[str, float]) -> str:
        """One line for the terminal."""
        eta = int((total - step) * self._seconds_per_step)
        return (
            f"step {step:>7,}/{total:,} {phase:<9} loss {record[f'{phase}/loss']:.5f}  "
            f"{record['throughput/patches_per_second']:.1f} patches/s  "
            f"data wait {record['throughput/data_wait_share']:.0%}  "
            f"eta {eta // 3600}:{eta // 60 % 60:02d}:{eta % 60:02d}"
        )

    def progress(self) -> dict[str, Any]:
        return {
            "sums": self._sums, "counts": self._counts, "waited": self._waited, "busy": self._busy, "steps": self._steps
        }  # fmt: skip

    def restore(self, progress: dict[str, Any]) -> None:
        self._sums, self._counts = dict(progress["sums"]), dict(progress["counts"])
        self._waited, self._busy, self._steps = progress["waited"], progress["busy"], progress["steps"]
