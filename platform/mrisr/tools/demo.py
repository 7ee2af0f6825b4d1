"""The main job from end to end on a few volumes, by the same functions as the single verbs."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from mrisr.config import ConfigError, load_experiment

if TYPE_CHECKING:
    from voxelstore import VolumeStore

CONFIG = Path("jobs/configs/demo.yaml")
SUBJECTS = 6


def home_of(data: Path | None, home: Path) -> Path:
    """Where the demo of a data folder lives, below `home`: one place per folder, whatever it is called from."""
    if data is None:
        return home / "icbm152"
    path = data.resolve()
    return home / f"{path.name or 'data'}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def write_low_resolution(store: VolumeStore, subject: str, protocol: str, path: Path) -> None:
    """What the protocol leaves of a subject, on the grid, in the space and in the type of its source file."""
    from mrisr.degradation import PROTOCOLS, degrade
    from voxelstore import write_volume

    low = degrade(store.read_normalised(subject), PROTOCOLS[protocol])
    write_volume(path, store.record(subject).intensity.restore(low), like=store.source(subject))


def run_demo(data: Path | None, home: Path, overrides: list[str]) -> None:
    """Cohort -> store -> training -> registry -> table, pictures and a super-resolved file.

    data: a folder of volumes, or None for a cohort derived from the ICBM152 template. home: everything the demo makes
    goes to a folder below it, one per data folder. Running it again repeats nothing that is done; where volumes were
    added or replaced it trains a run of its own.
    """
    if not CONFIG.is_file():
        raise ConfigError(f"{CONFIG}: not found in {Path.cwd()}; run the demo from the checkout")
    if data is not None and home.resolve().is_relative_to(data.resolve()):
        raise ConfigError(
            f"--data {data}: holds --home {home} as well, so that the demo would take its own output for volumes; give "
            "the folder that holds the volumes alone, or another --home"
        )
    home = home_of(data, home)
    os.environ["MRISR_HOME"] = str(home)
    console = Console(highlight=False)

    def heading(text: str) -> None:
        console.print(f"\n[bold]{text}[/bold]")

    heading("1/5  data")
    if data is None:
        from mrisr.tools.demo_cohort import make_cohort

        data = home / "cohort"
        with console.status("deriving a small cohort from the ICBM152 template"):
            make_cohort(data, SUBJECTS, seed=0)
        console.print(f"{SUBJECTS} volumes derived from one template (ICBM152, 1 mm T1) in {data}", soft_wrap=True)
    elif not data.is_dir():
        raise ConfigError(f"--data {data}: is not a folder; give the folder that holds your NIfTI volumes")
    else:
        console.print(f"the volumes of {data}", soft_wrap=True)

    from mrisr import cluster
    from mrisr.data.checks import open_store
    from mrisr.data.conversion import convert_folder
    from mrisr.evaluation.cluster_tasks import evaluate_on_cluster, log_evaluation
    from mrisr.inference.model import load_model
    from mrisr.tracking.redaction import mask_secrets
    from mrisr.training.publishing import publish
    from mrisr.training.run import train
    from voxelstore import VolumeStore

    experiment = load_experiment(CONFIG, overrides)
    heading("2/5  convert to Zarr")
    cluster.connect()
    summary = convert_folder(data, experiment.data)
    console.print("\n".join(summary.lines()), markup=False, soft_wrap=True)
    # Other volumes are another run: one that began on these could not be resumed on those.
    fingerprint = VolumeStore.open(experiment.data.store).fingerprint()
    experiment = load_experiment(CONFIG, [f"name=demo-{fingerprint[:8]}", *overrides])

    heading(f"3/5  train with FSDP on {experiment.resources.workers} workers: L1, then WGAN-GP")
    run = train(experiment)

    heading("4/5  validate on whole volumes and register")
    published = publish(run)
    console.print("\n".join(published.lines()), markup=False, soft_wrap=True)

    heading("5/5  evaluate on the held-out test subjects")
    store = open_store(experiment)
    generator = load_model(published.model_uri, published.tracking_uri).generator
    v = experiment.validation
    result = evaluate_on_cluster(
        store,
        "test",
        v.protocol,
        generator,
        v.patch_size,
        v.overlap,
        run.experiment.training.precision,
        consistency=True,
        console=console,
    )
    csv = result.write_csv(home / "evaluation" / "test.csv")
    pictures = result.write_pictures(home / "evaluation")
    log_evaluation(result, csv, published.tracking_uri, published.run_id, published.version)
    low = home / "low_resolution.nii.gz"
    write_low_resolution(store, result.subjects[0].subject, v.protocol, low)

    console.print()
    console.print(result.table())
    model = f"models:/{published.name}@champion" if published.promoted else published.model_uri
    tools = Path(sys.executable).parent
    uri = mask_secrets(published.tracking_uri)
    command = [str(tools / "mrisr"), "superresolve", "--model", model, "--tracking-uri", uri]
    command += ["--data-consistency", v.protocol, "--overwrite", str(low), str(home / "superresolved.nii.gz")]
    for label, text in (
        ("model", f"{published.name} version {published.version} ({published.decision})"),
        ("pictures", ", ".join(str(path) for path in pictures)),
        ("figures", str(csv)),
        ("curves", f"{tools / 'mlflow'} ui --backend-store-uri {uri}"),
        ("original", store.record(result.subjects[0].subject).source),
        ("next", shlex.join(command)),
    ):
        console.print(f"{label:<9} {text}", markup=False, soft_wrap=True)
    if not (result.beats_input("psnr") and result.beats_input("ssim")):
        console.print(
            "The model does not beat its own input: it has not super-resolved anything yet.", style="bold red"
        )
