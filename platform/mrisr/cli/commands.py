"""What the verbs that use a finished model do: evaluate it, or super-resolve files with it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from mrisr.config.paths import home
from mrisr.evaluation.cluster_tasks import log_evaluation
from mrisr.inference.model import load_model
from mrisr.tracking.runs import resolve_uri
from voxelstore import VolumeStore


def run_evaluation(
    model: str, store: Path, split: str, protocol: str, output: Path, consistency: bool, tracking_uri: str | None
) -> None:
    """Evaluate on a split, print the table, write evaluation CSV and pictures into `output`."""
    from mrisr.evaluation.cluster_tasks import evaluate_on_cluster, protocol_named

    protocol_named(protocol)
    loaded = load_model(model, tracking_uri)
    opened = VolumeStore.open(store)
    console = Console(highlight=False)
    result = evaluate_on_cluster(opened, split, protocol, loaded.generator, consistency=consistency, console=console)
    csv = result.write_csv(output / f"{split}-{protocol}.csv")
    result.write_pictures(output)
    console.print(result.table(per_subject=True))
    console.print(f"figures {csv}\npictures {output}", markup=False, soft_wrap=True)
    if loaded.run_id is not None and loaded.version is not None:
        log_evaluation(result, csv, resolve_uri(tracking_uri, home()), loaded.run_id, loaded.version)
        console.print(f"logged to run {loaded.run_id}", markup=False, soft_wrap=True)


def run_superresolution(
    model: str, source: Path, target: Path, data_consistency: str | None, overwrite: bool, tracking_uri: str | None
) -> int:
    """Super-resolve a file or a folder; one line per file. Returns the exit code: 3 if a file was left out."""
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mrisr.evaluation.cluster_tasks import protocol_named
    from mrisr.inference.sliding_window import InferenceOptions
    from mrisr.inference.superresolution import superresolve_files

    band = None if data_consistency is None else protocol_named(data_consistency)
    generator = load_model(model, tracking_uri).generator
    options = InferenceOptions(device="cuda" if torch.cuda.is_available() else "cpu", precision="auto")
    console = Console(highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("super-resolving", total=None)
        summary = superresolve_files(
            source, target, generator, options, band, overwrite,
            progress=lambda path, done, total: bar.update(task, description=path.name, completed=done, total=total),
            on_file=lambda result: console.print(result.describe(), markup=False, soft_wrap=True),
        )  # fmt: skip
    return 3 if summary.left_out else 0
