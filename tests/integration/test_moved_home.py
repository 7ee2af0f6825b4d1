"""$MRISR_HOME is renamed between two commands: the run goes on, its model loads, and the old place stays empty."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import write_cohort

from .conftest import Bench

pytestmark = pytest.mark.integration


def test_training_goes_on_and_the_model_loads_after_a_move(tmp_path: Path, small_store: Path) -> None:
    old = Bench(tmp_path / "old", tmp_path / "old" / "store.zarr")
    shutil.copytree(small_store, old.store)
    short = ("schedule.pretrain_steps=4", "resources.workers=1", "schedule.critic_warmup_steps=1")
    before = registered(old.train("schedule.total_steps=6", *short).stdout)
    old.home.rename(tmp_path / "new")
    new = Bench(tmp_path / "new", tmp_path / "new" / "store.zarr")
    after = registered(new.train("schedule.total_steps=12", *short).stdout)
    assert [step for step, _ in new.history()["throughput/steps_per_second"]] == [2, 4, 6, 8, 10, 12]
    (scan,) = write_cohort(tmp_path / "scan", 1)
    target = str(tmp_path / "out.nii.gz")
    for version in (before[0], after[-1]):
        new.call("superresolve", "--model", version, "--overwrite", str(scan), target)
    new.train("name=another", "schedule.total_steps=5", *short)
    assert not old.home.exists()


def registered(output: str) -> list[str]:
    """The versions that a run says it has registered."""
    found = re.findall(r"registered (models:/\S+)", output)
    assert found, output
    return found
