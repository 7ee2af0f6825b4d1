"""The command line: errors in a line with exit code 2, exit code 3 for what was left out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import write_cohort

from mrisr.cli.app import main
from mrisr.config import ConfigError, load_experiment
from mrisr.models import MDCSRN
from mrisr.models.mdcsrn import MDCSRNConfig
from mrisr.training.warm_start import read_initial_weights


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as done:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(done.value.code or 0), captured.out + captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "training.gp_weigth=3"], ["training.gp_weigth", "did you mean"]),
        (["train", "--config", "missing.yaml"], ["missing.yaml"]),
        (["train", "data.store=/nowhere/store.zarr"], ["data.store", "/nowhere/store.zarr", "convert"]),
        (["train", "--nonsense"], ["--nonsense"]),
        (["convert", "/nowhere"], ["/nowhere", "folder"]),
        (["superresolve", "--model", "/nowhere.safetensors", "a.nii", "b.nii"], ["--model", "/nowhere.safetensors"]),
        (["superresolve", "--model", "m", "a.nii", "b.nii", "--same-grid", "--factor", "2"], ["leave out --factor"]),
        (["superresolve", "--model", "m", "a.nii", "b.nii", "--spacing", "0,5,1"], ["--spacing 0,5,1", "above 0"]),
        (["evaluate", "--model", "m", "--store", "s", "--protocol", "mine"], ["mine", "chen2018"]),
    ],
)
def test_errors_are_a_line_and_exit_code_2(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = run(capsys, *arguments)
    assert code == 2
    assert "Traceback" not in output
    assert all(word in output for word in words), output


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "/cohort", "--store", "store.zarr"],
        ["evaluate", "--model", "m.pt", "--store", "store.zarr"],
        ["evaluate", "--model", "m.pt", "--store", "/store.zarr", "--output", "figures"],
        ["superresolve", "--model", "m.pt", "/in.nii.gz", "out.nii.gz"],
        ["demo", "--home", "demo"],
    ],
)
def test_no_verb_writes_into_the_throw_away_copy_of_a_job(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MRISR_IN_JOB", "1")
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "give an absolute path" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert", "{}", "--store", "{}/file"], ["/file: Not a directory; "]),
        (["convert", "{}", "--store", "{}/file/s.zarr"], ["/file: Not a directory; "]),
        (["convert", "{}", "--store", "{}/self/s.zarr"], ["/self: ", "symbolic links; remove the link"]),
        (["convert", "{}", "--store", "/proc/self/s.zarr"], ["/proc/self: "]),
        (["preview", "--output", "{}/x.jpg"], ["--output", "'.jpg'", ".png"]),
        (["preview", "--output", "{}/x.png"], ["/x.png: Is a directory; give the name of a file in it"]),
        (["preview", "--volume", "{}/pipe", "--output", "{}/y.png"], ["/pipe: ", "no regular file"]),
        (["preview", "--volume", "{}/self", "--output", "{}/y.png"], ["/self: ", "symbolic links"]),
        (["evaluate", "--model", "m", "--store", "{store}", "--output", "{}/file"], ["/file: Not a directory; "]),
    ],
)
def test_an_output_is_tried_first_and_an_error_of_the_system_is_a_line(
    arguments: list[str], words: list[str], small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "x.png").mkdir()
    os.mkfifo(tmp_path / "pipe")
    places = [argument.replace("{store}", str(small_store)).replace("{}", str(tmp_path)) for argument in arguments]
    code, output = run(capsys, *places)
    assert code == 2
    assert "Traceback" not in output
    assert all(word in output for word in words), output


def test_a_name_that_is_no_text_can_be_printed(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/Jos\xe9.nii"
    Path(os.fsdecode(name)).write_bytes(b"no volume")
    command = [os.fsencode(sys.executable), b"-m", b"mrisr", b"preview", b"--volume", name, b"--output", name + b".png"]
    paths = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Jos\\udce9.nii: neither NIfTI nor MGH" in done.stderr


def test_ctrl_c_while_the_command_is_imported_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import time; print('importing', flush=True); time.sleep(600)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *(p for p in sys.path if p)])}
    # As in a terminal; a job in the background of a shell ignores SIGINT, and so would the command.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "mrisr", "train"], text=True, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "Error: interrupted before anything began\n")


def test_an_error_acts_on_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("\x1b[31mno.nii", "\x9bcsi.nii"):
        code, output = run(capsys, "preview", "--volume", str(tmp_path / name), "--output", str(tmp_path / "x.png"))
        assert code == 2
        assert all(line.isprintable() for line in output.splitlines())
    code, output = run(capsys, "train", "--\x1b[2J")
    assert code == 2
    assert "\x1b" not in output


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_convert_says_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cohort(tmp_path / "cohort", 3)
    (tmp_path / "cohort" / "broken.nii.gz").write_bytes(b"not a volume")
    arguments = ["convert", str(tmp_path / "cohort"), "--store", str(tmp_path / "store.zarr"), "data.min_size=32",
                 "stream.patch_size=16", "validation.patch_size=16"]  # fmt: skip
    code, output = run(capsys, *arguments)
    assert code == 3
    assert "3 converted" in output
    assert "broken.nii.gz" in output
    code, output = run(capsys, *arguments)
    assert "0 converted, 3 unchanged, 1 left out" in output


def test_a_state_dict_of_the_public_port_is_a_starting_point(tmp_path: Path) -> None:
    experiment = load_experiment(None, ["generator.growth_rate=2", "generator.blocks=2", "generator.units=2"])
    reference = MDCSRN(MDCSRNConfig(2, 2, 2), seed=9)
    torch.save({f"module.{k}": v for k, v in reference.state_dict().items()}, tmp_path / "port.pt")
    state = read_initial_weights(experiment, str(tmp_path / "port.pt"), "").state
    for key, value in reference.state_dict().items():
        np.testing.assert_array_equal(state[key], value)
    torch.save(MDCSRN(MDCSRNConfig(4, 2, 2)).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ConfigError, match=r"generator\.init_from.*other\.pt.*shape"):
        read_initial_weights(experiment, str(tmp_path / "other.pt"), "")
