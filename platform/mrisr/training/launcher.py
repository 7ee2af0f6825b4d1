"""The actor that runs `fit()`, and the function that Ray Train calls in every worker.

The processes of the launcher and of Ray's controller import this module again for every group of workers. So the
imports that only workers need are inside `run_worker`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer

from mrisr import cluster
from mrisr.training.outcome import Ending
from mrisr.training.worker_settings import WorkerSettings


class Launcher:
    """Runs `fit()` outside the driver, where `fit()` would replace the Ctrl-C handler. Killing it ends its workers."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)  # Ray Train passes these on to the workers
        cluster.quiet()

    def fit(
        self, workers: int, settings: WorkerSettings, storage: Path, callbacks: tuple[Any, ...]
    ) -> tuple[Ending, TrainingFailedError | None]:
        """Train one group of workers. Returns why it ended, or the error that ended it."""
        no_restarts = {"max_failures": 0, "controller_failure_limit": 0}
        if hasattr(ray.train.FailureConfig, "max_preemption_failures"):  # since Ray 2.60
            no_restarts["max_preemption_failures"] = 0
        trainer = TorchTrainer(
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
    from mrisr.training.worker import train_worker  # takes 1.4 s of a core, which only workers need

    return train_worker(WorkerSettings(**config))
