"""One subject of an evaluation: every method on the same whole volume, degraded by one fixed protocol.

Methods: the zero-filled input, the input times its best gain (the baseline), a cubic spline (if the protocol keeps a
smaller grid), the model, and the model with data consistency. Regions: the whole volume, and the foreground (the
store's coarse mask). Intensities are normalised by the subject's recorded map; data_range is 1.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from mrisr.config import Experiment
from mrisr.config.validation import protocol_named
from mrisr.data.checks import open_store
from mrisr.degradation import Degradation, degrade, enforce_consistency
from mrisr.evaluation.interpolation import cubic_spline
from mrisr.evaluation.pictures import central_slice
from mrisr.evaluation.result import CONSISTENT, CORRECTED, CUBIC, INPUT, MODEL, Scores, SubjectResult
from mrisr.inference.whole_volume import InferenceOptions, superresolve_array
from mrisr.metrics import measure_regions
from mrisr.metrics.gain import least_squares_gain
from voxelstore import VolumeStore


@dataclass(frozen=True)
class Evaluation:
    """The settings of an evaluation. Raises ConfigError for an unknown protocol.

    consistency: also the model with its kept band taken from the input. gpu: a GPU per subject; None: if the cluster
    has GPUs that torch can use. allow_trained_on: mark training subjects instead of refusing them.
    """

    store: VolumeStore
    split: str
    protocol: str
    options: InferenceOptions = field(default_factory=lambda: InferenceOptions(precision="auto"))
    consistency: bool = False
    gpu: bool | None = None
    allow_trained_on: bool = False

    def __post_init__(self) -> None:
        protocol_named(self.protocol)

    @classmethod
    def of(cls, experiment: Experiment, split: str, consistency: bool = False) -> Evaluation:
        v = experiment.validation
        options = InferenceOptions(precision=experiment.training.precision)
        gpu = experiment.resources.gpus
        return cls(open_store(experiment), split, v.protocol, options, consistency, gpu, v.allow_trained_on)

    @property
    def degradation(self) -> Degradation:
        return protocol_named(self.protocol)


def evaluate_subject(evaluation: Evaluation, subject: str, generator: nn.Module | None = None) -> SubjectResult:
    """Degrade one subject, restore it by every method and measure. Arguments and result can be sent to a Ray task.

    generator: a plain network (not sharded, because ranks have different subjects), or None for the input and
    the spline only. The result holds central slices, not volumes.
    """
    started = time.perf_counter()
    degradation = evaluation.degradation
    hr = evaluation.store.read_normalised(subject)
    regions = {"whole": None, "foreground": foreground_mask(evaluation.store, subject)}
    lr = degrade(hr, degradation)
    scores: dict[str, Scores] = {}
    slices = {"high": central_slice(hr).copy()}

    def add(method: str, estimate: np.ndarray) -> None:
        scores[method] = measure_regions(hr, estimate, regions)
        slices[method] = central_slice(estimate).copy()

    # In a loop, so that only one estimate at a time is in memory.
    add(INPUT, lr)
    gain = least_squares_gain(hr, lr)
    if gain == 1:
        scores[CORRECTED], slices[CORRECTED] = scores[INPUT], slices[INPUT]
    else:
        add(CORRECTED, lr * np.float32(gain))
    if (spline := cubic_spline(lr, degradation)) is not None:
        add(CUBIC, spline)
    del spline
    model_seconds = 0.0
    if generator is not None:
        began = time.perf_counter()
        estimate = superresolve_array(generator, lr, evaluation.options)
        model_seconds = time.perf_counter() - began
        add(MODEL, estimate)
        if evaluation.consistency:
            add(CONSISTENT, enforce_consistency(estimate, lr, degradation))
    return SubjectResult(subject, scores, slices, time.perf_counter() - started, model_seconds)


def foreground_mask(store: VolumeStore, subject: str) -> np.ndarray:
    """The store's coarse foreground per voxel: bool (D, H, W)."""
    record = store.record(subject)
    mask = store.foreground(subject)
    for axis in range(3):
        mask = mask.repeat(record.mask_block, axis=axis)
    return mask[tuple(slice(0, n) for n in record.shape)]
