"""The README's commands, and the names and links of the documentation, exist."""

from __future__ import annotations

import pydoc
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from mrisr.cli.app import app
from mrisr.config import load_experiment

CHECKOUT = Path(__file__).resolve().parents[1]
README = (CHECKOUT / "README.md").read_text()
DOCS = CHECKOUT / "docs"
COMMANDS = [line.split("#")[0].strip() for line in README.splitlines() if line.startswith("    mrisr ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str) -> None:
    _, verb, *arguments = shlex.split(command)
    group = get_command(app)
    parsed = group.commands[verb].make_context(verb, list(arguments))  # type: ignore[attr-defined]
    if (config := parsed.params.get("config")) is not None:
        load_experiment(config)


def test_the_readme_shows_every_verb() -> None:
    shown = {shlex.split(command)[1] for command in COMMANDS}
    assert {"convert", "train", "evaluate", "superresolve"} <= shown


def test_overrides_in_the_readme_are_keys() -> None:
    found = re.findall(r"`((?:[a-z_]+\.[a-z_]+=\S+ ?)+)`", README)
    assert found
    for text in found:
        load_experiment(None, shlex.split(text))


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", ["README.md", *sorted(str(p.relative_to(CHECKOUT)) for p in DOCS.rglob("*.md"))])
def test_links_lead_to_files_and_headings_that_exist(page: str) -> None:
    source = CHECKOUT / page
    for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", source.read_text()):
        file = source.parent / target if target else source
        assert file.exists(), target
        assert not anchor or anchor in headings(file), f"{target}#{anchor}"


@pytest.mark.parametrize("page", sorted(str(p.relative_to(CHECKOUT)) for p in DOCS.rglob("*.md")))
def test_files_and_modules_that_the_documentation_names_exist(page: str) -> None:
    tests = {path.name for path in (CHECKOUT / "tests").rglob("test_*.py")}
    for name in re.findall(r"`([\w/.]+)`", (CHECKOUT / page).read_text()):
        if name.startswith(("tests/", "ci/", "jobs/", "platform/", "storage/", "docs/")):
            assert (CHECKOUT / name).exists(), name
        elif re.fullmatch(r"test_\w+\.py", name):
            assert name in tests, name
        elif re.fullmatch(r"mrisr/[\w/]+(\.py|/)", name):
            assert (CHECKOUT / "platform" / name).exists(), name
        elif re.fullmatch(r"(mrisr|voxelstore)(\.\w+)+", name):
            assert pydoc.locate(name) is not None, name
