"""The code's version where there is no git: what a submitted job records."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def test_without_git_the_version_is_that_of_the_sources(tmp_path: Path) -> None:
    """The two packages copied apart from each other, as a runtime environment unpacks them."""

    def copy(name: str) -> None:
        for source, package in (("platform", "mrisr"), ("storage", "voxelstore")):
            shutil.copytree(
                CHECKOUT / source / package, tmp_path / name / source / package,
                ignore=shutil.ignore_patterns("__pycache__"),
            )  # fmt: skip

    def version(name: str) -> str:
        code = "from mrisr.tracking.provenance import code_version; print(code_version())"
        paths = f"{tmp_path / name / 'platform'}:{tmp_path / name / 'storage'}"
        done = subprocess.run(
            [sys.executable, "-S", "-c", code], env={"PYTHONPATH": paths, "PATH": "/nowhere"}, cwd=tmp_path,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    copy("first")
    copy("second")
    first = version("first")
    assert re.fullmatch(r"sources sha256:[0-9a-f]{64}", first)
    assert version("second") == first
    with (tmp_path / "second" / "storage" / "voxelstore" / "splits.py").open("a") as file:
        file.write("# another line\n")
    assert version("second") != first
