"""The stored study is what a search goes on from: nothing is run twice, nothing that was running is forgotten."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from rich.console import Console

from mrisr.config import ConfigError
from mrisr.training.state import score
from mrisr.tuning.history import TrialHistory
from mrisr.tuning.plan import SearchPlan, plan_search
from mrisr.tuning.report import cost_lines, plots, study_of_results, trials_table, write_csv
from mrisr.tuning.resume import DESCRIPTION, description, learn
from mrisr.tuning.searcher import StudySearcher
from mrisr.tuning.study import open_storage, open_study
from mrisr.tuning.summary import summarize
from mrisr.tuning.trial import trial_experiment, with_known_precision

SPACE = ["training.gp_weight={log_uniform: [0.1, 100], fixed: 10}", "critic.kind={choice: [full, separable]}"]
SMALL = ["schedule.total_steps=64", "schedule.pretrain_steps=0", "validation.every=4", "tuning.startup_trials=2"]


def small_plan(folder: Path, *overrides: str) -> SearchPlan:
    plan = plan_search(None, [*SPACE, *SMALL, f"output={folder}", *overrides])
    plan.folder.mkdir(parents=True, exist_ok=True)
    return plan


def searcher(plan: SearchPlan) -> StudySearcher:
    """A searcher as a new process makes it."""
    return StudySearcher(plan, open_study(plan))


def validate(plan: SearchPlan, run: str, *psnrs: float) -> dict[str, Any]:
    """Let a run's record hold validations, every 4 steps; returns the last thing that Tune is told."""
    record = TrialHistory(plan.folder / "trials" / run)
    for number, psnr in enumerate(psnrs):
        record.add(4 * (number + 1), {"psnr": psnr, "ssim": psnr / 50, "nrmse": 1 / psnr})
    return record.results(plan.base.tuning.metrics)[-1]


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_a_killed_search_goes_on_from_its_study(tmp_path: Path, storage: str) -> None:
    plan = small_plan(tmp_path, f"tuning.storage={storage}")
    first = searcher(plan)
    a, b, c = (first.suggest(name) for name in "abc")
    assert a["values"]["training.gp_weight"] == 10.0, "the known-good point comes first"
    told = validate(plan, a["run"], *range(20, 36))
    first.on_trial_complete("a", told)
    first.on_trial_complete("b", error=True)

    second = searcher(plan)
    assert second.suggest("x") == c, "the trial that was running keeps its run and its values"
    d = second.suggest("y")
    assert d["run"] == "trial-0003"
    assert d["values"] not in (a["values"], b["values"], c["values"])
    states = [trial.state for trial in open_study(plan).trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING, TrialState.RUNNING]
    summary = summarize(plan)
    assert [trial.state for trial in summary.trials] == ["finished", "failed", "running", "running"]
    assert summary.missing == plan.base.tuning.trials - 2
    assert summary.best[0].run == a["run"]


def tell(search: StudySearcher, plan: SearchPlan, name: str, *psnrs: float) -> None:
    """Let a trial report these validations to the searcher in Tune's order: not the one that stops a trial."""
    run = search.suggest(name)["run"]
    for count in range(1, len(psnrs) + 1):
        told = validate(plan, run, *psnrs[:count])
        if count < len(psnrs) or told["step"] == plan.trial_steps:
            search.on_trial_result(name, told)
    search.on_trial_complete(name, told)


def test_a_stopped_trial_is_pruned_in_the_study_and_its_steps_are_the_cost(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    search = searcher(plan)
    for name, psnrs in (("a", range(20, 36)), ("b", (19.0,)), ("c", (23.0, 22.0, 21.0))):
        tell(search, plan, name, *psnrs)
    study = open_study(plan)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED]
    assert study.trials[1].intermediate_values == {4: 19.0}, "also the figure that stopped it, at the first rung"
    assert study.trials[2].intermediate_values == {4: 23.0, 8: 23.0, 12: 23.0}, "the best so far, by training step"
    summary = summarize(plan, study)
    assert summary.steps == 64 + 4 + 12
    ends, cost = cost_lines(plan, summary)
    assert ends == "3 trials: 1 finished, 2 stopped early"
    assert cost.startswith("cost: 80 steps run; 3 trials to their end would be 192 (2.4x)")
    for width in (200, 60):  # a column for every key, or one for all
        shown = io.StringIO()
        console = Console(file=shown, width=width)
        console.print(trials_table(plan, summary, console))
        for word in ("0 *", "35.0000", "stopped early", "gp_weight=10" if width == 60 else "gp_weight "):
            assert word in shown.getvalue()
    assert write_csv(plan, summary, tmp_path / "trials.csv").read_text().count("stopped early") == 2
    assert [t.value for t in study_of_results(plan, summary).trials] == [35.0, 19.0, 23.0]
    assert {"history", "parallel-coordinates", "slice"} <= {name for name, _ in plots(plan, summary)}


