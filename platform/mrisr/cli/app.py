"""The `mrisr` command: one function per verb. jobs/VERB.py call the same functions through `ray job submit`."""

from __future__ import annotations

import io
import os
import sys
import traceback
from functools import partial
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Annotated, Literal

import typer

from mrisr import __version__
from mrisr.cli import configuration, runs
from mrisr.cli.options import KEYS, ConfigOption, Overrides, TrackingOption, Verb, absolute, output_path
from mrisr.config.loading import ConfigError, load_experiment
from mrisr.config.validation import protocol_named
from mrisr.degradation import PROTOCOLS, describe
from mrisr.files import check_output, describe_os_error
from mrisr.tracking.redaction import mask_message, redact_logs
from voxelstore.errors import printable

EXIT_CODES = """\b
Exit codes:
  0    done
  1    an unexpected error, with its traceback; `replay`: not reproduced
  2    a mistake that the message explains, or a run that cannot go on
  3    done, but some files were left out (`convert`, `superresolve`)
  130  Ctrl-C; the same command goes on where it stopped
  143  SIGTERM, after a checkpoint; the same command goes on there"""

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, epilog=EXIT_CODES)
app.add_typer(configuration.app, name="config")


def _version(wanted: bool) -> None:
    if wanted:
        others = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch"))
        typer.echo(f"mrisr {__version__} ({others}, Python {python_version()})")
        raise typer.Exit


