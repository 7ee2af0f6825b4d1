"""Every method on the same whole volumes, degraded by one fixed protocol: the work per subject, and the loop.

Methods: the zero-filled input, a cubic spline (where the protocol keeps a smaller grid), the model, and the
model with data consistency. Regions: the whole volume, and the foreground (the store's coarse mask).
Intensities are normalised by the subject's recorded map; data_range is 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from torch import nn

from mrisr.degradation import Degradation, degrade, enforce_consistency
from mrisr.evaluation_result import (
    CONSISTENT,
    CUBIC,
    INPUT,
    MODEL,
    EvaluationResult,
    Scores,
    SubjectResult,
)
from mrisr.inference import InferenceOptions, Progress
from mrisr.interpolation import cubic_spline
from mrisr.metrics import region_metrics
from mrisr.pictures import central_slice
from voxelstore import VolumeStore

__all__ = ["EvaluationResult", "SubjectResult", "evaluate_store", "evaluate_subject", "foreground_mask"]


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
    progress: Progress | None = None,
) -> SubjectResult:
    """Degrade one subject, restore it by every method and measure. Arguments and result can be sent to a Ray
    task.

    generator: a plain network (not sharded: ranks have different numbers of windows), or None for the input
    and the spline only. consistency: also the model with its kept band taken from the input.
    progress: called with (windows done, windows in total). The result holds central slices, not volumes.
    """
    started = time.perf_counter()
    options = options or InferenceOptions()
    hr = store.read_normalised(subject)
    mask = foreground_mask(store, subject)
    lr = degrade(hr, degradation)
    box = store.record(subject).foreground_box
    model_seconds = 0.0

    def infer(network: nn.Module) -> np.ndarray:
        nonlocal model_seconds
        began = time.perf_counter()
        result = options.run(network, lr, box, progress)
        model_seconds = time.perf_counter() - began
        return result

    scores: dict[str, Scores] = {}
    slices = {"high": central_slice(hr).copy()}
    for method, estimate in _estimates(lr, degradation, generator, infer, consistency):
        scores[method] = region_metrics(hr, estimate, {"whole": None, "foreground": mask})
        slices[method] = central_slice(estimate).copy()
    return SubjectResult(subject, scores, slices, time.perf_counter() - started, model_seconds)


def _advance(bar: RichProgress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def evaluate_store(
    store: VolumeStore,
    split: str,
    protocol: Degradation,
    protocol_name: str,
    generator: nn.Module | None = None,
    options: InferenceOptions | None = None,
    consistency: bool = False,
    show_progress: bool = True,
    on_subject: Callable[[SubjectResult], None] | None = None,
) -> EvaluationResult:
    """Evaluate every subject of a split, in this process, one after the other.

    protocol, protocol_name: an entry of `degradation.PROTOCOLS` (validation never moves). show_progress: a
    bar of windows and a line per subject with its seconds. on_subject: called after each subject, for
    logging.
    Raises ValueError if the split is empty.
    """
    subjects = store.subjects(split)
    if not subjects:
        raise ValueError(f"split {split!r} of {store.path} holds no subject; the splits are {sorted(store.splits())}")
    results = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with RichProgress(*columns, transient=True, disable=not show_progress) as bar:
        overall = bar.add_task(f"evaluating {protocol_name}", total=len(subjects))
        for subject in subjects:
            windows = bar.add_task(f"  {subject}, windows", total=None)
            result = evaluate_subject(
                store,
                subject,
                protocol,
                generator,
                options,
                consistency,
                partial(_advance, bar, windows),
            )
            results.append(result)
            bar.remove_task(windows)
            bar.advance(overall)
            if show_progress:
                bar.console.print(result.describe(), soft_wrap=True, markup=False, highlight=False)
            if on_subject is not None:
                on_subject(result)
    return EvaluationResult(protocol_name, protocol.describe(), split, store.fingerprint(split), tuple(results))
