"""What the verbs that use a finished model do: evaluate it, or super-resolve files with it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from mrisr import registry
from mrisr.config import ConfigError
from mrisr.config.schema import home
from mrisr.models import MDCSRN
from mrisr.tracking import resolve_uri
from mrisr.weights import build_generator
from voxelstore import VolumeStore


def load_model(model: str, tracking_uri: str | None) -> MDCSRN:
    """The generator, in evaluation mode on the CPU, of `models:/NAME@ALIAS` or of a weights file.

    A file that does not carry its configuration (a state_dict of the public port) is taken for the published network.
    Raises ConfigError naming the model and what exists.
    """
    try:
        if model.startswith("models:/"):
            return registry.load(model, resolve_uri(tracking_uri, home())).generator
        config, state = registry.load_generator_weights(Path(model).expanduser())
        if config is not None:
            return build_generator(config, state)
        generator = MDCSRN()
        generator.load_reference_state_dict(state)
        return generator.eval()
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"--model {model}: {error}") from None


def run_evaluation(
    model: str, store: Path, split: str, protocol: str, output: Path, consistency: bool, tracking_uri: str | None
) -> None:
    """Evaluate on a split, print the table, write evaluation CSV and pictures into `output`."""
    from mrisr.evaluation_tasks import evaluate_on_cluster, protocol_named

    protocol_named(protocol)
    generator = load_model(model, tracking_uri)
    opened = VolumeStore.open(store.expanduser().absolute())
    console = Console(highlight=False)
    result = evaluate_on_cluster(opened, split, protocol, generator, consistency=consistency, console=console)
    csv = result.write_csv(output / f"{split}-{protocol}.csv")
    result.write_pictures(output)
    console.print(result.table(per_subject=True))
    console.print(f"figures {csv}\npictures {output}", markup=False, soft_wrap=True)


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
    generator = load_model(model, tracking_uri)
    options = InferenceOptions(device="cuda" if torch.cuda.is_available() else "cpu", precision="bf16")
    console = Console(highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("super-resolving", total=None)
        summary = superresolve_files(
            source.expanduser().absolute(), target.expanduser().absolute(), generator, options, band, overwrite,
            progress=lambda path, done, total: bar.update(task, description=path.name, completed=done, total=total),
            on_file=lambda result: console.print(result.describe(), markup=False, soft_wrap=True),
        )  # fmt: skip
    return 3 if summary.left_out else 0
