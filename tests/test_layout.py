"""The layout's promises: the standard library's `platform` survives, packages import one way, jobs shadow nothing."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("folder", [CHECKOUT, CHECKOUT / "jobs"])
def test_the_standard_library_platform_imports_with_the_checkout_on_the_path(folder: Path) -> None:
    code = (
        "import platform, sys, sysconfig; sys.path.insert(0, '.'); "
        "assert platform.__file__.startswith(sysconfig.get_path('stdlib')), platform.__file__; print(platform.system())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={"PYTHONPATH": str(CHECKOUT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "Linux" or done.stdout.strip()


def test_platform_is_a_source_root_and_nothing_else() -> None:
    assert not (CHECKOUT / "platform" / "__init__.py").exists()
    beside = {p.name for p in (CHECKOUT / "platform").iterdir() if not p.name.endswith(".egg-info")}
    assert beside == {"mrisr"}


def test_the_science_imports_without_ray_mlflow_or_pydantic() -> None:
    """A machine that has torch, numpy, scipy and scikit-image alone can import what a GPU check needs."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'ray', 'mlflow', 'pydantic', 'zarr', 'nibabel', 'optuna', 'typer'}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import mrisr.degradation, mrisr.data.patches, mrisr.models, mrisr.engine.objectives, mrisr.metrics
import mrisr.engine.schedule, mrisr.engine.step, mrisr.engine.sharding, mrisr.engine.checkpoint
import mrisr.engine.memory, mrisr.engine.precision
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def rooms() -> list[str]:
    return [init.parent.name for init in sorted((CHECKOUT / "platform" / "mrisr").glob("*/__init__.py"))]


@pytest.mark.parametrize("room", rooms())
def test_every_room_says_what_it_is_for_and_what_it_may_import(room: str) -> None:
    text = ast.get_docstring(ast.parse((CHECKOUT / "platform" / "mrisr" / room / "__init__.py").read_text()))
    assert text
    assert len(text.split("\n")[0]) > 20
    assert "import" in text, "what it may import"


def test_every_room_has_a_place_in_the_layers() -> None:
    (layers,) = (c["layers"] for c in contracts() if c["type"] == "layers")
    placed = [part.strip().removeprefix("mrisr.") for layer in layers for part in layer.split("|")]
    assert set(rooms()) <= set(placed)
    assert len(placed) == len(set(placed))


def contracts() -> list[dict[str, Any]]:
    with (CHECKOUT / "pyproject.toml").open("rb") as file:
        found: list[dict[str, Any]] = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    return found


def test_the_layers_see_imports_inside_functions(tmp_path: Path) -> None:
    """The contract of pyproject.toml on a copy in which one function of the lowest room imports the highest."""
    for name in ("platform/mrisr", "storage/voxelstore"):
        shutil.copytree(CHECKOUT / name, tmp_path / Path(name).name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    with (tmp_path / "mrisr" / "degradation" / "spectrum.py").open("a") as file:
        file.write("\n\ndef hidden() -> None:\n    import mrisr.cli.app\n")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "mrisr.degradation.spectrum -> mrisr.cli.app" in done.stdout


def test_every_verb_has_its_job_and_every_job_its_verb() -> None:
    from mrisr.cli.app import app

    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    jobs = {path.stem for path in (CHECKOUT / "jobs").glob("*.py")}
    assert jobs == verbs - {"keys", "runs", "compare"}, "those that only read files need no cluster"


def test_jobs_do_not_stand_in_for_packages_of_the_same_name(tmp_path: Path) -> None:
    """A job script's own folder leads sys.path; it leaves before anything but the standard library is imported."""
    for job in (CHECKOUT / "jobs").glob("*.py"):
        assert f'from mrisr.cli.job import run\n\nif __name__ == "__main__":\n    run("{job.stem}")' in job.read_text()
        assert find_spec(job.stem) is None or job.stem not in sys.stdlib_module_names
        (tmp_path / job.name).write_text(job.read_text())
    for package in ("typer", "yaml", "numpy"):
        (tmp_path / f"{package}.py").write_text("raise SystemExit('shadowed')")
    done = subprocess.run([sys.executable, tmp_path / "train.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--fit-memory" in done.stdout


def test_a_job_refuses_relative_paths(tmp_path: Path) -> None:
    """Its working directory is a copy that is thrown away; with the runtime environment this holds for any command."""
    command = [sys.executable, CHECKOUT / "jobs" / "train.py", "--dry-run", "data.store=store.zarr"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "give an absolute path" in done.stderr
    assert yaml.safe_load((CHECKOUT / "jobs" / "runtime_env.yaml").read_text())["env_vars"]["MRISR_IN_JOB"] == "1"
