"""Validation during training: the same cubes of the same subjects under a protocol that never changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch import nn

from mrisr.config.validation import Validation
from mrisr.data.patches import cut, sample_corners
from mrisr.degradation import PROTOCOLS, degrade
from mrisr.evaluation.pictures import validation_figure
from mrisr.metrics import METRICS, measure
from voxelstore import VolumeStore

# Cubes are chosen by this seed and the subject's name alone: a new experiment seed must not move the yardstick.
CUBE_SEED = 20180304
# The yardstick is the same to the bit everywhere. A transform's last bits differ between processors and libraries, so
# it is done in float64, where they are 1e-15, and rounded to this step, far larger (1.5e-5, 96 dB below a unit range).
LR_STEPS = 2**16


@dataclass(frozen=True)
class Cubes:
    """The validation cubes of one subject, normalised: lr, hr (n, P, P, P) float32; lr in steps of 2^-16."""

    subject: str
    lr: np.ndarray
    hr: np.ndarray


def subject_cubes(store: VolumeStore, subject: str, protocol: str, patch: int, count: int) -> Cubes:
    """Degrade the whole volume under the protocol and cut `count` cubes that hold foreground."""
    record = store.record(subject)
    rng = np.random.default_rng([CUBE_SEED, *subject.encode()])
    corners = sample_corners(
        store.foreground(subject), record.mask_block, record.shape, patch, count, min_foreground=0.7, rng=rng
    )
    hr = store.read_normalised(subject)
    lr = degrade(hr, PROTOCOLS[protocol], np.float64)
    lr = (np.rint(lr * LR_STEPS) / LR_STEPS).astype(np.float32)
    return Cubes(subject, *(np.stack([cut(v, c, patch) for c in corners]) for v in (lr, hr)))


class Validator:
    """A rank's share of the validation subjects, read once; `run` gives the mean over all ranks' subjects."""

    def __init__(
        self, store: VolumeStore, subjects: list[str], protocol: str, patch: int, count: int, rank: int, world_size: int
    ) -> None:
        mine = subjects[rank::world_size]
        self.cubes = [subject_cubes(store, subject, protocol, patch, count) for subject in mine]
        self.world_size = world_size
        self._input: dict[str, float] | None = None

    def run(
        self, generator: nn.Module, device: torch.device, precision: str = "fp32"
    ) -> tuple[dict[str, float], Figure | None]:
        """Mean PSNR, SSIM and NRMSE of the generator and, once per run, of the zero-filled input; every rank calls it.

        generator: a plain module in evaluation mode, equal on every rank; precision: see superresolve_cube. Returns the
        figures, equal on every rank, keyed `psnr`, `input_psnr`, `psnr_gain`, ..., and a picture of this rank's first
        cube (None without subjects).
        """
        scores: dict[str, dict[str, float]] = {}
        inputs: dict[str, dict[str, float]] = {}
        figure = None
        for cubes in self.cubes:
            outputs = [superresolve_cube(generator, lr, device, precision) for lr in cubes.lr]
            scores[cubes.subject] = _mean([measure(h, s) for h, s in zip(cubes.hr, outputs, strict=True)])
            if self._input is None:
                inputs[cubes.subject] = _mean([measure(h, x) for h, x in zip(cubes.hr, cubes.lr, strict=True)])
            if figure is None:
                figure = validation_figure(cubes.lr[0], outputs[0], cubes.hr[0])
        if self._input is None:
            self._input = _mean(_gathered(inputs, self.world_size))
        figures = _mean(_gathered(scores, self.world_size))
        result = dict(figures)
        for key, value in figures.items():
            result[f"input_{key}"] = self._input[key]
            result[f"{key}_gain"] = value - self._input[key]
        return result, figure


def validators(v: Validation, store: VolumeStore, rank: int, world_size: int) -> dict[str, Validator]:
    """A rank's validators by protocol, that of the experiment first."""
    subjects = store.subjects(v.split)[: v.max_subjects]
    return {
        protocol: Validator(store, subjects, protocol, v.patch_size, v.patches_per_subject, rank, world_size)
        for protocol in dict.fromkeys((v.protocol, *v.further_protocols, *v.mean_over))
    }


def validate(
    validators: Mapping[str, Validator], generator: nn.Module, device: torch.device, precision: str
) -> tuple[dict[str, float], Figure | None]:
    """Figures and picture of the first protocol, and under `PROTOCOL/` the figures of the others; see Validator.run."""
    (figures, picture), *others = (v.run(generator, device, precision) for v in validators.values())
    for protocol, (further, _) in zip(list(validators)[1:], others, strict=True):
        figures |= {f"{protocol}/{key}": value for key, value in further.items()}
    return figures, picture


@torch.no_grad()
def superresolve_cube(
    generator: nn.Module, lr: np.ndarray, device: torch.device, precision: str = "fp32"
) -> np.ndarray:
    """One cube through the network in one piece: (P, P, P) -> (P, P, P) float32.

    precision: bf16 under autocast, as whole volumes of such a run are evaluated; the image itself is float32 then too.
    """
    x = torch.from_numpy(lr)[None, None].to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        return generator(x)[0, 0].float().cpu().numpy()


def _gathered(mine: dict[str, dict[str, float]], world_size: int) -> list[dict[str, float]]:
    """The figures of every rank's subjects, in the order of their names, so that sums agree on every rank."""
    parts: list[dict[str, dict[str, float]] | None] = [mine]
    if world_size > 1:
        parts = [None] * world_size
        dist.all_gather_object(parts, mine)
    together = {subject: figures for part in parts if part for subject, figures in part.items()}
    return [together[subject] for subject in sorted(together)]


def _mean(figures: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([f[key] for f in figures])) for key in figures[0]}


def describe(figures: Mapping[str, float]) -> str:
    """Of `Validator.run`'s figures, for a terminal: `PSNR 30.02 dB (+0.45 dB over the input)`, metric by metric."""
    return "  ".join(
        f"{metric.label} {metric.text(figures[name])} ({metric.text(figures[f'{name}_gain'], '+')} over the input)"
        for name, metric in METRICS.items()
    )
