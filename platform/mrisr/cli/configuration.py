"""The verbs that explain, show and check configurations; they start nothing."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable
from shutil import get_terminal_size
from typing import Annotated

import typer

from mrisr.cli.options import ConfigOption, Overrides, Verb
from mrisr.config.loading import ConfigError, dump_experiment, field_reference, load_experiment, load_search
from mrisr.config.networks import Generator
from mrisr.config.reference import fields_of

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Show or check a configuration.")

Fields = Iterable[tuple[str, str, str, str]]


@app.command(cls=Verb)
def show(overrides: Overrides = None, config: ConfigOption = None) -> None:
    """Print a configuration as `mrisr train` takes it, with defaults and overrides.

    A search space is shown as its fixed value.
    """
    typer.echo(dump_experiment(load_experiment(config, overrides or [])), nl=False)


@app.command(cls=Verb)
def validate(overrides: Overrides = None, config: ConfigOption = None) -> None:
    """Check a configuration, or a search with its spaces.

    Exit code 2: something is wrong, and a line for each wrong key says what. The volumes are not looked at:
    `mrisr train --dry-run` and `mrisr tune --dry-run` do that.
    """
    _, spaces = load_search(config, overrides or [])
    if not spaces:
        experiment = load_experiment(config, overrides or [])
        typer.echo(f"valid: {experiment.name}, {experiment.schedule.describe()}")
        return
    from mrisr.tuning.plan import plan_search

    plan = plan_search(config, overrides or [])
    typer.echo(f"valid: {plan.base.name}, {plan.trials} trials that search {', '.join(plan.spaces)}")


def keys(
    prefix: Annotated[str, typer.Argument(help="a section or the beginning of a key, such as training.gp")] = "",
) -> None:
    """Explain the configuration keys: type, default and meaning.

    Values are YAML 1.2; texts and paths are taken as they are.
    """
    text = key_reference(prefix)
    if not text:
        known = [key for key, *_ in field_reference()]
        close = difflib.get_close_matches(prefix, [*known, *{key.partition(".")[0] for key in known}], n=1)
        raise ConfigError(
            f"no key begins with {prefix!r}; " + (f"did you mean {close[0]}?" if close else "`mrisr keys` lists all")
        )
    typer.echo(text)


def key_reference(prefix: str = "") -> str:
    """The keys that begin with `prefix`: type, default and meaning. It includes those of other networks."""
    groups: list[tuple[str, Fields]] = [("", field_reference())]
    for kind, settings in list(Generator.kinds())[1:]:
        head = f"With generator.kind={kind}, instead of the keys of the default kind:"
        groups.append((head, fields_of(settings, "generator.")))
    lines: list[str] = []
    for head, fields in groups:
        if found := [field for field in fields if field[0].startswith(prefix)]:
            lines += [*([head] if head else []), *(line for field in found for line in _explained(*field))]
    return "\n".join(lines)


def _explained(key: str, kind: str, default: str, meaning: str) -> list[str]:
    width = min(100, get_terminal_size().columns)
    first = textwrap.wrap(f"{key}={default}  ({kind})", width, subsequent_indent="        ")
    return [*first, *textwrap.wrap(meaning, width, initial_indent="    ", subsequent_indent="    ")]
