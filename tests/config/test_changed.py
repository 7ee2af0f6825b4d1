"""An experiment is changed in one way, which checks the result; names come from tables that may grow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import ValidationError

from mrisr.config import ConfigError, Experiment, load_experiment
from mrisr.config.fields import Section, one_of
from mrisr.config.reference import checked, fields_of
from mrisr.degradation import DegradationRange
from mrisr.engine.schedule import Schedule
from mrisr.engine.step_settings import StepSettings


def test_a_change_is_a_checked_and_frozen_copy(tmp_path: Path) -> None:
    before = load_experiment(None, ["training.batch_size=4", "tuning.trials=3"])
    after = before.changed(
        {"training.precision": "bf16", "output": tmp_path, "degradation.fraction": 0.4, "tuning": {}, "name": "other"}
    )
    assert (after.training.precision, after.training.batch_size, after.output) == ("bf16", 4, tmp_path)
    assert (after.degradation.fraction, after.tuning, after.name) == ((0.4, 0.4), Experiment().tuning, "other")
    assert (before.training.precision, before.tuning.trials, before.name) == ("auto", 3, "mdcsrn")
    with pytest.raises(ValidationError, match="frozen"):
        after.name = "x"
    assert before.changed({}) == before
    mapping = {"train": 3.0, "validation": 1.0}
    assert before.changed({"data.splits": mapping}).data.splits == mapping


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("training.precisoin", "bf16", ["training.precisoin = 'bf16'", "did you mean training.precision?"]),
        ("training.batch_size", 0, ["training.batch_size = 0", "greater than 0"]),
        ("resources.workers", 3, ["training.batch_size = 2", "resources.workers = 3", "multiple of 3"]),
        ("name.first", "x", ["name.first", "'mdcsrn'", "not a section"]),
        ("validation.protocol", None, ["validation.protocol = None", "unknown protocol", "chen2018, hz2538"]),
    ],
)
def test_a_change_that_cannot_be_names_the_key(key: str, value: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        Experiment().changed({key: value})
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"


def test_a_field_takes_the_names_that_its_table_has_when_it_is_read() -> None:
    table = {"apple": 1}

    class Basket(Section):
        fruit: Annotated[str, one_of(table, "fruit")] = "apple"
        more: tuple[Annotated[str, one_of(table, "fruit")], ...] = ()

    with pytest.raises(ConfigError, match=r"fruit = 'pear': unknown fruit; use one of apple$"):
        checked(Basket, {"fruit": "pear"})
    table["pear"] = 2
    assert checked(Basket, {"fruit": "pear", "more": ["apple", "pear"]}).fruit == "pear"
    assert Basket.model_json_schema()["properties"]["fruit"]["enum"] == ["apple", "pear"]
    assert {key: kind for key, kind, _, _ in fields_of(Basket)} == {
        "fruit": "apple | pear", "more": "list of apple | pear"
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"more\.0 = 'fig': unknown fruit; use one of apple, pear"):
        checked(Basket, {"more": ["fig"]})


def test_what_the_science_declares_is_what_the_configuration_has() -> None:
    experiment = Experiment()
    assert experiment.schedule == Schedule()
    assert experiment.degradation == DegradationRange()
    settings = StepSettings()
    assert {name: getattr(experiment.training, name) for name in vars(settings)} == vars(settings)
    meanings = {key: meaning for key, _, _, meaning in fields_of(Experiment)}
    assert meanings["schedule.total_steps"] == "length of the run; a step is one update of one network"
    with pytest.raises(
        ConfigError, match=r"schedule.total_stepz = 3: unknown key; did you mean schedule.total_steps\?"
    ):
        checked(Experiment, {"schedule": {"total_stepz": 3}})
    with pytest.raises(ConfigError, match=r"training = 3: is a section, not a key; write training.KEY=VALUE"):
        checked(Experiment, {"training": 3})
    with pytest.raises(ValueError, match=r"schedule\.total_steps is 0; it must be greater than 0"):
        Schedule(total_steps=0)
    with pytest.raises(ConfigError, match=r"schedule.total_steps = 0: input should be greater than 0; the key means"):
        checked(Experiment, {"schedule": {"total_steps": 0}})
