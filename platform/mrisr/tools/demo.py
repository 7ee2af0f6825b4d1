"""The whole pipeline on a few volumes, with the functions of the single verbs."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from mrisr.config import ConfigError, Experiment, load_experiment

if TYPE_CHECKING:
    from mrisr.training.publishing import Published
    from voxelstore import VolumeStore

CONFIG, SEARCH_CONFIG = "demo", "demo-tune"
SUBJECTS = 6


def home_of(data: Path | None, home: Path) -> Path:
    """The demo's folder below `home` for a data folder; it depends only on the resolved path of `data`."""
    if data is None:
        return home / "icbm152"
    path = data.resolve()
    return home / f"{path.name or 'data'}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def write_low_resolution(store: VolumeStore, subject: str, protocol: str, path: Path) -> None:
    """Write a subject, degraded by the protocol, on its grid, in the space and type of its source file."""
    from mrisr.degradation import PROTOCOLS, degrade
    from voxelstore import write_volume

    low = degrade(store.read_normalised(subject), PROTOCOLS[protocol])
    write_volume(path, store.record(subject).intensity.restore(low), like=store.source(subject))


def run_demo(data: Path | None, home: Path, overrides: list[str]) -> None:
    """Volumes -> store -> training -> registry -> table, pictures and a super-resolved file.

    data: a folder of volumes, or None for a cohort derived from the ICBM152 template. Results go to a folder below
    `home`, one per data folder. A second run skips finished steps; with added or replaced volumes it trains a new run.
    """
    console = Console(highlight=False)
    experiment, home = _prepared(CONFIG, data, home, overrides, console, of=5)

    from mrisr.training.publishing import publish
    from mrisr.training.run import train

    _heading(console, f"3/5  train with FSDP on {experiment.resources.workers} workers: L1, then WGAN-GP")
    run = train(experiment)

    _heading(console, "4/5  validate on whole volumes and register")
    published = publish(run)
    for one in published:
        console.print("\n".join(one.lines()), markup=False, soft_wrap=True)

    _heading(console, "5/5  evaluate on the held-out test subjects")
    _evaluate(run.experiment, published, home, console)


def run_demo_search(data: Path | None, home: Path, overrides: list[str]) -> None:
    """Volumes -> store, as `run_demo`, then a search of minutes for the penalty's weight and the zeroing range."""
    console = Console(highlight=False)
    experiment, _ = _prepared(SEARCH_CONFIG, data, home, overrides, console, of=3)

    from mrisr.tuning.winner import tune

    _heading(console, "3/3  search: Optuna proposes, ASHA stops bad trials early")
    tune(SEARCH_CONFIG, [f"name={experiment.name}", *overrides])


def _prepared(
    config: str, data: Path | None, home: Path, overrides: list[str], console: Console, of: int
) -> tuple[Experiment, Path]:
    """The experiment on a converted store, and the demo's folder for these volumes, which becomes MRISR_HOME. of: the
    number of steps in the headings.
    """
    _check(data, home)
    home = home_of(data, home)
    os.environ["MRISR_HOME"] = str(home)
    _heading(console, f"1/{of}  data")
    data = _volumes(data, home, console)

    from mrisr import cluster
    from mrisr.data.conversion import convert_folder
    from voxelstore import VolumeStore

    experiment = load_experiment(config, overrides)
    _heading(console, f"2/{of}  convert to Zarr")
    cluster.connect()
    summary = convert_folder(data, experiment.data)
    console.print("\n".join(summary.lines()), markup=False, soft_wrap=True)
    # A run cannot be resumed on other volumes, so other volumes get a new run.
    fingerprint = VolumeStore.open(experiment.data.store).fingerprint()
    return load_experiment(config, [f"name={config}-{fingerprint[:8]}", *overrides]), home


def _heading(console: Console, text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]")


def _check(data: Path | None, home: Path) -> None:
    if data is not None and home.resolve().is_relative_to(data.resolve()):
        raise ConfigError(
            f"--data {data}: holds --home {home} as well, so that the demo would take its own output for volumes; give "
            "the folder that holds the volumes alone, or another --home"
        )
    if data is not None and not data.is_dir():
        raise ConfigError(f"--data {data}: is not a folder; give the folder that holds your NIfTI volumes")


def _volumes(data: Path | None, home: Path, console: Console) -> Path:
    if data is not None:
        console.print(f"the volumes of {data}", markup=False, soft_wrap=True)
        return data
    from mrisr.tools.demo_cohort import make_cohort

    data = home / "cohort"
    with console.status("deriving a small cohort from the ICBM152 template"):
        make_cohort(data, SUBJECTS, seed=0)
    console.print(
        f"{SUBJECTS} volumes derived from one template (ICBM152, 1 mm T1) in {data}", markup=False, soft_wrap=True
    )
    return data


def _evaluate(experiment: Experiment, versions: list[Published], home: Path, console: Console) -> None:
    """Evaluate on the test split, then print the table, where everything is, and the next command to try. versions: one
    per stage, the best first; pictures and the command are of the first.
    """
    from mrisr.evaluation.cluster_tasks import evaluate_on_cluster, log_evaluation
    from mrisr.evaluation.result import combined
    from mrisr.evaluation.subject import Evaluation
    from mrisr.inference.model import load_model
    from mrisr.tracking.redaction import mask_secrets

    evaluation = Evaluation.of(experiment, "test", consistency=True)
    store, protocol = evaluation.store, evaluation.protocol
    results = {}
    for one in versions:
        model = load_model(one.model_uri, one.tracking_uri)
        results[one.stage] = result = evaluate_on_cluster(evaluation, model.generator, console, model.trained_on)
        csv = result.write_csv(home / "evaluation" / f"test-version-{one.version}.csv")
        log_evaluation(result, csv, one.tracking_uri, one.run_id, one.version)
    published, (result, *_) = versions[0], results.values()
    pictures = result.write_pictures(home / "evaluation")
    subject, low = result.subjects[0].subject, home / "low_resolution.nii.gz"
    write_low_resolution(store, subject, protocol, low)

    console.print()
    console.print(combined(results).table())
    model_uri = f"models:/{published.name}@{published.alias}" if published.promoted else published.model_uri
    tools, uri = Path(sys.executable).parent, mask_secrets(published.tracking_uri)
    command = [str(tools / "mrisr"), "superresolve", "--model", model_uri, "--tracking-uri", uri]
    command += ["--data-consistency", protocol, "--overwrite", str(low), str(home / "superresolved.nii.gz")]
    for label, text in (
        *(("model", f"{one.name} version {one.version}, {one.stage} ({one.decision})") for one in versions),
        ("pictures", ", ".join(str(path) for path in pictures)),
        ("figures", str(home / "evaluation" / "test-version-*.csv")),
        ("curves", f"{tools / 'mlflow'} ui --backend-store-uri {uri}"),
        ("original", store.record(subject).source),
        ("next", shlex.join(command)),
    ):
        console.print(f"{label:<9} {text}", markup=False, soft_wrap=True)
    if not (result.beats_input("psnr") and result.beats_input("ssim")):
        console.print(
            "The model does not beat its own input: it has not super-resolved anything yet.", style="bold red"
        )
