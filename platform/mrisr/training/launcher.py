"""The actor that runs `fit()`, and the function that Ray Train calls in every worker.

Drivers import this module, and so does every process of Ray Train. So what only one of them needs is imported where it
is used: Ray Train takes 0.6 s of a core, torch and the worker 3 s.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrisr import cluster
from mrisr.collector import collect_rarely, collecting_rarely
from mrisr.training.outcome import Ending
from mrisr.training.placement_groups import note_group
from mrisr.training.run_folder import RunFolder
from mrisr.training.worker_settings import WorkerSettings

if TYPE_CHECKING:
    from ray.train import TrainingFailedError


def start_launcher() -> Any:
    """A Launcher on this driver's machine, whose process starts and imports while the driver goes on."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    environment = {key: value for key, value in os.environ.items() if key.startswith("RAY_TRAIN_")}
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Launcher).remote(environment)


class Launcher:
    """Runs `fit()` outside the driver, where `fit()` would replace the Ctrl-C handler. Killing it ends its workers."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)  # Ray Train passes these on to the workers
        collect_rarely()
        from mrisr.training import trainer  # so that `fit` finds it

        assert trainer
        cluster.quiet()

    def fit(
        self, workers: int, settings: WorkerSettings, storage: Path, callbacks: tuple[Any, ...]
    ) -> tuple[Ending, TrainingFailedError | None]:
        """Train one group of workers. Returns why it ended, or the error that ended it."""
        import ray.train
        from ray.train import TrainingFailedError

        from mrisr.training.trainer import Trainer

        no_restarts = {"max_failures": 0, "controller_failure_limit": 0}
        if hasattr(ray.train.FailureConfig, "max_preemption_failures"):  # since Ray 2.60
            no_restarts["max_preemption_failures"] = 0
        trainer = Trainer(
            run_worker,
            train_loop_config=settings._asdict(),
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers, use_gpu=settings.share.gpu, resources_per_worker=settings.share.bundle
            ),
            run_config=ray.train.RunConfig(
                name=uuid.uuid4().hex,
                storage_path=str(storage),
                worker_runtime_env={"env_vars": cluster.worker_environment(settings.share.gpu)},
                failure_config=ray.train.FailureConfig(**no_restarts),
                logging_config=ray.train.LoggingConfig(log_level="WARNING"),
                callbacks=list(callbacks),
            ),
        )
        try:
            return trainer.fit().return_value, None
        except TrainingFailedError as error:
            return None, error


def run_worker(config: dict[str, Any]) -> Ending:
    import ray.train

    settings = WorkerSettings(**config)
    if ray.train.get_context().get_world_rank() == 0:
        with suppress(OSError):  # a full disk; the training itself tells what it cannot write
            note_group(RunFolder.of(settings.experiment).path)
    with collecting_rarely():
        from mrisr.training.worker import train_worker

    return train_worker(settings)
