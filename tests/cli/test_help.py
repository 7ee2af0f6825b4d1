"""What a user reads first: whole sentences that fit the terminal, quickly, and every key of a configuration."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from mrisr import __version__
from mrisr.cli.app import app, main
from mrisr.config import load_experiment
from mrisr.config.loading import field_reference

HEAVY = ("torch", "ray", "mlflow", "monai", "optuna", "pandas", "matplotlib", "zarr", "nibabel", "scipy.fft",
         "scipy.ndimage", "skimage")  # fmt: skip


@pytest.fixture(autouse=True)
def _terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as done:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(done.value.code or 0), captured.out + captured.err


def commands() -> list[tuple[str, ...]]:
    found = get_command(app).commands  # type: ignore[attr-defined]
    return [(verb,) for verb in found] + [("config", verb) for verb in found["config"].commands]


def test_every_verb_stands_in_the_help_with_a_whole_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    code, output = run(capsys, "--help")
    assert code == 0
    assert "..." not in output.replace("[ARGS]...", "")
    listed = output[output.index("Commands:") : output.index("Exit codes:")]
    entries = re.split(r"\n  (?=\w)", listed)[1:]
    assert [entry.split()[0] for entry in entries] == [verb for verb, *more in commands() if not more]
    assert all(entry.strip().endswith(".") for entry in entries)
    for code in (0, 1, 2, 3, 130, 143):
        assert re.search(rf"^ +{code} +\w", output, re.MULTILINE)


@pytest.mark.parametrize("verb", [(), *commands(), ("keys",)], ids=" ".join)
def test_no_line_is_wider_than_the_terminal(verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, output = run(capsys, *verb, *([] if verb == ("keys",) else ["--help"]))
    assert code == 0
    assert max(map(len, output.splitlines())) <= 80


def test_keys_are_explained_with_type_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    _, output = run(capsys, "keys")
    text = " ".join(output.split())
    for key, kind, default, meaning in field_reference():
        assert " ".join(f"{key}={default} ({kind}) {meaning}".split()) in text
    assert "With generator.kind=rrdb" in text
    _, section = run(capsys, "keys", "training.gp")
    assert [line for line in section.splitlines() if not line.startswith(" ")] == ["training.gp_weight=10.0  (float)"]
    code, mistake = run(capsys, "keys", "trainning")
    assert code == 2
    assert "did you mean training?" in mistake


def test_the_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from mrisr.cli.app import main
try:
    main(["--help"])
except SystemExit:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_the_version_names_what_a_report_of_a_fault_needs(capsys: pytest.CaptureFixture[str]) -> None:
    code, output = run(capsys, "--version")
    assert code == 0
    assert re.fullmatch(rf"mrisr {__version__} \(ray [\d.]+, torch \S+, Python [\d.]+\)\n", output)


@pytest.mark.parametrize(
    ("words", "found"), [("mrisr tr", "train"), ("mrisr train training.gp", "training.gp_weight=")]
)
def test_a_shell_completes_verbs_and_keys(words: str, found: str) -> None:
    shell = {"_MRISR_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    code = "import sys; sys.argv[0] = 'mrisr'; from mrisr.cli.app import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **shell}, capture_output=True, text=True)
    assert found in done.stdout.split(), done.stderr


def test_a_configuration_is_shown_as_training_takes_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, output = run(capsys, "config", "show", "-c", "hcp", "training.gp_weight=7")
    assert code == 0
    (tmp_path / "shown.yaml").write_text(output)
    assert load_experiment(tmp_path / "shown.yaml") == load_experiment("hcp", ["training.gp_weight=7"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-c", "demo"], 0, ["valid: demo", "L1, then WGAN-GP"]),
        (["-c", "tune"], 0, ["valid: ", "trials that search", "training.gp_weight"]),
        (["-c", "demo", "training.batch_size=3"], 2, ["training.batch_size = 3 does not divide"]),
        (["-c", "tune", "training.gp_weight={uniform: [5, 1]}"], 2, ["training.gp_weight"]),
    ],
)
def test_a_configuration_is_checked(
    arguments: list[str], code: int, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found, output = run(capsys, "config", "validate", *arguments)
    assert found == code, output
    assert all(word in output for word in words), output
