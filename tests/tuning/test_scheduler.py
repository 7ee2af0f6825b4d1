"""Which trials are stopped early, also by what was seen before a kill."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial

from mrisr.tuning.plan import SearchPlan, plan_search
from mrisr.tuning.scheduler import Histories, build_scheduler, grace_steps, judged_results, rungs
from mrisr.tuning.study import RUN


def small_plan(folder: Path, *overrides: str) -> SearchPlan:
    small = ["schedule.total_steps=64", "schedule.pretrain_steps=0", "validation.every=4", f"output={folder}"]
    return plan_search(None, ["training.gp_weight={log_uniform: [0.1, 100]}", *small, *overrides])


def verdicts(plan: SearchPlan, histories: Histories, run: str, told: list[dict[str, Any]]) -> list[str]:
    """What the scheduler of a new process says to each result of a run, up to the one that stops it."""
    scheduler = build_scheduler(plan, histories)
    trial: Any = SimpleNamespace(trial_id=f"of this process: {run}", config={RUN: run})
    scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
    said: list[str] = []
    for result in told:
        said.append(str(scheduler.on_trial_result(None, trial, result)))  # type: ignore[arg-type]
        if said[-1] == "STOP":
            break
    scheduler.on_trial_complete(None, trial, told[len(said) - 1])  # type: ignore[arg-type]
    return said


def results(psnr: float, last: int) -> list[dict[str, Any]]:
    return [{"step": step, "psnr": psnr} for step in range(4, last + 1, 4)]


def test_asha_stops_a_bad_trial_by_what_was_seen_before_a_kill(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    assert grace_steps(plan) == 4
    before = {f"trial-{i}": results(20.0 + i, 4) for i in range(4)}
    assert verdicts(plan, {}, "new", results(1.0, 4)) == ["CONTINUE"]
    assert verdicts(plan, before, "new", results(1.0, 4)) == ["STOP"]
    assert verdicts(plan, before, "new", results(30.0, 4)) == ["CONTINUE"]


def test_asha_does_not_judge_a_trial_that_resumes_again_where_it_was_judged(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    others = {f"trial-{i}": results(30.0 + i, 64) for i in range(4)}
    assert verdicts(plan, others, "late", results(1.0, 64)) == ["STOP"]
    for last in (60, 64):
        known = others | {"late": judged_results(False, results(1.0, last))}
        assert verdicts(plan, known, "late", results(1.0, 64)) == ["CONTINUE"] * 16

    # It resumes between two rungs: the next one, at step 16, is decided as ever.
    known = others | {"late": judged_results(False, results(1.0, 12))}
    assert verdicts(plan, known, "late", results(1.0, 64)) == ["CONTINUE"] * 3 + ["STOP"]
    assert verdicts(plan, known, "late", results(1.0, 12) + results(50.0, 64)[3:]) == ["CONTINUE"] * 16

    # What was written down last was not judged before the kill, perhaps.
    known = others | {"late": judged_results(False, results(1.0, 16))}
    assert verdicts(plan, known, "late", results(1.0, 64)) == ["CONTINUE"] * 3 + ["STOP"]


def test_asha_decides_before_the_last_step_only(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    assert rungs(plan) == [4, 16]
    assert sorted(build_scheduler(plan, {}).rungs) == [4, 16]  # type: ignore[attr-defined]
    assert rungs(small_plan(tmp_path, "tuning.scheduler=none")) == []


def test_the_median_rule_stops_trials_and_never_pauses_one_for_another(tmp_path: Path) -> None:
    scheduler: Any = build_scheduler(small_plan(tmp_path, "tuning.scheduler=median"), {})
    trials = {name: Trial("search", stub=True) for name in "abcd"}
    waiting = SimpleNamespace(get_live_trials=lambda: [Trial("search", stub=True)])
    for name, psnr in (("a", 30.0), ("b", 31.0), ("c", 32.0)):
        for result in results(psnr, 8):
            assert scheduler.on_trial_result(waiting, trials[name], result) == "CONTINUE"
    assert scheduler.on_trial_result(waiting, trials["d"], results(1.0, 4)[0]) == "STOP"
