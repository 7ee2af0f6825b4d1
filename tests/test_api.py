"""The interface for Python: cheap to import, the same results as the commands, and the guide's examples."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import mrisr
from mrisr.cli.app import main
from mrisr.config import ConfigError
from mrisr.models import build_generator, complete_config
from mrisr.models.weights import TrainedOn, serialised
from tests.conftest import write_cohort

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "guide" / "python.md"
GENERATOR = {"growth_rate": 2, "blocks": 2, "units": 2}


def examples(heading: str) -> str:
    """The Python of one section of the guide, as a script."""
    section = GUIDE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan and a weights file with the names of the guide."""
    folder = tmp_path_factory.mktemp("guide")
    (scan,) = write_cohort(folder, 1)
    scan.rename(folder / "in.nii.gz")
    state = build_generator(GENERATOR, seed=3).state_dict()
    weights = serialised(complete_config(GENERATOR), state, TrainedOn(complete=True))
    (folder / "best.safetensors").write_bytes(weights)
    return folder


def test_the_package_imports_nothing() -> None:
    code = "import sys; import mrisr; print([n for n in ('numpy', 'torch', 'ray', 'pydantic') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert {"superresolve", "load_model", "load_experiment", "train"} <= set(dir(mrisr))
    with pytest.raises(AttributeError, match="no attribute 'superresolv'"):
        _ = mrisr.superresolv


def test_the_guide_super_resolves_as_the_command_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(examples("Super-resolve"), found)
    depth, height, width = found["scan"].shape
    for name, shape in (("volume", (depth, 2 * height, 2 * width)), ("same_grid", found["scan"].shape)):
        assert found[name].shape == shape
        assert found[name].dtype == np.float32
    np.testing.assert_allclose(found["same"], found["volume"], rtol=1e-5, atol=1e-3)
    assert np.abs(found["same_grid"] - found["scan"]).max() > 1, "the network has changed it"
    assert np.abs(found["with_samples"] - found["scan"]).max() < np.abs(found["same_grid"] - found["scan"]).max()
    with pytest.raises(SystemExit) as done:
        main(["superresolve", "--model", "best.safetensors", "in.nii.gz", "command.nii.gz"])
    assert done.value.code == 0
    written = [np.asanyarray(nib.load(name).dataobj) for name in ("out.nii.gz", "command.nii.gz")]
    np.testing.assert_array_equal(*written)
    with pytest.raises(FileExistsError, match="exists already"):
        mrisr.superresolve("in.nii.gz", "out.nii.gz", model=found["model"])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((np.zeros((4, 4)),), {}, ValueError, r"must be \(D, H, W\)"),
        ((np.zeros((8, 8, 8)),), {}, ValueError, "not constant"),
        ((np.eye(9)[None].repeat(9, 0), "out.nii"), {}, ValueError, "has no space of its own"),
        ((np.eye(9)[None].repeat(9, 0),), {"factor": 0.5}, ValueError, "as many voxels"),
        ((np.eye(9)[None].repeat(9, 0),), {"factor": 1e30}, ValueError, "32,767 at most"),
        ((np.eye(9)[None].repeat(9, 0),), {"factor": float("nan")}, ValueError, "give one number above 0"),
        ((np.eye(9)[None].repeat(9, 0),), {"factor": (1, 2)}, ValueError, "or three, one for each axis"),
        ((np.eye(9)[None].repeat(9, 0),), {"data_consistency": "mine"}, ConfigError, "use one of chen2018"),
    ],
)
def test_what_cannot_be_is_said(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], words: str, folder: Path
) -> None:
    with pytest.raises(error, match=words):
        mrisr.superresolve(*arguments, model=folder / "best.safetensors", **options)


def test_an_experiment_is_changed_not_overridden(folder: Path) -> None:
    with pytest.raises(ValueError, match="overrides are for a file"):
        mrisr.train(mrisr.load_experiment("demo"), ["seed=3"])
