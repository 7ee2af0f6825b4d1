from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mrisr import cluster
from mrisr.config import Experiment


class WorkerSettings(NamedTuple):
    """dataset: the store's fingerprint; initial_weights: safetensors file, None for seeded weights; node_cpus: logical
    CPUs of the smallest node for this run; runs: a search's runs on this cluster; driver_cpus: of each run's driver.
    """

    experiment: Experiment
    tracking_uri: str
    mlflow_run_id: str
    dataset: str
    initial_weights: Path | None
    share: cluster.Share
    node_cpus: int
    runs: int = 1
    driver_cpus: float = 0.0
