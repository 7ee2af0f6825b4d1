"""Search spaces in an experiment file: what they allow, and what is wrong with one before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mrisr.config import ConfigError, load_experiment
from mrisr.config.spaces import Space
from mrisr.tuning.plan import plan_search
from mrisr.tuning.report import winner_yaml
from mrisr.tuning.study import build_sampler, open_study

CONDITIONAL = [
    "degradation.kind={choice: [truncate, mixed], fixed: truncate}",
    "degradation.mix={interval: [0, 1], when: {degradation.kind: mixed}}",
    "degradation.fraction={interval: [0.05, 0.9], fixed: [0.4, 0.6]}",
]


def drawn(overrides: list[str], count: int, sampler: str = "random") -> list[dict[str, Any]]:
    plan = plan_search(None, [*overrides, f"tuning.sampler={sampler}"])
    study = optuna.create_study(sampler=build_sampler(plan, 0))
    found = []
    for _ in range(count):
        trial = study.ask()
        found.append(plan.draw(trial))
        study.tell(trial, 0.0)
    return found


@pytest.mark.parametrize("name", ["hcp", "tune"])
def test_shipped_spaces_are_valid_and_their_files_train_as_they_are(name: str) -> None:
    plan = plan_search(name)
    wanted = {
        "degradation.fraction", "schedule.critic_per_generator", "training.gp_weight", "training.adversarial_weight",
        "training.generator_lr", "training.critic_lr", "critic.kind",
    }  # fmt: skip
    assert wanted <= set(plan.spaces)
    assert load_experiment(name) == plan.base
    (first, *_) = plan.points
    values = plan.draw(optuna.trial.FixedTrial(first))
    assert values["degradation.fraction"] == pytest.approx(list(plan.base.degradation.fraction))
    assert values["training.adversarial_weight"] == plan.base.training.adversarial_weight == 1e-3
    assert plan.base.training.gp_weight == 10


def test_training_refuses_an_open_space_and_names_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"training\.gp_weight.*mrisr tune"):
        load_experiment(None, ["training.gp_weight={log_uniform: [0.1, 100]}"])


def test_a_conditional_space_without_a_fixed_value_is_open_only_where_it_exists() -> None:
    mix = "degradation.mix={interval: [0.2, 0.8], when: {degradation.kind: mixed}}"
    assert load_experiment(None, [mix]).degradation.mix == (0.0, 1.0)
    with pytest.raises(ConfigError, match=r"degradation\.mix.*mrisr tune"):
        load_experiment(None, [mix, "degradation.kind=mixed"])


def test_both_ends_of_the_zeroing_range_are_ordered_and_inside() -> None:
    for values in drawn(CONDITIONAL, 200):
        low, high = values["degradation.fraction"]
        assert 0.05 <= low <= high <= 0.9


@pytest.mark.parametrize("sampler", ["random", "tpe", "multivariate", "cmaes"])
def test_a_conditional_key_is_drawn_only_where_it_exists(sampler: str) -> None:
    found = drawn(CONDITIONAL, 40, sampler)
    kinds = {values["degradation.kind"] for values in found}
    assert kinds == {"truncate", "mixed"}
    for values in found:
        assert ("degradation.mix" in values) == (values["degradation.kind"] == "mixed")


def test_cmaes_learns_from_trials_that_were_stopped_early() -> None:
    plan = plan_search(None, [
        "training.gp_weight={log_uniform: [0.1, 100]}", "training.critic_lr={log_uniform: [1.0e-5, 1.0e-3]}",
        "tuning.sampler=cmaes", "tuning.startup_trials=2",
    ])  # fmt: skip
    study = optuna.create_study(sampler=build_sampler(plan, 0))
    for figure in (1.0, 2.0, 3.0):
        trial = study.ask()
        plan.draw(trial)
        trial.report(figure, 4)
        if trial.number == 0:
            study.tell(trial, figure)
        else:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    assert [any("cma" in key for key in trial.system_attrs) for trial in study.trials] == [False, False, True]


@given(st.floats(0.05, 0.9), st.floats(0.05, 0.9))
def test_a_known_interval_comes_back_from_its_parameters(a: float, b: float) -> None:
    space = Space("f", "interval", (0.05, 0.9))
    wanted = sorted((a, b))
    assert space.suggest(optuna.trial.FixedTrial(space.parameters(wanted))) == pytest.approx(wanted, abs=1e-9)


def test_an_override_closes_a_space_and_those_that_exist_under_other_values_only(tmp_path: Path) -> None:
    open_spaces = set(plan_search("hcp").spaces)
    assert {"degradation.kind", "degradation.mix"} <= open_spaces
    for kind, gone in (("truncate", {"degradation.kind", "degradation.mix"}), ("mixed", {"degradation.kind"})):
        plan = plan_search("hcp", [f"degradation.kind={kind}"])
        assert set(plan.spaces) == open_spaces - gone
        assert ("degradation.mix" in plan.draw(optuna.trial.FixedTrial(plan.points[0]))) == (kind == "mixed")

    chain = tmp_path / "chain.yaml"
    chain.write_text(yaml.safe_dump({
        "degradation": {"kind": {"choice": ["truncate", "mixed"], "fixed": "mixed"}},
        "critic": {"kind": {"choice": ["full", "separable"], "fixed": "full", "when": {"degradation.kind": "mixed"}}},
        "training": {
            "gp_weight": {"uniform": [1, 2], "fixed": 1, "when": {"critic.kind": "separable"}},
            "critic_lr": {"uniform": [0.1, 0.2], "fixed": 0.1, "when": {"critic.kind": "full"}},
        },
    }))  # fmt: skip
    assert set(plan_search(chain, ["degradation.kind=truncate"]).spaces) == {"training.critic_lr"}
    with pytest.raises(ConfigError, match=r"no search space"):
        plan_search(chain, ["degradation.kind=truncate", "training.critic_lr=0.1"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], ["no search space", "log_uniform"]),
        (["training.gp_weigth={uniform: [1, 2]}"], ["training.gp_weigth", "did you mean training.gp_weight?"]),
        (["training.gp_weight={uniform: [2, 1]}"], ["training.gp_weight", "[1, 2]"]),
        (["training.gp_weight={uniform: [1]}"], ["training.gp_weight", "two ends"]),
        (["training.gp_weight={log_uniform: [0, 1]}"], ["training.gp_weight", "above 0"]),
        (["training.gp_weight={uniform: [-1, 1]}"], ["training.gp_weight", "-1"]),
        (["training.gp_weight={uniform: [1, 2], fixed: 3}"], ["training.gp_weight", "3", "outside"]),
        (["training.gp_weight={uniform: [1, 2], fxied: 1}"], ["training.gp_weight", "fxied"]),
        (["training.gp_weight={uniform: [a, b]}"], ["training.gp_weight", "numbers"]),
        (["training.critic_lr={log_uniform: [1.0e-6, 3]}"], ["training.critic_lr", "3"]),
        (["schedule.critic_per_generator={uniform: [1, 7]}"], ["schedule.critic_per_generator", "integer"]),
        (["schedule.critic_per_generator={int: [1, 600]}"], ["schedule.critic_per_generator", "boost_every"]),
        (["critic.kind={choice: [separable, conv]}"], ["critic.kind", "'conv'"]),
        (["critic.kind={choice: []}"], ["critic.kind", "choice"]),
        (["degradation.fraction={interval: [0, 1]}"], ["degradation.fraction"]),
        (["validation.protocol={choice: [chen2018, hz2538]}"], ["validation.protocol", "compared on"]),
        (["schedule.total_steps={int: [1, 9]}"], ["schedule.total_steps", "budget"]),
        (["critic.kind={choice: [full]}", "degradation.mix={interval: [0, 1], when: {critic.kind: separable}}"],
         ["degradation.mix", "separable", "full"]),
        (["degradation.mix={interval: [0, 1], when: {degradation.kind: mixed}}"], ["degradation.mix", "truncate"]),
        (["degradation.mix={interval: [0, 1], when: {degradation.kind: mixed}}", "degradation.kind=truncate",
          "training.gp_weight={uniform: [1, 2]}"], ["degradation.mix", "truncate"]),
        (["degradation.mix={interval: [0, 1], when: {degradation.kid: mixed}}"], ["degradation.kid"]),
        (["training.gp_weight={uniform: [1, 2]}", "degradation.mix={interval: [0, 1], when: {training.gp_weight: 1}}"],
         ["degradation.mix", "training.gp_weight", "no single value"]),
        (["degradation.fraction={interval: [0.1, 0.9]}",
          "training.gp_weight={uniform: [1, 2], when: {degradation.fraction: [[0.4, 0.6]]}}"], ["no single value"]),
        (["schedule.critic_per_generator={int: [1, 3]}",
          "training.gp_weight={uniform: [1, 2], when: {schedule.critic_per_generator: [3, 4]}}"],
         ["training.gp_weight", "[4]", "int [1, 3]"]),
        (["schedule.critic_per_generator={int: [1, 3]}",
          "training.gp_weight={uniform: [1, 2], when: {schedule.critic_per_generator: 1.5}}"], ["1.5"]),
        (["training.gp_weight={uniform: [1, 2], when: {training.critic_lr: 1}}",
          "training.critic_lr={uniform: [0.1, 0.2], when: {training.gp_weight: 1}}"], ["circle"]),
        (["training.gp_weight={uniform: [1, 2]}", "tuning.points=[{training.gp_weight: 9}]"], ["tuning.points", "9"]),
        (["training.gp_weight={uniform: [1, 2]}", "tuning.points=[{seed: 9}]"], ["tuning.points", "seed"]),
        (["training.gp_weight={uniform: [1, 2]}", "tuning.sampler=cmaes", "tuning.metrics=[psnr, ssim]"], ["cmaes"]),
        (["generator.growth_rate={int: [2, 4]}", "tuning.shared_pretraining=true"], ["generator.growth_rate", "once"]),
    ],
)  # fmt: skip
def test_a_bad_space_is_named_before_the_first_trial(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        plan_search(None, overrides)
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"


def test_known_good_points_are_tried_first(tmp_path: Path) -> None:
    plan = plan_search(None, [
        "training.gp_weight={log_uniform: [0.1, 100], fixed: 10}",
        "critic.kind={choice: [full, separable], fixed: full}",
        "tuning.points=[{training.gp_weight: 1}]", f"output={tmp_path}",
    ])  # fmt: skip
    plan.folder.mkdir()
    study = open_study(plan)
    found = [plan.draw(study.ask()) for _ in range(3)]
    assert found[0] == {"training.gp_weight": 10.0, "critic.kind": "full"}
    assert found[1]["training.gp_weight"] == 1.0
    assert found[2]["training.gp_weight"] not in (1.0, 10.0)


def test_the_grid_holds_every_combination_once() -> None:
    overrides = ["training.gp_weight={log_uniform: [0.1, 10]}", "critic.kind={choice: [full, separable]}"]
    found = []
    plan = plan_search(None, [*overrides, "tuning.sampler=grid"])
    study = optuna.create_study(sampler=build_sampler(plan, 0))
    for _ in range(6):
        found.append(plan.draw(study.ask()))
    weights = {values["training.gp_weight"] for values in found}
    assert len(weights) == 3
    assert sorted(weights) == pytest.approx([0.1, 1.0, 10.0])


def test_values_outside_of_the_space_keep_their_places() -> None:
    base = load_experiment(None, ["training.batch_size=4"])
    experiment = base.changed({"training.gp_weight": 3.0, "critic.kind": "full"})
    assert (experiment.training.batch_size, experiment.training.gp_weight, experiment.critic.kind) == (4, 3.0, "full")


def test_winner_yaml_is_an_experiment_file_that_train_takes(tmp_path: Path) -> None:
    from mrisr.tuning.summary import TrialSummary

    plan = plan_search("tune")
    values = plan.draw(optuna.trial.FixedTrial(plan.points[0])) | {"training.gp_weight": 3.25}
    winner: Any = TrialSummary(3, "trial-0003", "finished", values, [], {"psnr": 30.0}, 9, None, None, tmp_path, None)  # type: ignore[arg-type]
    file = tmp_path / "winner.yaml"
    file.write_text(winner_yaml(plan, winner))
    assert load_experiment(file).training.gp_weight == 3.25
    assert "tuning" not in yaml.safe_load(file.read_text())
