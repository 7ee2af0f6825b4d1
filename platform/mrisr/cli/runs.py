"""The verbs that look at runs: all of them in one table, or two side by side. They read the runs' folders only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mrisr.cli.options import absolute
from mrisr.config.paths import home
from mrisr.config.reference import ConfigError

if TYPE_CHECKING:
    from mrisr.training.run_summary import RunSummary

# Keys that say where a run is, not what it is.
_PLACES = ("name", "output", "tracking.")


def list_runs(
    output: Annotated[Path | None, typer.Option(help="folder of runs; default: $MRISR_HOME/runs")] = None,
) -> None:
    """List the runs of a folder: state, step, best figures, registered versions.

    Figures are those of the validation that chose the best weights, with the gain over the gain-corrected input. They
    compare only between runs of one protocol and one store: `mrisr compare` says so. A version with * is a champion.
    """
    from rich.console import Console
    from rich.table import Table

    from mrisr.metrics import METRICS
    from mrisr.training.run_summary import run_folders, summarize_run

    folder = home() / "runs" if output is None else absolute(output, "--output")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("run", "state", "step", "PSNR / dB", "SSIM", "version"):
        justify: Literal["left", "right"] = "left" if column in ("run", "state", "version") else "right"
        table.add_column(column, overflow="fold", no_wrap=column != "run", justify=justify)
    unreadable = []
    for path in run_folders(folder):
        try:
            run = summarize_run(path)
        except (ValueError, OSError) as error:
            unreadable.append(f"{path.relative_to(folder)} cannot be read: {error}")
            continue
        figures = (_with_gain(run, METRICS[name]._replace(unit="")) for name in ("psnr", "ssim"))
        step = f"{run.step:,}/{run.experiment.schedule.total_steps:,}"
        table.add_row(str(run.folder.relative_to(folder)), run.state, step, *figures, "\n".join(run.versions))
    if not table.row_count and not unreadable:
        raise ConfigError(f"{folder}: holds no run; give the folder of runs (`output` in a configuration): --output")
    console = Console(highlight=False)
    console.print(f"runs in {folder}", markup=False, soft_wrap=True)
    console.print(table)
    for text in unreadable:
        console.print(f"warning: {text}", markup=False, style="bold")


def compare(
    first: Annotated[str, typer.Argument(metavar="RUN", help="a run's folder, or its name below $MRISR_HOME/runs")],
    second: Annotated[str, typer.Argument(metavar="RUN", help="the run to compare it with")],
) -> None:
    """Compare two runs: what differs in their configurations, and their best figures.

    It warns where the figures do not compare, because protocols, volumes or subjects differ.
    """
    from rich.console import Console
    from rich.table import Table

    from mrisr.config.spaces import flat
    from mrisr.metrics import METRICS
    from mrisr.training.run_summary import summarize_run

    runs = [summarize_run(_folder(text)) for text in (first, second)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("", *(run.experiment.name for run in runs)):
        table.add_column(column, overflow="fold")
    before, after = (flat(run.experiment.model_dump(mode="json")) for run in runs)
    for key in before | after:
        if before.get(key) != after.get(key) and not key.startswith(_PLACES):
            table.add_row(key, _text(before.get(key)), _text(after.get(key)))
    if not table.row_count:
        table.add_row("configuration", "the same", "the same")
    table.add_section()
    table.add_row("state", *(run.state for run in runs))
    table.add_row("step", *(f"{run.step:,} of {run.experiment.schedule.total_steps:,}" for run in runs))
    table.add_row("best step", *("none yet" if run.best_step is None else f"{run.best_step:,}" for run in runs))
    for metric in METRICS.values():
        table.add_row(f"best {metric.label}", *(_with_gain(run, metric) for run in runs))
    for name, metric in METRICS.items():
        if any(run.volumes for run in runs):
            table.add_row(f"whole-volume {metric.label}", *(_whole_volume(run, name) for run in runs))
    table.add_row("registered", *("\n".join(run.versions) or "no" for run in runs))
    table.add_row("folder", *(str(run.folder) for run in runs))
    console = Console(highlight=False)
    console.print(table)
    for warning in _not_comparable(*runs):
        console.print(f"warning: {warning}", markup=False, style="bold")


def _folder(text: str) -> Path:
    named = home() / "runs" / text
    return named if "/" not in text and named.is_dir() else absolute(Path(text), "RUN")


def _with_gain(run: RunSummary, metric: Any) -> str:
    if not run.figures:
        return ""
    return f"{metric.text(run.figures[metric.name])} ({metric.text(run.figures[f'{metric.name}_gain'], '+')})"


def _whole_volume(run: RunSummary, name: str) -> str:
    from mrisr.metrics import METRICS

    if not run.volumes:
        return ""
    own, baseline = (METRICS[name].text(run.volumes[f"{of}_{name}"]) for of in ("val", "baseline"))
    return f"{own} (input {baseline})"


def _text(value: Any) -> str:
    return "null" if value is None else str(value)


def _not_comparable(first: RunSummary, second: RunSummary) -> list[str]:
    """Why the figures of two runs do not compare; empty if they do."""
    warnings = []
    one, other = (run.experiment.validation for run in (first, second))
    if one.protocol != other.protocol:
        warnings.append(f"the figures are of two protocols, {one.protocol} and {other.protocol}, and do not compare")
    cubes = ("split", "max_subjects", "patch_size", "patches_per_subject")
    if first.dataset != second.dataset or first.experiment.data.store != second.experiment.data.store:
        warnings.append("the runs have other volumes or splits, so that the figures may be of other subjects")
    if differ := [key for key in cubes if getattr(one, key) != getattr(other, key)]:
        keys = ", ".join(f"validation.{key}" for key in differ)
        warnings.append(f"the figures are of other parts of the volumes ({keys}) and do not compare")
    if first.experiment.training.precision != second.experiment.training.precision:
        warnings.append("the runs have different precisions, which moves the last digits of figures")
    return warnings
