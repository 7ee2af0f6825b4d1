"""$MRISR_HOME is renamed between two commands: the run goes on, its model loads, and the old place stays empty."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import write_cohort
from tests.terminal import drawn, plain

from .conftest import Bench

pytestmark = pytest.mark.integration


def test_training_goes_on_and_the_model_loads_after_a_move(
    local_ray: None,
    tmp_path: Path,
    small_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = Bench(tmp_path / "old", tmp_path / "old" / "store.zarr")
    shutil.copytree(small_store, old.store)
    short = ("schedule.pretrain_steps=4", "resources.workers=1", "schedule.critic_warmup_steps=1")
    # In a process of its own: the process of the later commands must know the new place alone.
    command = [sys.executable, "-m", "mrisr", "train", "--config", str(old.config), "schedule.total_steps=6", *short]
    screen = plain(drawn(command, terminal=True, environment=old.environment, cwd=old.home))
    for text in ("tiny: 6 steps, the first 4 of them L1, then WGAN-GP", "WGAN-GP: ended", "step 6 of 6", "patches/s",
                 "pretrain loss", "critic loss", "over its input", "validation.png", "of step 6"):  # fmt: skip
        assert text in screen, screen
    assert not re.search(r"pid=|Watcher|Cleaner", screen), "lines of Ray's own"
    before = registered(screen)
    old.home.rename(tmp_path / "new")
    new = Bench(tmp_path / "new", tmp_path / "new" / "store.zarr")

    def run(*arguments: str) -> str:
        code, output = new.here(monkeypatch, capsys, *arguments)
        assert code == 0, output
        return output

    train = ("train", "--config", str(new.config), *short)
    after = registered(run(*train, "schedule.total_steps=12"))
    assert [step for step, _ in new.history()["throughput/steps_per_second"]] == [2, 4, 6, 8, 10, 12]
    (scan,) = write_cohort(tmp_path / "scan", 1)
    for version in (before[0], after[-1]):
        run("superresolve", "--model", version, "--same-grid", "--overwrite", str(scan), str(tmp_path / "out.nii.gz"))
    run(*train, "name=another", "schedule.total_steps=5")
    assert not old.home.exists()


def registered(output: str) -> list[str]:
    """The versions that a run says it has registered."""
    found = re.findall(r"registered (models:/\S+)", output)
    assert found, output
    return found
