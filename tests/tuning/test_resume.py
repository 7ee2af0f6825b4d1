"""What a search is known by when it starts again, and what a start leaves that came to nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from mrisr.config import ConfigError
from mrisr.training.outcome import TrainingStopped
from mrisr.tuning.history import TrialHistory
from mrisr.tuning.plan import SearchPlan, plan_search
from mrisr.tuning.progress import Progress
from mrisr.tuning.resume import DESCRIPTION, begin_or_resume
from mrisr.tuning.searcher import StudySearcher
from mrisr.tuning.study import open_study
from mrisr.tuning.summary import summarize

GP_WEIGHT = "training.gp_weight={log_uniform: [0.1, 100], fixed: 10}"
SMALL = ["schedule.total_steps=64", "schedule.pretrain_steps=0", "validation.every=4"]


def small_plan(folder: Path, *overrides: str) -> SearchPlan:
    plan = plan_search(None, [GP_WEIGHT, *SMALL, f"output={folder}", *overrides])
    plan.folder.mkdir(parents=True, exist_ok=True)
    return plan


def searcher(plan: SearchPlan) -> StudySearcher:
    return StudySearcher(plan, open_study(plan))


def test_any_seed_makes_a_sampler(tmp_path: Path) -> None:
    for kind in ("tpe", "random", "cmaes"):
        plan = small_plan(tmp_path / kind, f"tuning.sampler={kind}", f"seed={2**63 - 1}")
        assert searcher(plan).suggest("a")["run"] == "trial-0000"


def test_two_processes_describe_one_search_alike(tmp_path: Path) -> None:
    """A space without a fixed value among others: a description that varies would refuse its own search."""
    code = (
        "import sys, yaml; from mrisr.tuning.resume import description; from mrisr.tuning.plan import plan_search;"
        "print(yaml.safe_dump(description(plan_search(None, sys.argv[1:]), 'data')))"
    )
    overrides = ["training.gp_weight={log_uniform: [0.1, 100]}", *SMALL, f"output={tmp_path}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    texts = {
        subprocess.run(
            [sys.executable, "-c", code, *overrides], env=environment, capture_output=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(texts) == 1


def test_what_lies_around_a_trial_ends_the_search_and_not_the_trial(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    search, progress = searcher(plan), Progress(plan)
    for name, end in (("a", "fail"), ("b", "interrupt")):
        run = search.suggest(name)["run"]
        getattr(TrialHistory(plan.folder / "trials" / run), end)("why")
        search.on_trial_complete(name, error=True)
        trial = SimpleNamespace(config={"run": run})
        if end == "fail":
            progress.on_trial_error(0, [], trial)
        else:
            with pytest.raises(TrainingStopped, match=r"trial-0001 could not go on: why\nThe same command goes on"):
                progress.on_trial_error(0, [], trial)
    assert [trial.state for trial in summarize(plan).trials] == ["failed", "running"]
    assert searcher(plan).suggest("x")["run"] == "trial-0001", "it goes on"


def test_a_start_that_trained_nothing_leaves_its_name_free_and_nothing_in_the_queue(tmp_path: Path) -> None:
    mistaken = small_plan(tmp_path, "tuning.trials=5")
    begin_or_resume(mistaken, "data")
    open_study(mistaken)  # with the known-good point, gp_weight = 10
    (mistaken.folder / "mlflow_run_id.txt").write_text("its parent run, which ended")

    plan = small_plan(tmp_path, "training.gp_weight={log_uniform: [20, 100], fixed: 30}", "tuning.metrics=[psnr, ssim]")
    begin_or_resume(plan, "data")
    assert not (plan.folder / "mlflow_run_id.txt").exists()
    first = searcher(plan).suggest("a")
    assert (first["run"], first["values"]) == ("trial-0000", {"training.gp_weight": 30.0})

    # The study knows of the trial, whose folder may be gone.
    begin_or_resume(plan, "data")
    assert [trial.run for trial in summarize(plan).trials] == ["trial-0000"]
    with pytest.raises(
        ConfigError, match=r"holds a search of other settings; changed:\n(.*\n)*  space\..*was .*, now "
    ):
        begin_or_resume(mistaken, "data")
    order = small_plan(tmp_path / "order", "critic.kind={choice: [full, separable]}")
    begin_or_resume(order, "data")
    searcher(order).suggest("a")
    other = SearchPlan(order.base, dict(reversed(order.spaces.items())), order.points)
    written = order.folder / DESCRIPTION
    written.write_text(yaml.safe_dump(yaml.safe_load(written.read_text()), sort_keys=False, default_flow_style=True))
    begin_or_resume(order, "data")  # the same, written differently
    with pytest.raises(ConfigError, match=r"changed:\n  the order of the searched keys, in which values are drawn"):
        begin_or_resume(other, "data")


def test_a_search_of_a_version_without_some_key_goes_on_while_the_key_has_its_default(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    begin_or_resume(plan, "data")
    searcher(plan).suggest("a")
    written = plan.folder / DESCRIPTION
    older = yaml.safe_load(written.read_text())
    del older["stream"]["rounds"]
    written.write_text(yaml.safe_dump(older, sort_keys=False))
    begin_or_resume(plan, "data")
    with pytest.raises(ConfigError, match=r"changed:\n  stream\.rounds: was 1, now 2\n"):
        begin_or_resume(small_plan(tmp_path, "stream.rounds=2"), "data")
