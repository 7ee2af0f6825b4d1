"""The verbs that use a finished model: evaluate it, or super-resolve files with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mrisr.config.paths import home
from mrisr.evaluation.cluster_tasks import evaluate_on_cluster, log_evaluation
from mrisr.evaluation.subject import Evaluation
from mrisr.inference.model import Model, load_model
from mrisr.inference.superresolution import SuperResolver, superresolve_files
from mrisr.tracking.runs import resolve_uri
from voxelstore.errors import printable


def run_evaluation(
    model: str, tracking_uri: str | None, evaluation: Evaluation, output: Path, per_subject: bool
) -> None:
    loaded = load_model(model, tracking_uri)
    console = Console(highlight=False)
    evaluation = replace(evaluation, options=loaded.options)  # as it was validated
    result = evaluate_on_cluster(evaluation, loaded.generator, console, loaded.trained_on)
    csv = result.write_csv(output / f"{result.split}-{result.protocol}.csv")
    result.write_pictures(output)
    console.print(result.table(per_subject))
    console.print(f"figures {csv}\npictures {output}", markup=False, soft_wrap=True)
    if loaded.run_id is not None and loaded.version is not None:
        logged = log_evaluation(result, csv, resolve_uri(tracking_uri, home()), loaded.run_id, loaded.version)
        console.print(logged, markup=False, soft_wrap=True)


def run_superresolution(
    model: str,
    tracking_uri: str | None,
    paths: tuple[Path, Path],
    pattern: str,
    overwrite: bool,
    resolver_for: Callable[[Model], SuperResolver],
) -> int:
    """Super-resolve paths = (source, target): a file, or the files of a folder that fit the pattern. resolver_for: such
    as `resolver_of`. Returns the exit code: 3 if a file was left out.
    """
    loaded = load_model(model, tracking_uri)
    resolver = resolver_for(loaded)
    console = Console(highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as bar:
        task = bar.add_task("super-resolving", total=None)

        def show(path: Path, done: int, total: int) -> None:
            bar.update(task, description=printable(path.name), completed=done, total=total)

        summary = superresolve_files(
            *paths, resolver, overwrite,
            progress=show,
            on_file=lambda result: console.print(result.describe(), markup=False, soft_wrap=True),
            pattern=pattern,
        )  # fmt: skip
    return 3 if summary.left_out else 0
