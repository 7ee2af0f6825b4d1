"""The state of a run apart from its networks, as stored in a checkpoint's progress.json and best weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mrisr.config import Experiment
from mrisr.config.validation import Validation
from mrisr.engine.checkpoint import raised_on_every_rank
from mrisr.engine.networks import Networks
from mrisr.engine.schedule import ADVERSARIAL, L1, Phase, Schedule
from mrisr.metrics import METRICS
from mrisr.training.checkpoints import BEST_WEIGHTS, best_of_stage, best_weights


def score(figures: Mapping[str, Any], metric: str, main: str, protocols: tuple[str, ...]) -> float:
    """A metric's mean over protocols, from the figures of a validation. Keys of the protocol `main` have no prefix."""
    keys = [metric if protocol == main else f"{protocol}/{metric}" for protocol in protocols or (main,)]
    return sum(float(figures[key]) for key in keys) / len(keys)


class Best:
    """The weights with the best validation score so far. They are on every rank's CPU and in every checkpoint.

    step: when they were validated, None before the first validation that counts; figures: of that validation; state:
    the generator's state dict, empty while step is None.
    """

    def __init__(self, validation: Validation) -> None:
        self.validation = validation
        self.step: int | None = None
        self.figures: dict[str, float] = {}
        self.state: dict[str, Tensor] = {}

    def offer(self, step: int, figures: dict[str, float], state: dict[str, Tensor]) -> bool:
        """Keep the weights if they are better than all before. With equal scores the earlier weights stay."""
        counts = step > 0 or self.validation.start_counts
        better = counts and (self.step is None or self._beats(figures))
        if better:
            self.step, self.figures, self.state = step, dict(figures), state
        return better

    def _beats(self, figures: dict[str, float]) -> bool:
        v = self.validation
        now, before = (score(f, v.metric, v.protocol, v.mean_over) for f in (figures, self.figures))
        return METRICS[v.metric].improvement(now, before) > 0

    def progress(self) -> dict[str, Any]:
        return {"step": self.step, "figures": self.figures}

    def restore(self, progress: dict[str, Any], folder: Path, name: str = BEST_WEIGHTS) -> None:
        """Restore `progress`, and the weights from a checkpoint's file. Every rank must call it.

        Raises CheckpointError on every rank if one rank finds the weights missing or damaged.
        """
        self.step, self.figures = progress["step"], progress["figures"]
        with raised_on_every_rank():
            if self.step is not None:
                self.state = best_weights(folder, name)


@dataclass
class Window:
    """Sums of a run's metrics since the last record. Checkpoints hold them, so resuming does not change a record."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)  # newest learning rate by phase
    waited: float = 0.0  # seconds until batches were there
    busy: float = 0.0  # seconds of steps, waiting included
    steps: int = 0

    def add(self, phase: Phase, metrics: dict[str, float], rate: float, waited: float, seconds: float) -> None:
        self.rates[phase] = rate
        for name, value in metrics.items():
            key = f"{phase}/{name}"
            self.sums[key] = self.sums.get(key, 0.0) + value
            self.counts[key] = self.counts.get(key, 0) + 1
        self.waited += waited
        self.busy += seconds
        self.steps += 1

    def record(self, batch_size: int) -> dict[str, float]:
        """Means per phase, newest learning rates of the updated networks, and throughput by this rank's clock."""
        record = {key: total / self.counts[key] for key, total in self.sums.items()}
        record |= {f"{phase}/learning_rate": rate for phase, rate in self.rates.items()}
        if self.busy > 0:
            record["throughput/steps_per_second"] = self.steps / self.busy
            record["throughput/patches_per_second"] = self.steps * batch_size / self.busy
            record["throughput/data_wait_share"] = self.waited / self.busy
        return record


@dataclass
class RunState:
    """The state of a run, equal on every rank except for the times in `window`.

    best: over all stages; stages: the best of each stage, if there are two. step: number of steps done, also the
    position in the stream; critic_norms: the critic's gradient norms since the last plot; latest: the figures of the
    last validation, with its step under `validated`.
    """

    schedule: Schedule
    best: Best
    stages: dict[str, Best] = field(default_factory=dict)
    step: int = 0
    window: Window = field(default_factory=Window)
    critic_norms: list[float] = field(default_factory=list)
    latest: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, experiment: Experiment) -> RunState:
        v, schedule = experiment.validation, experiment.schedule
        stages = [L1, ADVERSARIAL] if schedule.pretrain_steps else [ADVERSARIAL]
        return cls(schedule, Best(v), {stage: Best(v) for stage in stages if schedule.needs_critic})

    def offer(self, figures: dict[str, float], state: dict[str, Tensor]) -> bool:
        """Keep the current weights if they are the best of their stage. Returns whether they are the run's best."""
        if (stage := self.stages.get(self.schedule.stage(self.step))) is not None:
            stage.offer(self.step, figures, state)
        return self.best.offer(self.step, figures, state)

    def weights(self) -> dict[str, Mapping[str, Tensor]]:
        files = {BEST_WEIGHTS: self.best} | {best_of_stage(stage): best for stage, best in self.stages.items()}
        return {name: best.state for name, best in files.items() if best.state}

    def progress(self, networks: Networks, precision: str) -> dict[str, Any]:
        """The content of progress.json, including hardware-dependent settings that must not change on resuming."""
        return {
            "step": self.step, "best": self.best.progress(), "window": asdict(self.window),
            "critic_norms": self.critic_norms, "latest": self.latest, "batchnorm_over": networks.batchnorm_over,
            "precision": precision, "best_of_stage": {stage: best.progress() for stage, best in self.stages.items()},
        }  # fmt: skip

    def restore(self, progress: dict[str, Any], folder: Path) -> None:
        """Restore a checkpoint's state. Every rank must call it. Raises CheckpointError as `Best.restore`."""
        self.best.restore(progress["best"], folder)
        for stage, best in self.stages.items():
            if "best_of_stage" in progress:
                best.restore(progress["best_of_stage"][stage], folder, best_of_stage(stage))
            elif self.best.step is not None and self.schedule.stage(self.best.step) == stage:
                # Older versions kept the best of the run alone.
                best.step, best.figures, best.state = self.best.step, self.best.figures, self.best.state
        self.step = progress["step"]
        self.window = Window(**progress["window"])
        self.critic_norms, self.latest = progress["critic_norms"], progress["latest"]
