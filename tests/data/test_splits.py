"""What an experiment says about splits is what its store has, or an error before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrisr.config import ConfigError, load_experiment
from mrisr.data.checks import open_store
from mrisr.data.splits import resolve_splits
from mrisr.training.plan import describe_plan

TINY = ("data.min_size=32", "stream.patch_size=16", "validation.patch_size=16")


@pytest.mark.parametrize("said", [[], ["data.splits={test: 1, train: 4, validation: 1}", "data.split_seed=0"]])
def test_an_experiment_takes_the_splits_of_its_store(said: list[str], small_store: Path) -> None:
    experiment = load_experiment(None, [f"data.store={small_store}", *TINY, *said])
    settled = resolve_splits(experiment, open_store(experiment))
    assert settled.data.splits == {"train": 4, "validation": 1, "test": 1}
    assert settled.data.split_seed == 0
    assert settled.changed({"data": experiment.data.model_dump()}) == experiment


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("data.splits={train: 0.8, test: 0.2}", ["data.splits='{train: 0.8, test: 0.2}'", "data.split_seed=0"]),
        ("data.split_seed=7", ["data.split_seed=7"]),
    ],
)
def test_another_rule_than_the_stores_is_refused(said: str, words: list[str], small_store: Path) -> None:
    experiment = load_experiment(None, [f"data.store={small_store}", *TINY, said])
    for use in (open_store, describe_plan):
        with pytest.raises(ConfigError) as error:
            use(experiment)
        for word in (*words, "{train: 4, validation: 1, test: 1}", str(small_store), "mrisr convert", "data.store="):
            assert word in str(error.value)


def test_a_split_that_the_store_lacks_is_named_with_keys_that_exist(small_store: Path) -> None:
    experiment = load_experiment(None, [f"data.store={small_store}", *TINY, "validation.split=nobody"])
    with pytest.raises(ConfigError, match=r"'nobody'.*train: 4.*another data\.store with other data\.splits"):
        open_store(experiment)
