"""The folder of a run. Only this module knows its file names, lock, recorded configuration and checkpoints.

A driver imports it before torch, which takes 2 s: what only workers do imports torch where it is done.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrisr.config import ConfigError, Experiment
from mrisr.config.loading import dump_experiment, load_experiment
from mrisr.config.paths import after_move
from mrisr.config.spaces import flat
from mrisr.engine.progress import PROGRESS, read_progress
from mrisr.files import locked, write_atomic
from mrisr.training.checkpoints import is_complete, remove
from mrisr.training.outcome import StorageStopped
from mrisr.training.progress import Tell
from voxelstore import VolumeStore

if TYPE_CHECKING:
    from mrisr.engine.networks import Networks

# Keys that may differ between a run and its resumption: they do not change the results so far.
_MAY_CHANGE = (
    "resources", "schedule.total_steps", "training.max_failures", "training.keep_checkpoints", "tracking",
    "tuning", "generator.recompute", "critic.samples_at_once", "training.compile", "stream.cpus_per_task",
    "stream.rounds",
    # The number of patches that BatchNorm normalises over must not change; it also depends on the hardware: see
    # refuse_other_batchnorm.
    "training.micro_batch", "validation.allow_trained_on",
)  # fmt: skip
_AUTO = "  precision: auto\n"
_WAS_AUTO = "  # auto became this on the first workers of this run"


class RunFolder:
    """The folder of one run, used by one driver at a time. Checkpoint names sort by step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "experiment.yaml"  # the resolved configuration, with what `auto` became
        self.mlflow_run = path / "mlflow_run_id.txt"
        self.outbox = path / "outbox"  # records that MLflow has not taken yet
        self.progress = path / "progress"  # records of a ProgressLog
        self.picture = path / "validation.png"  # of the last validation
        self.initial_weights = path / "initial.safetensors"
        self.published = path / "published.json"
        self.stop_request = path / "stop-requested"
        self.resize_request = path / "resize-requested"
        self.ray = path / "ray"  # of one group of workers; deleted with it, since Ray would resume from its own files
        self.lock = path / ".lock"
        self._dataset = path / "dataset.txt"
        self._precision = path / "precision.txt"  # only read: older versions kept there what `auto` became

    @classmethod
    def of(cls, experiment: Experiment) -> RunFolder:
        return cls(experiment.run_folder)

    @property
    def mlflow_run_id(self) -> str | None:
        return self.mlflow_run.read_text() if self.mlflow_run.exists() else None

    @property
    def dataset(self) -> str:
        """The fingerprint of the store that the run began with; empty if it is not recorded."""
        return self._dataset.read_text() if self._dataset.exists() else ""

    def locked(self) -> AbstractContextManager[None]:
        """Hold the run's lock until the process ends. Raises ConfigError if another process holds it."""
        return locked(
            self.lock,
            ConfigError(
                f"name = {self.path.name!r}: another process is training this run in {self.path}; wait for it, stop "
                "it, or use another name=..."
            ),
        )

    # Configuration

    def begin(self, experiment: Experiment, store: VolumeStore) -> None:
        """Write the configuration. If an earlier start with other settings left no checkpoint, delete its files."""
        same_data = self._dataset.exists() and self._dataset.read_text() == store.fingerprint()
        if self.continues(experiment) and (same_data or self.newest() is not None):
            return
        for file in (self.initial_weights, self.mlflow_run, self._precision, self.picture):
            file.unlink(missing_ok=True)
        for folder in (self.outbox, self.progress):
            shutil.rmtree(folder, ignore_errors=True)
        write_atomic(self._dataset, store.fingerprint())
        write_atomic(self.settings, dump_experiment(experiment))

    def continues(self, experiment: Experiment) -> bool:
        """Whether this experiment resumes an earlier start: there is a checkpoint, or the same configuration."""
        if not self.settings.exists():
            return False
        text = self.settings.read_text()
        as_given = re.sub(rf"  precision: \w+{_WAS_AUTO}\n", _AUTO, text)
        same = dump_experiment(experiment) in {as_given, text.replace(_WAS_AUTO, "")}
        return same or self.newest() is not None

    def refuse_other(self, experiment: Experiment, store: VolumeStore) -> None:
        """Raise ConfigError if the folder holds checkpoints of another configuration or of other data."""
        if not self.settings.exists() or self.newest() is None:
            return
        earlier = load_experiment(self.settings)
        before, now = (flat(one.model_dump(mode="json")) for one in (earlier, experiment))
        # The choice of `auto` is kept, even if this machine would choose another precision.
        key = "training.precision"
        before[key] = self.precision() or before[key]
        if now[key] == "auto":
            now[key] = before[key]
        was, here = before["output"], str(self.path.parent)
        may_change = {*_MAY_CHANGE}
        if earlier.training.lr_schedule != "constant":
            may_change.remove("schedule.total_steps")  # the learning rates so far depend on it
        changed = sorted(
            key for key in before.keys() | now.keys()
            # The folder may have been moved together with its store, which changes its paths.
            if now.get(key) not in (before.get(key), after_move(before.get(key), was, here))
            and not key.startswith(tuple(may_change))
        )  # fmt: skip
        name = self.path.name
        if changed:
            lines = [f"  {key}: was {before.get(key)!r}, now {now.get(key)!r}" for key in changed]
            raise ConfigError(
                f"name = {name!r}: {self.path} holds a run of another configuration:\n"
                + "\n".join(lines)
                + "\nUse the same values to resume it, or another name=... to start a new run"
            )
        had_critic = earlier.schedule.needs_critic
        if had_critic != experiment.schedule.needs_critic:
            raise ConfigError(
                f"schedule.total_steps = {experiment.schedule.total_steps}: run {name!r} "
                f"{'has' if had_critic else 'was started without'} an adversarial stage, and its checkpoints "
                f"{'hold' if had_critic else 'lack'} the critic; start a new run from its weights: "
                f"name=... generator.init_from={self.path}"
            )
        if self._dataset.exists() and self._dataset.read_text() != store.fingerprint():
            raise ConfigError(self.other_data(store.path))

    def other_data(self, store: Path) -> str:
        return (
            f"data.store = {store}: its subjects or splits have changed since run {self.path.name!r} began, so that it "
            "cannot be resumed exactly; use another name=... to start a new run, which may begin at its weights: "
            f"generator.init_from={self.path}"
        )

    def refuse_other_batchnorm(self, experiment: Experiment, gpu: bool) -> None:
        """Raise ConfigError if BatchNorm would normalise over another number of patches than in the checkpoints.

        gpu: whether the workers have GPUs, where BatchNorm may be synchronised; see StepConfig.batchnorm_over.
        """
        newest = self.newest()
        if newest is None:
            return
        from mrisr.training.build import step_config

        name, workers, batch = self.path.name, experiment.resources.workers, experiment.training.batch_size
        now = step_config(experiment).batchnorm_over(workers, gpu)
        before = read_progress(newest).get("batchnorm_over")
        if before is None:
            raise ConfigError(
                f"name = {name!r}: {newest} is of an older version, which did not record what BatchNorm normalised "
                f"over; start a new run from its weights: name=... generator.init_from={self.path}"
            )
        if before != now:
            most = max(n for n in range(1, workers + 1) if batch % (n * before) == 0)
            raise ConfigError(
                f"name = {name!r}: BatchNorm normalised over {before} patches in this run, and would over {now} with "
                f"{workers} workers on {'GPUs' if gpu else 'CPUs'}, which gives other numbers; to resume it set "
                f"training.micro_batch={before}{f' resources.workers={most}' if most != workers else ''} or use the "
                "hardware that it began on; to start a new run use another name=..."
            )

    # Precision

    def precision(self) -> str | None:
        """The run's precision: as configured, or as chosen by `auto`; None before that choice."""
        if not self.settings.exists():
            return None
        given = load_experiment(self.settings).training.precision
        if given != "auto":
            return given
        if self._precision.exists():
            return _valid(self._precision, self._precision.read_text().strip())
        newest = self.newest()
        recorded = None if newest is None else read_progress(newest).get("precision")
        return None if newest is None or recorded is None else _valid(newest / PROGRESS, recorded)

    def record_precision(self, precision: str) -> None:
        """Write the choice of `auto` into the configuration. Every rank must call it. Raises StorageStopped."""
        from mrisr.engine.sharding import rank
        from mrisr.training.checkpoint_writing import done_on_every_rank

        became = f"  precision: {precision}{_WAS_AUTO}\n"

        def write() -> None:
            write_atomic(self.settings, self.settings.read_text().replace(_AUTO, became, 1))

        try:
            done_on_every_rank(lambda: write() if rank() == 0 else None)
        except StorageStopped as error:
            raise StorageStopped(
                f"{self.settings} could not be written: {error}; free space, or give an output that all workers share, "
                "and run the same command"
            ) from None

    def as_recorded(self, experiment: Experiment) -> Experiment:
        """The experiment with the run's recorded precision; unchanged if none is recorded."""
        return experiment.changed({"training.precision": self.precision() or experiment.training.precision})

    # Checkpoints

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return [folder for folder in self._folders() if is_complete(folder)]

    def newest(self) -> Path | None:
        return next((folder for folder in reversed(self._folders()) if is_complete(folder)), None)

    def agreed_checkpoint(self, tell: Tell = print) -> Path | None:
        """The newest complete checkpoint that rank 0 finds. Every rank must call it when a group of workers starts.

        Rank 0 also deletes incomplete checkpoints of earlier groups and tells the names of damaged ones.
        """
        import torch.distributed as dist

        from mrisr.engine.sharding import rank, world_size

        box: list[Path | None] = [None]
        if rank() == 0:
            for torn in self.path.glob(".*.part"):
                shutil.rmtree(torn, ignore_errors=True)
            box = [newest := self.newest()]
            damaged = [folder.name for folder in self._folders() if newest is None or folder > newest]
            if damaged:
                tell(
                    f"{', '.join(damaged)} in {self.path} is damaged (a file is missing or cut short); going on from "
                    f"{newest.name if newest else 'the beginning'}"
                )
        if world_size() > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def write_checkpoint(
        self, step: int, networks: Networks, progress: dict[str, Any], files: Mapping[str, bytes]
    ) -> Path:
        """Write the checkpoint of a step with `write_folder`. Every rank must call it."""
        return self._write(f"checkpoint_{step:08d}", networks, progress, files)

    def write_failed_step(self, step: int, networks: Networks, progress: dict[str, Any]) -> Path:
        """Every rank must call it."""
        return self._write(f"nonfinite_{step:08d}", networks, progress, {})

    @property
    def last_checkpoint(self) -> str:
        """What the next start goes on from, for messages."""
        newest = self.newest()
        return f"{newest.name} is the last checkpoint" if newest else "there is no checkpoint yet"

    def failed_steps(self) -> list[Path]:
        """The recorded steps with non-finite values, oldest first."""
        return sorted(self.path.glob("nonfinite_[0-9]*"))

    def remove_old_checkpoints(self, keep: int) -> None:
        """Delete all checkpoints except the newest `keep` complete ones. Only rank 0 calls it."""
        kept = self.checkpoints()[-keep:]
        for folder in self._folders():
            if kept and folder < kept[0]:
                remove(folder)

    def _write(self, name: str, networks: Networks, progress: dict[str, Any], files: Mapping[str, bytes]) -> Path:
        from mrisr.training.checkpoint_writing import write_folder

        try:
            return write_folder(self.path / name, networks, progress, files)
        except StorageStopped as error:
            newest = self.newest()
            raise StorageStopped(
                f"{error}. The last whole checkpoint is {newest.name if newest else 'none'}; free space, or mend what "
                "is named, and run the same command"
            ) from None

    def _folders(self) -> list[Path]:
        return sorted(self.path.glob("checkpoint_[0-9]*"))


def _valid(file: Path, recorded: str) -> str:
    if recorded not in ("bf16", "fp32"):
        raise ConfigError(f"{file}: {recorded!r} is no precision; it must be fp32 or bf16, as in the run's first lines")
    return recorded
