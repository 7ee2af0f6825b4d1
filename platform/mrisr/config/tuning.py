"""The `tuning` section of an experiment file: how `mrisr tune` searches. Search spaces stand at the keys themselves."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mrisr.config.fields import Positive, Section, one_of
from mrisr.degradation import PROTOCOLS
from mrisr.metrics import METRICS

Metric = Annotated[str, one_of(METRICS, "metric")]
Protocol = Annotated[str, one_of(PROTOCOLS, "protocol")]


class Tuning(Section):
    trials: Positive = Field(32, description="trials of the search, failed and stopped ones included")
    concurrent: Positive | None = Field(None, description="trials at a time; null: as many as the cluster has room for")
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1, max_length=2)] = Field(
        ("psnr",), description="figure that scores a trial; two of them: a Pareto front"
    )
    protocols: tuple[Protocol, ...] = Field(
        (), description="score = mean over these protocols; empty: validation.protocol alone"
    )
    sampler: Literal["tpe", "multivariate", "cmaes", "random", "grid"] = Field(
        "tpe", description="Optuna sampler; multivariate: TPE that models keys together"
    )
    startup_trials: Positive = Field(10, description="random trials before TPE or CMA-ES models the results")
    grid_points: Annotated[int, Field(ge=2, le=1000)] = Field(3, description="grid: points per numeric range")
    scheduler: Literal["asha", "median", "none"] = Field("asha", description="how bad trials are stopped early")
    grace_steps: Positive | None = Field(
        None, description="no trial is stopped before this step; null: total_steps / reduction^2, at a validation"
    )
    reduction: Annotated[float, Field(gt=1)] = Field(4.0, description="asha: one of so many trials passes each rung")
    points: tuple[dict[str, Any], ...] = Field(
        (), description="further known-good points, dotted key: value, tried after the fixed values"
    )
    learn_from: tuple[str, ...] = Field(
        (), description="folders of earlier searches of the same experiment, whose results the sampler is told first"
    )
    shared_pretraining: bool = Field(
        False, description="run the L1 stage once, with the fixed values, and start every trial from its best weights"
    )
    winner: Literal["as_is", "retrain"] = Field(
        "as_is", description="what is registered: the trial, or a new run of it"
    )
    storage: str = Field(
        "sqlite", pattern=r"^(sqlite|journal|.+://.+)$", description="Optuna study: sqlite, journal, or a database URL"
    )
    max_failures: int = Field(0, ge=0, description="restarts of a trial after a lost worker before it counts as failed")
