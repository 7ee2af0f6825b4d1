"""Validation during training. It uses the same cubes of the same subjects and the same protocol every time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from mrisr.config.validation import Validation
from mrisr.data.patches import cut, sample_corners
from mrisr.degradation import PROTOCOLS, degrade
from mrisr.evaluation.pictures import validation_figure
from mrisr.metrics import METRICS, measure
from mrisr.metrics.gain import least_squares_gain
from voxelstore import VolumeStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Cubes depend only on this seed and the subject's name, so that every run is validated on the same cubes.
CUBE_SEED = 20180304
# Rounding makes the cubes bit-equal on every machine. Float64 Fourier transforms differ between processors by 1e-15;
# the steps of 2^-16 (96 dB below a unit range) are much larger.
LR_STEPS = 2**16


@dataclass(frozen=True)
class Cubes:
    """The normalised validation cubes of one subject: lr, hr (n, P, P, P) float32; lr in steps of 2^-16.

    gain: the factor that fits the whole low-resolution volume best to the high-resolution one.
    """

    subject: str
    lr: np.ndarray
    hr: np.ndarray
    gain: float


def subject_cubes(store: VolumeStore, subject: str, protocol: str, patch: int, count: int) -> Cubes:
    """Degrade the whole volume under the protocol and cut `count` cubes that contain foreground."""
    record = store.record(subject)
    rng = np.random.default_rng([CUBE_SEED, *subject.encode()])
    corners = sample_corners(
        store.foreground(subject), record.mask_block, record.shape, patch, count, min_foreground=0.7, rng=rng
    )
    hr = store.read_normalised(subject)
    lr = degrade(hr, PROTOCOLS[protocol], np.float64)
    gain = least_squares_gain(hr, lr)
    lr = (np.rint(lr * LR_STEPS) / LR_STEPS).astype(np.float32)
    lr_cubes, hr_cubes = (np.stack([cut(volume, corner, patch) for corner in corners]) for volume in (lr, hr))
    return Cubes(subject, lr_cubes, hr_cubes, gain)


class Validator:
    """One rank's share of the validation subjects, read once. Every rank makes a Validator and calls `run`."""

    def __init__(
        self, store: VolumeStore, subjects: list[str], protocol: str, patch: int, count: int, rank: int, world_size: int
    ) -> None:
        mine = subjects[rank::world_size]
        self.world_size = world_size
        self.cubes = [subject_cubes(store, subject, protocol, patch, count) for subject in mine]
        self.input = self._mean_over_subjects({c.subject: _scores(c.hr, c.lr) for c in self.cubes})
        corrected = {c.subject: _scores(c.hr, c.lr * np.float32(c.gain)) for c in self.cubes}
        self.corrected = self._mean_over_subjects(corrected)

    def run(
        self, generator: nn.Module, device: torch.device, precision: str = "fp32"
    ) -> tuple[dict[str, float], Figure | None]:
        """The mean of every metric over all ranks' subjects, for the generator's output and for its input.

        generator: a plain module in evaluation mode, equal on every rank; precision: see superresolve_cube. Returns
        figures that are equal on every rank, and a picture of this rank's first cube (None without subjects). Keys:
        `psnr`, `input_psnr`, `gain_corrected_psnr`, `psnr_gain` (over the gain-corrected input), ...
        """
        scores: dict[str, dict[str, float]] = {}
        figure = None
        for cubes in self.cubes:
            outputs = np.stack([superresolve_cube(generator, lr, device, precision) for lr in cubes.lr])
            scores[cubes.subject] = _scores(cubes.hr, outputs)
            if figure is None:
                figure = validation_figure(cubes.lr[0], outputs[0], cubes.hr[0])
        figures = self._mean_over_subjects(scores)
        result = dict(figures)
        for key, value in figures.items():
            result[f"input_{key}"] = self.input[key]
            result[f"gain_corrected_{key}"] = self.corrected[key]
            result[f"{key}_gain"] = value - self.corrected[key]
        return result, figure

    def _mean_over_subjects(self, mine: dict[str, dict[str, float]]) -> dict[str, float]:
        """The mean over all ranks' subjects, summed in the order of their names so that it is equal on every rank."""
        parts = [mine]
        if self.world_size > 1:
            parts = [{} for _ in range(self.world_size)]
            dist.all_gather_object(parts, mine)
        every = {subject: figures for part in parts for subject, figures in part.items()}
        return _mean([every[subject] for subject in sorted(every)])


def validators(v: Validation, store: VolumeStore, rank: int, world_size: int) -> dict[str, Validator]:
    """A rank's validators by protocol. The experiment's own protocol comes first."""
    subjects = store.subjects(v.split)[: v.max_subjects]
    return {
        protocol: Validator(store, subjects, protocol, v.patch_size, v.patches_per_subject, rank, world_size)
        for protocol in dict.fromkeys((v.protocol, *v.further_protocols, *v.mean_over))
    }


def validate(
    validators: Mapping[str, Validator], generator: nn.Module, device: torch.device, precision: str
) -> tuple[dict[str, float], Figure | None]:
    """Figures and picture of the first protocol; other figures have the prefix `PROTOCOL/`. See Validator.run."""
    (figures, picture), *others = (v.run(generator, device, precision) for v in validators.values())
    for protocol, (further, _) in zip(list(validators)[1:], others, strict=True):
        figures |= {f"{protocol}/{key}": value for key, value in further.items()}
    return figures, picture


@torch.no_grad()
def superresolve_cube(
    generator: nn.Module, lr: np.ndarray, device: torch.device, precision: str = "fp32"
) -> np.ndarray:
    """Apply the network to one whole cube: (P, P, P) -> (P, P, P) float32. bf16 runs under autocast."""
    x = torch.from_numpy(lr)[None, None].to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        return generator(x)[0, 0].float().cpu().numpy()


def _scores(references: np.ndarray, estimates: np.ndarray) -> dict[str, float]:
    if not np.isfinite(estimates).all():
        return dict.fromkeys(METRICS, math.nan)  # in the mean of all ranks, so that all of them stop together
    return _mean([measure(*pair) for pair in zip(references, estimates, strict=True)])


def _mean(figures: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([f[key] for f in figures])) for key in figures[0]}
