"""What the verbs that use a finished model do: evaluate it, or super-resolve files with it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from mrisr import registry
from mrisr.config import ConfigError
from mrisr.config.paths import home
from mrisr.evaluation_result import EvaluationResult
from mrisr.models import MDCSRN
from mrisr.tracking import RunLogger, resolve_uri
from mrisr.weights import build_generator
from voxelstore import VolumeStore


class Model(NamedTuple):
    """A generator in evaluation mode on the CPU. run_id: the MLflow run behind it, None for a weights file."""

    generator: MDCSRN
    run_id: str | None
    version: str | None


def load_model(model: str, tracking_uri: str | None) -> Model:
    """The model behind `models:/NAME@ALIAS`, `models:/NAME/VERSION` or a weights file.

    A file that does not carry its configuration (a state_dict of the public port) is taken for the published network.
    Raises ConfigError naming the model and what exists.
    """
    try:
        if model.startswith("models:/"):
            found = registry.load(model, resolve_uri(tracking_uri, home()))
            return Model(found.generator, found.run_id, found.version)
        config, state = registry.load_generator_weights(Path(model).expanduser())
        if config is not None:
            return Model(build_generator(config, state), None, None)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"--model {model}: {error}") from None
    generator = MDCSRN()
    try:
        generator.load_reference_state_dict(state)
    except ValueError as error:
        raise ConfigError(
            f"--model {model}: carries no configuration, so it was taken for the published network "
            f"({generator.config}), and it is none: {error}. Files that `mrisr train` writes carry theirs"
        ) from None
    return Model(generator.eval(), None, None)


def run_evaluation(
    model: str, store: Path, split: str, protocol: str, output: Path, consistency: bool, tracking_uri: str | None
) -> None:
    """Evaluate on a split, print the table, write evaluation CSV and pictures into `output`."""
    from mrisr.evaluation_tasks import evaluate_on_cluster, protocol_named

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


def log_evaluation(result: EvaluationResult, csv: Path, tracking_uri: str, run_id: str, version: str) -> None:
    """Add an evaluation to the MLflow run that made the model: metrics `SPLIT/PROTOCOL/...`, and the CSV.

    A run can have several versions; a version's number takes the place of the metrics' step.
    """
    logger = RunLogger(tracking_uri, run_id)
    prefix = f"{result.split}/{result.protocol}"
    logger.metrics(int(version), {f"{prefix}/{key}": value for key, value in result.as_metrics().items()})
    logger.artifact(csv, f"evaluation/version-{version}")


def run_superresolution(
    model: str, source: Path, target: Path, data_consistency: str | None, overwrite: bool, tracking_uri: str | None
) -> int:
    """Super-resolve a file or a folder; one line per file. Returns the exit code: 3 if a file was left out."""
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mrisr.evaluation_tasks import protocol_named
    from mrisr.inference import InferenceOptions
    from mrisr.superresolution import superresolve_files

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
