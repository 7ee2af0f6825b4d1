"""The precision of a run with training.precision = `auto`: its first workers choose it, and it never changes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from mrisr.config import Experiment
from mrisr.engine.precision import native_bf16, precision_on
from mrisr.engine.sharding import gather_texts, on_every_rank, rank
from mrisr.training.progress import Tell
from mrisr.training.run_folder import RunFolder


def resolve_precision(experiment: Experiment, device: torch.device, tell: Tell = print) -> Experiment:
    """The experiment with bf16 or fp32, the same on every rank. Every rank must call it.

    `auto` becomes bf16 if the devices of all ranks of the first group support it natively. The choice is recorded in
    the run's folder for later groups. Raises StorageStopped on every rank if it cannot be recorded.
    """
    folder, native = RunFolder.of(experiment), native_bf16(device)
    everywhere = on_every_rank(native, device)
    recorded = gather_texts((rank() == 0 and folder.precision()) or "")[0]
    precision = experiment.training.precision
    if precision == "auto":
        became: str = "bf16" if (recorded == "bf16" if recorded else everywhere) else "fp32"
        why = "as the run began" if recorded else f"bfloat16 is {'' if everywhere else 'not '}native to all workers"
        if rank() == 0:
            tell(f"training.precision: auto is {became}, {why}")
        if not recorded:
            folder.record_precision(became)
        precision = became
    if precision == "bf16" and device.type == "cpu" and not native:
        tell(
            f"training.precision: bf16, for which the CPU of rank {rank()} is not made (no AVX512-BF16): a step may "
            "take tens of times as long as in fp32, which a new run has with training.precision=auto"
        )
    return experiment.changed({"training.precision": precision})


class Assumed(NamedTuple):
    """The precision that a plan assumes, and the reason if the configuration does not set it."""

    precision: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.precision}{self.why and ', '}{self.why}"


def assumed_precision(experiment: Experiment) -> Assumed:
    """The configured precision, else that of the run that this start would resume, else `precision_here`."""
    folder = RunFolder.of(experiment)
    if experiment.training.precision == "auto" and folder.continues(experiment):
        known = folder.precision()
        if known is not None:
            return Assumed(known, "as the run began")
    return precision_here(experiment)


def precision_here(experiment: Experiment) -> Assumed:
    """The configured precision, or the choice of `auto` if the workers are like this machine."""
    precision, gpus = experiment.training.precision, experiment.resources.gpus
    if precision != "auto":
        return Assumed(precision)
    has_gpu = torch.cuda.is_available()
    if gpus and not has_gpu:
        return Assumed("fp32", "which needs more than bf16, since there is no GPU here to ask")
    device = torch.device("cuda" if has_gpu and gpus is not False else "cpu")
    return Assumed(precision_on("auto", device), "if the workers are like this machine")
