"""Every method on the same whole volumes, degraded by one fixed protocol: the work per subject.

Methods: the zero-filled input, a cubic spline (where the protocol keeps a smaller grid), the model, and the
model with data consistency. Regions: the whole volume, and the foreground (the store's coarse mask).
Intensities are normalised by the subject's recorded map; data_range is 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from torch import nn

from mrisr.degradation import Degradation, degrade, enforce_consistency
from mrisr.evaluation.interpolation import cubic_spline
from mrisr.evaluation.pictures import central_slice
from mrisr.evaluation.result import (
    CONSISTENT,
    CUBIC,
    INPUT,
    MODEL,
    Scores,
    SubjectResult,
)
from mrisr.inference.sliding_window import InferenceOptions
from mrisr.metrics import measure_regions
from voxelstore import VolumeStore


def foreground_mask(store: VolumeStore, subject: str) -> np.ndarray:
    """The store's coarse foreground, voxel by voxel: bool (D, H, W)."""
    record = store.record(subject)
    mask = store.foreground(subject)
    for axis in range(3):
        mask = mask.repeat(record.mask_block, axis=axis)
    return mask[tuple(slice(0, n) for n in record.shape)]


def _estimates(
    lr: np.ndarray,
    degradation: Degradation,
    generator: nn.Module | None,
    infer: Callable[[nn.Module], np.ndarray],
    consistency: bool,
) -> Iterator[tuple[str, np.ndarray]]:
    """Each method's volume, made when it is asked for."""
    yield INPUT, lr
    spline = cubic_spline(lr, degradation)
    if spline is not None:
        yield CUBIC, spline
    del spline
    if generator is not None:
        estimate = infer(generator)
        yield MODEL, estimate
        if consistency:
            yield CONSISTENT, enforce_consistency(estimate, lr, degradation)


def evaluate_subject(
    store: VolumeStore,
    subject: str,
    degradation: Degradation,
    generator: nn.Module | None = None,
    options: InferenceOptions | None = None,
    consistency: bool = False,
) -> SubjectResult:
    """Degrade one subject, restore it by every method and measure. Arguments and result can be sent to a Ray
    task.

    generator: a plain network (not sharded: ranks have different numbers of windows), or None for the input
    and the spline only. consistency: also the model with its kept band taken from the input.
    The result holds central slices, not volumes.
    """
    started = time.perf_counter()
    options = options or InferenceOptions()
    hr = store.read_normalised(subject)
    mask = foreground_mask(store, subject)
    lr = degrade(hr, degradation)
    model_seconds = 0.0

    def infer(network: nn.Module) -> np.ndarray:
        nonlocal model_seconds
        began = time.perf_counter()
        result = options.run(network, lr)
        model_seconds = time.perf_counter() - began
        return result

    scores: dict[str, Scores] = {}
    slices = {"high": central_slice(hr).copy()}
    for method, estimate in _estimates(lr, degradation, generator, infer, consistency):
        scores[method] = measure_regions(hr, estimate, {"whole": None, "foreground": mask})
        slices[method] = central_slice(estimate).copy()
    return SubjectResult(subject, scores, slices, time.perf_counter() - started, model_seconds)
