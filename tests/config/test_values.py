"""YAML 1.2 scalars with the types of the schema; what is dumped is loaded, also by the dumper of earlier versions."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mrisr.cli.app import main
from mrisr.config import ConfigError, Experiment, load_experiment
from mrisr.config.loading import dump_experiment
from mrisr.config.values import dump, parse, plain
from mrisr.tuning.plan import plan_search

# Words that some version of YAML takes for something else than text.
ODD = [
    "on", "y", "No", "true", "null", "NULL", "0123", "08", "0o17", "0x1f", "0b11", "1e5", "1.e5", "-.5e-3", "1_000",
    "12:30:45", "2020-01-01", ".inf", ".nan", "123456789012345678901234567890", "1.5", "5", "0",
]  # fmt: skip
TEXTS = st.sampled_from(["=", "<<", "~", "", *ODD]) | st.text(st.characters(codec="utf-8"))


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("seed=0123", "seed", 123),
        ("seed=1e5", "seed", 100_000),
        ("training.pretrain_lr=1e-5", "training.pretrain_lr", 1e-5),
        ("training.gp_weight=+5", "training.gp_weight", 5.0),
        ("degradation.fraction=[1e-1, .5]", "degradation.fraction", (0.1, 0.5)),
        ("generator.recompute=false", "generator.recompute", False),
        ("name=1e5", "name", "1e5"),
        ("name=0123", "name", "0123"),
        ("name=null", "name", "null"),
        ("generator.init_from=null", "generator.init_from", None),
        ("generator.init_from=08", "generator.init_from", "08"),
        ("data.pattern=*T1w*", "data.pattern", "*T1w*"),
        ("data.pattern='*T1w*'", "data.pattern", "'*T1w*'"),
        ("data.pattern={a,b}", "data.pattern", "{a,b}"),
        ("data.pattern=a: b #c", "data.pattern", "a: b #c"),
        ("data.store=/data #2/s.zarr", "data.store", Path("/data #2/s.zarr")),
        ("output=/12:30", "output", Path("/12:30")),
        ("tuning.learn_from=[/a, 08, 1e5]", "tuning.learn_from", ("/a", "08", "1e5")),
        ("data.splits={on: 3, 08: 2}", "data.splits", {"on": 3.0, "08": 2.0}),
    ],
)
def test_an_override_is_of_the_type_of_its_key(override: str, key: str, value: Any) -> None:
    found: Any = load_experiment(None, [override])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value) or isinstance(value, Path)


@pytest.mark.parametrize(
    "override",
    [
        "seed=true", "seed=yes", "seed='5'", "seed=1_000", "seed=0x1f", "seed=0o17", "seed=1:30",
        "seed=9223372036854775808", "degradation.slice_axis=-9223372036854775809",
        "seed=1.5", "seed=.inf", "seed=1e400", "training.batch_size=on",
        "generator.growth_rate=true", "generator.growth_rate=1_0", "generator.growth_rate=1e18", "generator.blocks=99",
        "training.gp_weight=.inf", "training.gp_weight=.nan", "training.gp_weight=1e999", "training.gp_weight=true",
        "training.gp_weight=1_0.0", "training.gp_weight=1:30", "training.gp_weight='1'",
        "resources.resize_every_s=.inf",
        "generator.recompute=yes", "generator.recompute=on", "generator.recompute=1", "generator.residual=off",
        "degradation.fraction=true",
        "degradation.axes=[true, 2]", "degradation.sigma=[0, .inf]", "degradation.slice_axis=yes",
        "data.splits={train: yes}", "data.splits={train: .inf}", "training.compile=y",
        "data.split_seed=99999999999999999999",
        "tuning.trials=1_000", f"seed={'1' * 5000}",
        "seed=!!int '1_0'", "seed=!!int 0x1f", "seed=!!int ' 5 '", "training.gp_weight=!!float 1_0.0",
        "data.store=", "output=", "validation.split=", "tracking.model=", "tracking.experiment=", "data.pattern=",
    ],
)  # fmt: skip
def test_nothing_is_guessed(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        load_experiment(None, [override])


@pytest.mark.parametrize(
    "ends", ["[0, .inf]", "[-.inf, 1]", "[.nan, 1]", "[true, 2]", "[1_0, 20]", "['1', 20]", "[0, 1e300]"]
)
def test_the_ends_of_a_space_are_finite_numbers(ends: str) -> None:
    with pytest.raises(ConfigError, match=r"training\.gp_weight.*numbers between"):
        plan_search(None, [f"training.gp_weight={{uniform: {ends}}}"])


def test_spaces_are_written_on_the_command_line_also_where_a_key_takes_text(tmp_path: Path) -> None:
    plan = plan_search(None, ["training.gp_weight={log_uniform: [1e-5, 1e2], fixed: 08}",
                              "generator.init_from={choice: [null, /w.pt], fixed: null}"])  # fmt: skip
    assert plan.spaces["training.gp_weight"].options == (1e-5, 100.0)
    assert plan.base.training.gp_weight == 8
    assert repr(plan.spaces["generator.init_from"].options) == "(None, '/w.pt')"


@given(st.lists(st.tuples(TEXTS, st.none() | st.booleans() | st.integers() | TEXTS | st.floats(allow_nan=False))))
def test_what_is_dumped_is_parsed(pairs: list[tuple[str, Any]]) -> None:
    value = {"pairs": dict(pairs), "list": [item for _, item in pairs]}
    assert plain(parse(dump(value))) == value
    assert yaml.safe_load(dump(value)) == value  # by a reader of YAML 1.1 too


@given(name=st.sampled_from([word for word in ODD if word[0].isalnum() and ":" not in word]), other=TEXTS)
def test_files_of_earlier_versions_load_to_equal_experiments(name: str, other: str) -> None:
    """They were written by yaml.safe_dump, which leaves 1e5 and 08 without quotes, since they are text in YAML 1.1."""
    experiment = Experiment().changed(
        {"name": name, "generator.init_from": other, "data.pattern": other or "*", "tuning.learn_from": [name, other],
         "data.splits": {name: 0.5}, "tracking.experiment": name, "training.pretrain_lr": 1e-5,
         "training.gp_weight": 1e22}
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "experiment.yaml"
        for text in (yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False), dump_experiment(experiment)):
            file.write_text(text)
            assert load_experiment(file) == experiment


@pytest.mark.parametrize(
    "text",
    [
        "name: [1\n",
        "? [1, 2]\n: 3\n",
        "seed: !!int x\n",
        "seed: !!bool yes\n",
        "a: !!python/object:os.x\n",
        "[" * 5000,
        "seed: &a [*a]\n",
        "data: &a {splits: *a}\n",
        "&a {seed: *a}",
    ],
)
def test_a_file_that_is_no_configuration_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"odd\.yaml.*(line 1|too deep)"):
        load_experiment(tmp_path / "odd.yaml")


def test_a_store_on_the_command_line_is_that_very_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["train", "--dry-run", "data.store=data #2/s.zarr"])
    assert f"{tmp_path}/data #2/s.zarr" in capsys.readouterr().err
