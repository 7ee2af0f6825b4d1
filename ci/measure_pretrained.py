"""The table of a model card: what weights gain over their input on people that they were not trained on.

    python ci/measure_pretrained.py MODEL FOLDER NAME=PLANES ...

MODEL: as for `mrisr evaluate`. FOLDER: NIfTI volumes. NAME=PLANES, `sub-open*=12` for example: the volumes of that name
have their planes along axes 1 and 2, where their resolution is that of their voxels. Prints a Markdown table: the mean
gain in dB over the gain-corrected input, its 95 % bootstrap interval over people, and the smallest gain of a person.
"""

from __future__ import annotations

import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from torch import nn

from mrisr import cluster
from mrisr.config import load_experiment
from mrisr.data.conversion import convert_folder
from mrisr.data.training_subjects import seen_in_training
from mrisr.evaluation.result import CONSISTENT, CORRECTED, CUBIC, MODEL, REGIONS
from mrisr.evaluation.subject import Evaluation, evaluate_subject
from mrisr.inference.model import load_model
from mrisr.metrics.bootstrap import bootstrap_interval
from voxelstore import VolumeStore

PROTOCOLS = ("chen2018", "hz2538")


def main(name: str, folder: str, *planes: str) -> None:
    model, axes = load_model(name, None), dict(each.split("=") for each in planes)
    with tempfile.TemporaryDirectory() as scratch:
        data = load_experiment(None, [f"data.store={scratch}/store.zarr", "data.splits={test: 1.0}"]).data
        cluster.connect()
        convert_folder(Path(folder), data)
        store = VolumeStore.open(data.store)
        if seen := seen_in_training(store, store.subjects(), model.trained_on):
            raise SystemExit(f"{name} was trained on {', '.join(seen)}")
        print("| protocol | region | method | gain, dB | 95 % interval | least | SSIM of input and method |")
        print("|---|---|---|---|---|---|---|")
        for protocol in PROTOCOLS:
            table(store, protocol, axes, model.generator)


def table(store: VolumeStore, protocol: str, axes: dict[str, str], generator: nn.Module) -> None:
    scores = []
    for subject in store.subjects():
        along = next(found for pattern, found in axes.items() if fnmatch(subject, pattern))
        own = protocol if along == "12" else f"{protocol}-axes{along}"
        scores.append(evaluate_subject(Evaluation(store, "test", own, consistency=True), subject, generator).scores)
        print(f"{subject} {own} done", file=sys.stderr, flush=True)
    for region in REGIONS:
        for method in (CUBIC, MODEL, CONSISTENT):
            gains = [each[method][region]["psnr"] - each[CORRECTED][region]["psnr"] for each in scores]
            mean, low, high = bootstrap_interval(gains, seed=0)
            ssim = [sum(each[m][region]["ssim"] for each in scores) / len(scores) for m in (CORRECTED, method)]
            print(
                f"| {protocol} | {region} | {method} | {mean:+.2f} | {low:+.2f} to {high:+.2f} | {min(gains):+.2f} | "
                f"{ssim[0]:.4f}, {ssim[1]:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
