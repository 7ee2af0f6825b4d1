"""Every `mrisr` command in the README names a verb, options, keys and files that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from mrisr.cli.app import app
from mrisr.config import load_experiment

CHECKOUT = Path(__file__).resolve().parents[1]
README = (CHECKOUT / "README.md").read_text()
COMMANDS = [line.split("#")[0].strip() for line in README.splitlines() if line.startswith("    mrisr ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str) -> None:
    _, verb, *arguments = shlex.split(command)
    group = get_command(app)
    parsed = group.commands[verb].make_context(verb, list(arguments))  # type: ignore[attr-defined]
    for value in parsed.params.values():
        if isinstance(value, Path) and value.suffix == ".yaml":
            assert (CHECKOUT / value).is_file()


def test_the_readme_shows_every_verb() -> None:
    shown = {shlex.split(command)[1] for command in COMMANDS}
    assert {"convert", "train", "evaluate", "superresolve"} <= shown


def test_overrides_in_the_readme_are_keys() -> None:
    found = re.findall(r"`((?:[a-z_]+\.[a-z_]+=\S+ ?)+)`", README)
    assert found
    for text in found:
        load_experiment(None, shlex.split(text))


def test_pictures_and_files_that_the_readme_names_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (CHECKOUT / target).exists(), target
