"""What a run's folder says about the run, without its store, MLflow or Ray."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from mrisr.config import ConfigError, Experiment, load_experiment
from mrisr.engine.checkpoint import read_progress
from mrisr.files import is_locked
from mrisr.training.progress import ProgressReader
from mrisr.training.run_folder import RunFolder

ACTIVE_WITHIN_S = 60.0  # where another machine's lock cannot be seen, a position this young means that it trains


class RunSummary(NamedTuple):
    """state: `begun` (no checkpoint yet), `training`, `stopped`, `finished` or `registered`. step: of the newest
    checkpoint, or of a running run now. best_step, figures: of the validation that chose its best weights (`psnr`,
    `psnr_gain`, ...; see Validator.run), None and empty before. volumes: the best weights' figures on whole volumes
    (`val_psnr`, `baseline_psnr`, ...), empty before they are registered. versions: models:/NAME/VERSION, champions with
    `*`.
    """

    experiment: Experiment
    folder: Path
    dataset: str
    state: str
    step: int
    best_step: int | None
    figures: dict[str, float]
    volumes: dict[str, float]
    versions: list[str]


def summarize_run(path: Path) -> RunSummary:
    """Raises ConfigError for a folder that holds no run."""
    folder = RunFolder(path)
    if not folder.settings.exists():
        raise ConfigError(f"{path}: holds no run; give a run's folder, or its name below $MRISR_HOME/runs")
    experiment = folder.as_recorded(load_experiment(folder.settings))
    newest = folder.newest()
    progress: dict[str, Any] = {} if newest is None else read_progress(newest)
    step, total = int(progress.get("step", 0)), experiment.schedule.total_steps
    published = json.loads(folder.published.read_text()) if folder.published.exists() else []
    versions = published if isinstance(published, list) else [published]
    position = ProgressReader(folder.progress, from_now=True).position()
    young = position is not None and time.time() - position.time < ACTIVE_WITHIN_S
    if step < total and (is_locked(folder.lock) or young):
        state, step = "training", max(step, position.step if position else 0)
    elif step >= total:
        state = "registered" if versions else "finished"
    else:
        state = "begun" if newest is None else "stopped"
    best = progress.get("best") or {"step": None, "figures": {}}
    names = [one["model_uri"] + ("*" if one["promoted"] else "") for one in versions]
    volumes = versions[0].get("figures", {}) if versions else {}
    return RunSummary(experiment, path, folder.dataset, state, step, best["step"], best["figures"], volumes, names)


def run_folders(output: Path) -> list[Path]:
    """The folders of the runs in a folder, by name, then those of the trials of the searches in it."""
    patterns = "*/experiment.yaml", "*-search/trials/*/experiment.yaml"
    return [file.parent for pattern in patterns for file in sorted(output.glob(pattern))]