@app.callback()
def mrisr(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """3D brain-MRI super-resolution on Ray: convert, train, tune, evaluate, super-resolve.

    `mrisr VERB --help` explains a verb.
    """


MODEL = "pretrained, models:/NAME@champion, models:/NAME/VERSION, or a weights file"
PROTOCOL_NAMES = " | ".join(PROTOCOLS)


@app.command(cls=Verb, epilog=KEYS)
def convert(
    source: Annotated[Path, typer.Argument(help="folder of .nii, .nii.gz and .mgz volumes, searched recursively")],
    overrides: Overrides = None,
    config: ConfigOption = None,
    store: Annotated[Path | None, typer.Option(help="Zarr store; the same as data.store=...")] = None,
) -> None:
    """Convert a folder of NIfTI volumes to the Zarr store.

    A second run converts only what is new.

    Exit code 3: some files were left out; the rest is in the store.
    """
    extra = [] if store is None else [f"data.store={absolute(store, '--store')}"]
    source = absolute(source, "SOURCE")
    experiment = load_experiment(config, [*(overrides or []), *extra])
    from mrisr import cluster
    from mrisr.data.conversion import convert_folder

    if not source.is_dir():
        raise ConfigError(f"{source}: is not a folder; give the folder that holds the volumes")
    check_output(experiment.data.store, folder=True)
    typer.echo(f"converting the volumes of {printable(source)} to {printable(experiment.data.store)}")
    cluster.connect()
    summary = convert_folder(source, experiment.data)
    typer.echo("\n".join([*summary.lines(), f"store: {experiment.data.store}"]))
    raise typer.Exit(summary.exit_code)


@app.command(cls=Verb, epilog=KEYS)
def train(
    overrides: Overrides = None,
    config: ConfigOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print configuration and plan, start nothing")] = False,
    fit_memory: Annotated[
        str | None,
        typer.Option(help="8GiB: use the largest training.batch_size whose estimate fits each worker"),
    ] = None,
) -> None:
    """Train an experiment, then register its best weights in MLflow.

    The same command after Ctrl-C, a crash or a reboot resumes at the last checkpoint.
    """
    experiment = load_experiment(config, overrides or [])
    if fit_memory is not None:
        from mrisr.training.memory import fitting_overrides

        fitting = fitting_overrides(experiment, fit_memory)
        typer.echo(f"--fit-memory {fit_memory}: {' '.join(fitting)}")
        experiment = load_experiment(config, [*(overrides or []), *fitting])
    if dry_run:
        from mrisr.training.plan import describe_plan

        typer.echo(describe_plan(experiment))
        return
    from mrisr.training.run import train as run

    trained = run(experiment)
    from mrisr.training.publishing import publish  # not before torch is needed: it delays the first step

    for published in publish(trained):
        typer.echo("\n".join(published.lines()))


@app.command(cls=Verb, epilog=KEYS)
def tune(
    overrides: Overrides = None,
    config: ConfigOption = None,
    trials: Annotated[str | None, typer.Option(metavar="INTEGER", help="the same as tuning.trials=...")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print space and plan, start nothing")] = False,
) -> None:
    """Search hyperparameters, then register the winner.

    A key is searched if its value is a space, such as {log_uniform: [0.1, 100]}. The winner is also written as a
    configuration for `mrisr train`.

    The same command after Ctrl-C, a crash or a reboot continues; more trials extend a finished search.
    """
    changes = [*(overrides or []), *([] if trials is None else [f"tuning.trials={trials}"])]
    if dry_run:
        from mrisr.tuning.dry_run import describe_search

        typer.echo(describe_search(config, changes))
        return
    from mrisr.tuning.winner import tune as run

    run(config, changes)


@app.command(cls=Verb)
def replay(
    folder: Annotated[Path, typer.Argument(help="nonfinite_<step> folder, or the run's folder that holds it")],
) -> None:
    """Repeat a training step whose loss or gradient was not finite.

    Weights, rows and seeds are those of the step.

    Exit code 0: the losses are reproduced; 1: they are not.
    """
    from mrisr.training.failed_step import replay as again

    result = again(absolute(folder, "FOLDER"))
    typer.echo("\n".join(result.lines))
    raise typer.Exit(0 if result.reproduced else 1)


@app.command(cls=Verb)
def evaluate(
    model: Annotated[str, typer.Option(help=MODEL)],
    store: Annotated[Path, typer.Option(help="Zarr store")],
    split: Annotated[str, typer.Option(help="split to evaluate")] = "test",
    protocol: Annotated[str, typer.Option(help=PROTOCOL_NAMES)] = "chen2018",
    output: Annotated[
        Path | None,
        typer.Option(help="folder of the CSV and the pictures; default: evaluation, for a job in $MRISR_HOME"),
    ] = None,
    consistency: Annotated[
        bool, typer.Option("--data-consistency", help="add a row: the model with the acquired band of k-space put back")
    ] = False,
    allow_trained_on: Annotated[
        bool, typer.Option("--allow-trained-on", help="mark subjects that the model was trained on, do not refuse them")
    ] = False,
    per_subject: Annotated[
        bool, typer.Option("--per-subject", help="print every subject's figures too; the CSV always has them")
    ] = False,
    tracking_uri: TrackingOption = None,
) -> None:
    """Evaluate a model on whole volumes of a split.

    One table compares the input, the input at its best gain, a cubic spline and the model.
    """
    protocol_named(protocol, "--protocol")
    from mrisr.cli.commands import run_evaluation
    from mrisr.evaluation.subject import Evaluation
    from voxelstore import VolumeStore

    folder, target = absolute(store, "--store"), output_path(output, "evaluation", "--output")
    volumes = VolumeStore.open(folder)
    evaluation = Evaluation(volumes, split, protocol, consistency=consistency, allow_trained_on=allow_trained_on)
    check_output(target, folder=True)
    run_evaluation(model, tracking_uri, evaluation, target, per_subject)


@app.command(cls=Verb)
def superresolve(
    source: Annotated[Path, typer.Argument(help="NIfTI file, or a folder of them")],
    target: Annotated[Path, typer.Argument(help="output file, or folder if the source is one")],
    model: Annotated[str, typer.Option(help=MODEL)] = "pretrained",
    factor: Annotated[
        str | None,
        typer.Option(help="2, the default: twice as many voxels along the axes in the plane; or per axis: 1,2,2"),
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help="instead of it, in mm: 0.5 in the plane; or per axis of the file: 0.5,0.5,1")
    ] = None,
    same_grid: Annotated[
        bool, typer.Option("--same-grid", help="keep the grid: of an input that is zero-filled or resampled already")
    ] = False,
    data_consistency: Annotated[
        str | None,
        typer.Option(
            help=f"with --same-grid: put the acquired band back; the protocol that names it: {PROTOCOL_NAMES}"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace existing output")] = False,
    keep_background: Annotated[
        bool, typer.Option(help="of an input without negative values: output >= 0, and 0 where the input is 0")
    ] = True,
    pattern: Annotated[
        str, typer.Option(help="which files of a folder: bids:T1w, or a glob as data.pattern of `mrisr convert`")
    ] = "*",
    tracking_uri: TrackingOption = None,
) -> None:
    """Super-resolve NIfTI files onto a finer grid with a trained model.

    The output keeps the input's field of view, orientation, type, intensity range and k-space. Exit code 3: some files
    were left out.
    """
    band = None if data_consistency is None else protocol_named(data_consistency, "--data-consistency")
    paths = absolute(source, "SOURCE"), absolute(target, "TARGET")
    from mrisr.cli.commands import run_superresolution
    from mrisr.inference.grid import FinerGrid
    from mrisr.inference.superresolution import resolver_of

    keeps = same_grid or band is not None
    if keeps and (factor or spacing):
        raise ConfigError("--same-grid and --data-consistency keep the grid; leave out --factor and --spacing")
    grid = None if keeps else FinerGrid.parse(factor, spacing)
    resolver_for = partial(resolver_of, band=band, keep_background=keep_background, grid=grid)
    raise typer.Exit(run_superresolution(model, tracking_uri, paths, pattern, overwrite, resolver_for))


@app.command(cls=Verb, epilog=KEYS)
def preview(
    overrides: Overrides = None,
    config: ConfigOption = None,
    volume: Annotated[
        Path | None, typer.Option(help="a NIfTI file; default: the store's first training subject")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="the picture; default: preview.png")] = None,
    samples: Annotated[int, typer.Option(min=0, help="seeded draws between the ends of the ranges")] = 3,
    gallery: Annotated[bool, typer.Option("--gallery", help="all kinds instead of the configured one")] = False,
) -> None:
    """Draw what a configuration trains on.

    One row per degradation: low resolution, difference and log-spectrum.
    """
    experiment = load_experiment(config, overrides or [])
    from mrisr.tools.preview import contact_sheet, gallery_entries, load_volume, planned_degradations, write_sheet

    target = output_path(output, "preview.png", "--output")
    if target.suffix.lower() != ".png":
        raise ConfigError(f"--output {target}: extension {target.suffix!r}; the picture is a .png file")
    check_output(target)
    name, hr, no_signal = load_volume(experiment, None if volume is None else absolute(volume, "--volume"))
    entries = gallery_entries() if gallery else planned_degradations(experiment, samples)
    write_sheet(contact_sheet(hr, entries, name, 2 if len(entries) > 6 else 1, no_signal), target, dpi=90)
    typer.echo("\n".join([*(f"{title:<24} {describe(degradation)}" for title, degradation in entries), str(target)]))


@app.command(cls=Verb, epilog=KEYS)
def bench(
    what: Annotated[Literal["stream"], typer.Argument(help="stream: patches per second of this machine")],
    overrides: Overrides = None,
    config: ConfigOption = None,
    rows: Annotated[int, typer.Option(min=1, help="volumes to stream, at least; rounded up to whole groups")] = 32,
) -> None:
    """Measure how many training patches per second this machine makes, and where the time goes."""
    assert what == "stream"
    experiment = load_experiment(config, overrides or [])
    from mrisr.tools.bench_stream import measure_stream

    typer.echo("\n".join(measure_stream(experiment, rows).lines()))


@app.command(cls=Verb)
def demo(
    data: Annotated[Path | None, typer.Option(help="your own folder of volumes instead of the derived cohort")] = None,
    home: Annotated[Path | None, typer.Option(help="everything the demo makes; default: demo")] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="search the penalty's weight and the zeroing range instead of training")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Run the whole pipeline on a few volumes, in minutes and without a GPU.

    It converts, trains (L1, then WGAN-GP), registers and evaluates.
    """
    from mrisr.tools.demo import run_demo, run_demo_search

    folder = None if data is None else absolute(data, "--data")
    (run_demo_search if tune else run_demo)(folder, output_path(home, "demo", "--home"), overrides or [])


app.command(cls=Verb)(configuration.keys)
app.command(name="runs", cls=Verb)(runs.list_runs)
app.command(cls=Verb)(runs.compare)


def main(arguments: list[str] | None = None) -> None:
    """Run the command. A user's error prints one line and exits with code 2, without a traceback."""
    from mrisr.cluster import ResourceError, prepare_environment
    from mrisr.training.outcome import Terminated, TrainingStopped

    prepare_environment()
    redact_logs()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        code = app(arguments, standalone_mode=False)
        if code == 130:
            raise KeyboardInterrupt  # typer catches it without a message
        sys.exit(code if isinstance(code, int) else 0)
    except Terminated as error:
        _fail(f"{error}; the same command goes on there", 143)
    except (ValueError, ResourceError, TrainingStopped, OSError) as error:
        if os.environ.get("MRISR_TRACEBACK"):
            _fail_with_traceback(error)
        text = describe_os_error(error) if isinstance(error, OSError) else error
        _fail(f"{text}\n(MRISR_TRACEBACK=1 shows where)", 2)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on where it stopped", 130)
    except typer.Abort:
        sys.exit(1)
    except Exception as error:
        show = getattr(error, "show", None)
        if show is None:
            _fail_with_traceback(error)
        else:
            error.__dict__["message"] = printable(mask_message(getattr(error, "message", error)), keep="\n")
            show()  # a usage error of click
            sys.exit(getattr(error, "exit_code", 2))


def _fail(message: str, code: int) -> None:
    text = printable(mask_message(message), keep="\n")
    typer.echo(f"Error: {text}", err=True)
    sys.exit(code)


def _fail_with_traceback(error: Exception) -> None:
    """Print the traceback without the passwords that libraries write into their messages."""
    typer.echo(printable(mask_message("".join(traceback.format_exception(error))), keep="\n"), err=True)
    sys.exit(1)
