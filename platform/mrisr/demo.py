"""The main job from end to end on a few volumes, by the same functions as the single verbs."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from rich.console import Console

from mrisr.config import ConfigError, load_experiment

CONFIG = Path("jobs/configs/demo.yaml")
SUBJECTS = 6


def run_demo(data: Path | None, home: Path, overrides: list[str]) -> None:
    """Cohort -> store -> training -> registry -> table, pictures and a super-resolved file.

    data: a folder of volumes, or None for a cohort derived from the ICBM152 template. home: everything the demo makes
    goes to a folder below it, named after the data. Running it again resumes or repeats nothing that is done.
    """
    if not CONFIG.is_file():
        raise ConfigError(f"{CONFIG}: not found in {Path.cwd()}; run the demo from the checkout")
    home = home / ("icbm152" if data is None else data.name)
    os.environ["MRISR_HOME"] = str(home)
    console = Console(highlight=False)

    def heading(text: str) -> None:
        console.print(f"\n[bold]{text}[/bold]")

    heading("1/5  data")
    if data is None:
        from mrisr.demo_cohort import make_cohort

        data = home / "cohort"
        with console.status("deriving a small cohort from the ICBM152 template"):
            make_cohort(data, SUBJECTS, seed=0)
        console.print(f"{SUBJECTS} volumes derived from one template (ICBM152, 1 mm T1) in {data}", soft_wrap=True)
    elif not data.is_dir():
        raise ConfigError(f"--data {data}: is not a folder; give the folder that holds your NIfTI volumes")
    else:
        console.print(f"the volumes of {data}", soft_wrap=True)

    from mrisr import cluster
    from mrisr.conversion import convert_folder
    from mrisr.evaluation_tasks import evaluate_on_cluster
    from mrisr.publishing import publish
    from mrisr.run_parameters import mask_secrets
    from mrisr.training.trainer import open_store, train
    from mrisr.verbs import load_model, log_evaluation

    experiment = load_experiment(CONFIG, overrides)
    heading("2/5  convert to Zarr")
    cluster.connect()
    d = experiment.data
    summary = convert_folder(data, d.store, d.splits, d.split_seed, d.min_size)
    console.print("\n".join(summary.lines()), markup=False, soft_wrap=True)

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
        store, "test", v.protocol, generator, v.patch_size, v.overlap, experiment.training.precision, console=console
    )
    csv = result.write_csv(home / "evaluation" / "test.csv")
    pictures = result.write_pictures(home / "evaluation")
    log_evaluation(result, csv, published.tracking_uri, published.run_id, published.version)
    source = store.record(result.subjects[0].subject).source

    console.print()
    console.print(result.table())
    model = f"models:/{published.name}@champion" if published.promoted else published.model_uri
    tools = Path(sys.executable).parent
    uri = mask_secrets(published.tracking_uri)
    command = [str(tools / "mrisr"), "superresolve", "--model", model, "--tracking-uri", uri]
    command += [str(data / source) if not Path(source).is_absolute() else source, str(home / "superresolved.nii.gz")]
    for label, text in (
        ("model", f"{published.name} version {published.version} ({published.decision})"),
        ("pictures", ", ".join(str(path) for path in pictures)),
        ("figures", str(csv)),
        ("curves", f"{tools / 'mlflow'} ui --backend-store-uri {uri}"),
        ("next", shlex.join(command)),
    ):
        console.print(f"{label:<9} {text}", markup=False, soft_wrap=True)
    if not (result.beats_input("psnr") and result.beats_input("ssim")):
        console.print(
            "The model does not beat its own input: it has not super-resolved anything yet.", style="bold red"
        )
