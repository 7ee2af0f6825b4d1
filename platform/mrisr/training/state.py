"""The state of a run beside its networks: what progress.json and the best weights of a checkpoint hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mrisr.config import Experiment
from mrisr.config.validation import Validation
from mrisr.engine.checkpoint import refused_together
from mrisr.engine.networks import Networks
from mrisr.engine.schedule import ADVERSARIAL, L1, Phase, Schedule
from mrisr.engine.step_settings import StepConfig
from mrisr.metrics import METRICS
from mrisr.training.checkpoints import BEST_WEIGHTS, best_of_stage, best_weights


def score(figures: Mapping[str, Any], metric: str, main: str, protocols: tuple[str, ...]) -> float:
    """A metric's mean over protocols, from a validation's figures. Those of the protocol `main` have no prefix."""
    keys = [metric if protocol == main else f"{protocol}/{metric}" for protocol in protocols or (main,)]
    return sum(float(figures[key]) for key in keys) / len(keys)


class Best:
    """The best weights so far by the validation's score, on every rank's CPU and in every checkpoint.

    step: after which they were validated, None before the first validation that counts; figures: of that validation;
    state: the generator's state dict, empty while step is None.
    """

    def __init__(self, validation: Validation) -> None:
        self.validation = validation
        self.step: int | None = None
        self.figures: dict[str, float] = {}
        self.state: dict[str, Tensor] = {}

    def offer(self, step: int, figures: dict[str, float], state: dict[str, Tensor]) -> bool:
        """Keep the weights if they are better than all before. Of equal ones the first stay."""
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
        """Take over what `progress` returned, and the weights from a file of a checkpoint; every rank must call it.

        Raises CheckpointError on every rank if the weights are missing or damaged for any of them.
        """
        self.step, self.figures = progress["step"], progress["figures"]
        with refused_together():
            if self.step is not None:
                self.state = best_weights(folder, name)


@dataclass
class Window:
    """Sums of a run's figures since its last record. They travel in checkpoints, so that resuming changes no record."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    waited: float = 0.0  # seconds until batches were there
    busy: float = 0.0  # seconds of steps, waiting included
    steps: int = 0

    def add(self, phase: Phase, metrics: dict[str, float], waited: float, seconds: float) -> None:
        """Add one step."""
        for name, value in metrics.items():
            key = f"{phase}/{name}"
            self.sums[key] = self.sums.get(key, 0.0) + value
            self.counts[key] = self.counts.get(key, 0) + 1
        self.waited += waited
        self.busy += seconds
        self.steps += 1

    def record(self, config: StepConfig) -> dict[str, float]:
        """Means per phase, learning rates of the networks that moved, and throughput by this rank's clock."""
        record = {key: total / self.counts[key] for key, total in self.sums.items()}
        rates = {
            Phase.PRETRAIN: config.pretrain_lr, Phase.CRITIC: config.critic_lr, Phase.GENERATOR: config.generator_lr,
        }  # fmt: skip
        for phase, rate in rates.items():
            if f"{phase}/loss" in record:
                record[f"{phase}/learning_rate"] = rate
        if self.busy > 0:
            record["throughput/steps_per_second"] = self.steps / self.busy
            record["throughput/patches_per_second"] = self.steps * config.batch_size / self.busy
            record["throughput/data_wait_share"] = self.waited / self.busy
        return record


def record_line(record: Mapping[str, float], phase: Phase, step: int, total: int) -> str:
    """A window's record for the terminal."""
    eta = int((total - step) / record["throughput/steps_per_second"])
    return (
        f"step {step:>7,}/{total:,} {phase:<9} loss {record[f'{phase}/loss']:.5f}  "
        f"{record['throughput/patches_per_second']:.1f} patches/s  "
        f"data wait {record['throughput/data_wait_share']:.0%}  "
        f"eta {eta // 3600}:{eta // 60 % 60:02d}:{eta % 60:02d}"
    )


@dataclass
class RunState:
    """The same on every rank, except for the clock in `window`.

    best: over all stages; stages: each stage's, where there are two. step: steps done, which is also the position in
    the stream; critic_norms: of the critic's gradient since its last picture; latest: figures of the last validation,
    with its step under `validated`.
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
        """Before the first step."""
        v, schedule = experiment.validation, experiment.schedule
        stages = [L1, ADVERSARIAL] if schedule.pretrain_steps else [ADVERSARIAL]
        return cls(schedule, Best(v), {stage: Best(v) for stage in stages if schedule.needs_critic})

    def offer(self, figures: dict[str, float], state: dict[str, Tensor]) -> bool:
        """Keep these weights of the present step if they are the best of their stage; whether they are of the run."""
        if (stage := self.stages.get(self.schedule.stage(self.step))) is not None:
            stage.offer(self.step, figures, state)
        return self.best.offer(self.step, figures, state)

    def weights(self) -> dict[str, Mapping[str, Tensor]]:
        """The best weights by the name of their file."""
        files = {BEST_WEIGHTS: self.best} | {best_of_stage(stage): best for stage, best in self.stages.items()}
        return {name: best.state for name, best in files.items() if best.state}

    def progress(self, networks: Networks, precision: str) -> dict[str, Any]:
        """For progress.json, with what depends on the hardware that the run began on and must not change."""
        return {
            "step": self.step, "best": self.best.progress(), "window": asdict(self.window),
            "critic_norms": self.critic_norms, "latest": self.latest, "batchnorm_over": networks.batchnorm_over,
            "precision": precision, "best_of_stage": {stage: best.progress() for stage, best in self.stages.items()},
        }  # fmt: skip

    def restore(self, progress: dict[str, Any], folder: Path) -> None:
        """Take over a checkpoint's progress, and the best weights from its folder; every rank must call it.

        Raises CheckpointError on every rank if those weights are missing or damaged for any of them.
        """
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