def test_two_figures_make_a_pareto_front(tmp_path: Path) -> None:
    plan = small_plan(tmp_path, "tuning.metrics=[psnr, nrmse]")
    search = searcher(plan)
    for name, psnr, nrmse in (("a", 30.0, 0.3), ("b", 29.0, 0.1), ("c", 28.0, 0.2), ("d", 29.5, 0.2)):
        config = search.suggest(name)
        TrialHistory(plan.folder / "trials" / config["run"]).add(64, {"psnr": psnr, "nrmse": nrmse})
        search.on_trial_complete(name, {"step": 64, "psnr": psnr, "nrmse": nrmse})
    summary = summarize(plan)
    assert [(t.figures["psnr"], t.figures["nrmse"]) for t in summary.best] == [(30.0, 0.3), (29.5, 0.2), (29.0, 0.1)]
    assert "pareto-front" in {name for name, _ in plots(plan, summary)}


def test_the_pictures_show_importance_by_fanova(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    search = searcher(plan)
    for number in range(8):
        config = search.suggest(str(number))
        told = validate(plan, config["run"], 20 + config["values"]["training.gp_weight"] ** 0.5)
        search.on_trial_complete(str(number), told)
    pictures = dict(plots(plan, summarize(plan)))
    assert {"history", "parallel-coordinates", "slice", "importance"} == set(pictures)
    (bars,) = pictures["importance"].data
    assert dict(zip(bars.y, bars.x, strict=True))["training.gp_weight"] > 0.8


def test_the_score_is_the_mean_over_protocols_of_one_network() -> None:
    seen = {"psnr": 40.0, "hz2538/psnr": 30.0}
    assert score(seen, "psnr", "chen2018", ()) == 40.0
    assert score(seen, "psnr", "chen2018", ("chen2018", "hz2538")) == 35.0


def test_a_record_survives_a_cut_off_line_and_repeats_nothing(tmp_path: Path) -> None:
    record = TrialHistory(tmp_path)
    assert record.add(4, {"psnr": 20.0, "ssim": 0.5})
    assert record.add(8, {"psnr": 19.0, "ssim": 0.9})
    with (tmp_path / "validations.jsonl").open("a") as file:
        file.write('\n{"step": 12, "fig')
    again = TrialHistory(tmp_path)
    assert not again.add(8, {"psnr": 99.0, "ssim": 0.9})
    assert again.add(12, {"psnr": 21.0, "ssim": 0.6})
    told = TrialHistory(tmp_path).results(("psnr", "ssim"))
    assert [(t["step"], t["best_step"], t["psnr"], t["ssim"]) for t in told] == [
        (4, 4, 20.0, 0.5), (8, 4, 20.0, 0.5), (12, 12, 21.0, 0.6),
    ]  # fmt: skip


def test_a_later_search_learns_from_an_earlier_one(tmp_path: Path) -> None:
    earlier = small_plan(tmp_path, "name=earlier")
    (earlier.folder / DESCRIPTION).write_text(yaml.safe_dump(description(earlier, "data")))
    search = searcher(earlier)
    for name, psnr in (("a", 30.0), ("b", 20.0)):
        tell(search, earlier, name, *[psnr] * (16 if name == "a" else 1))
    search.suggest("unfinished")

    plan = small_plan(tmp_path, "name=later", f"tuning.learn_from=[{earlier.folder}]", "tuning.storage=journal")
    study = open_study(plan)
    assert [learn(plan, "data", study), learn(plan, "data", study)] == [2, 2]
    known = [t for t in study.trials if t.state.is_finished()]
    assert [(t.state, t.value) for t in known] == [(TrialState.COMPLETE, 30.0), (TrialState.PRUNED, 20.0)]
    assert not summarize(plan, study).trials, "they cannot win"
    for name, narrower in (("key", "critic.kind=full"), ("range", "training.gp_weight={log_uniform: [11, 12]}")):
        narrow = small_plan(tmp_path, f"name=narrow-{name}", f"tuning.learn_from=[{earlier.folder}]", narrower)
        known = learn(narrow, "data", open_study(narrow))
        assert known == 0, "outside of its space"
    for other, word in (("validation.every=8", r"validation\.every"), (f"output={tmp_path}", "dataset")):
        plan = small_plan(tmp_path, "name=other", other, f"tuning.learn_from=[{earlier.folder}]")
        with pytest.raises(ConfigError, match=word):
            learn(plan, "other data", open_study(plan))


def test_a_database_that_two_searches_of_one_name_share_is_an_error(tmp_path: Path) -> None:
    storage = f"tuning.storage=sqlite:///{tmp_path}/all.db"
    for home in ("one", "one", "other"):
        plan = small_plan(tmp_path / home, storage)
        if home == "one":
            open_study(plan)
        else:
            with pytest.raises(ConfigError, match="belongs to the search in"):
                open_study(plan)


def test_trials_start_from_the_shared_generator_and_do_not_pay_for_l1(tmp_path: Path) -> None:
    overrides = ("tuning.shared_pretraining=true", "schedule.pretrain_steps=40", "tuning.protocols=[chen2018, hz2538]")
    plan = small_plan(tmp_path, *overrides, "tuning.metrics=[nrmse]")
    assert plan.trial_steps == 24
    trial = trial_experiment(plan, "trial-0007", {"training.gp_weight": 3.0, "critic.kind": "full"})
    assert (trial.schedule.pretrain_steps, trial.schedule.total_steps) == (0, 24)
    assert trial.generator.init_from == str(plan.pretrained_folder)
    assert trial.run_folder == plan.folder / "trials" / "trial-0007"
    assert trial.training.checkpoint_every == trial.validation.every, "what Tune sees can be resumed and registered"
    v = trial.validation
    assert (v.metric, v.mean_over, v.start_counts) == ("nrmse", ("chen2018", "hz2538"), False), "best is by the score"
    assert (trial.training.gp_weight, trial.critic.kind) == (3.0, "full")
    apart = small_plan(tmp_path)
    unshared = trial_experiment(apart, "trial-0000", {"training.gp_weight": 3.0})
    assert unshared.schedule == apart.base.schedule


def test_a_search_keeps_the_precision_that_its_first_trial_began_with(tmp_path: Path) -> None:
    """On whatever machine it goes on, or trains its winner; a trial that has begun goes on as it was written down."""
    plan = small_plan(tmp_path)
    values = {"training.gp_weight": 3.0}
    assert trial_experiment(plan, "trial-0000", values).training.precision == "auto"
    for run, became in (("trial-0001", "bf16"), ("trial-0002", "fp32")):
        begun = trial_experiment(plan, run, values).run_folder
        begun.mkdir(parents=True)
        (begun / "experiment.yaml").write_text("training: {precision: auto}")
        (begun / "precision.txt").write_text(became)
    found = [trial_experiment(plan, f"trial-{number:04d}", values).training.precision for number in range(4)]
    assert found == ["bf16", "auto", "auto", "bf16"]
    runs = ("", "trial-0001", "trial-0002")
    winners = [with_known_precision(plan, plan.base, run).training.precision for run in runs]
    assert winners == ["bf16", "bf16", "fp32"]
    pretrained = plan.pretrained_folder
    pretrained.mkdir()
    (pretrained / "experiment.yaml").write_text("training: {precision: fp32}")
    assert trial_experiment(plan, "trial-0003", values).training.precision == "fp32", "all start from its weights"
    given = small_plan(tmp_path, "training.precision=fp32")
    assert trial_experiment(given, "trial-0009", values).training.precision == "fp32"


def test_a_known_point_whose_trial_was_killed_while_it_was_drawn_is_not_lost(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    open_study(plan).ask()
    assert searcher(plan).suggest("a")["values"]["training.gp_weight"] == 10.0
    assert [t.state for t in open_study(plan).trials] == [TrialState.RUNNING]


def test_a_sampler_does_not_repeat_its_draws_after_a_restart(tmp_path: Path) -> None:
    plan = small_plan(tmp_path, "tuning.sampler=random")
    found = []
    for name in "abc":
        search = searcher(plan)
        found.append(search.suggest(name)["values"]["training.gp_weight"])
        search.on_trial_complete(name, error=True)
    assert len(set(found)) == 3
    assert optuna.load_study(study_name=plan.folder.name, storage=open_storage(plan)).trials
