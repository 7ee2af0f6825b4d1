"""One YAML describes an experiment; whatever is wrong with it is said before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mrisr.config import ConfigError, Experiment, load_experiment, loading
from mrisr.config.loading import dump_experiment, field_reference


@pytest.mark.parametrize("name", loading.SHIPPED)
def test_shipped_configurations_are_taken_by_name_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # as `mrisr demo` makes one
    experiment = load_experiment(name)
    assert load_experiment(loading.SHIPPED[name]) == experiment
    written = tmp_path / "resolved.yaml"
    written.write_text(dump_experiment(experiment))
    assert load_experiment(written) == experiment


def test_the_demo_hcp_and_report_configurations_ship() -> None:
    assert {"demo", "hcp", "report"} <= {*loading.SHIPPED}
    with pytest.raises(ConfigError, match=r"nosuch.*critics, demo-tune, demo, hcp, pretrained, report, tune"):
        load_experiment("nosuch")


def test_overrides_are_yaml_values_at_dotted_keys() -> None:
    experiment = load_experiment(
        None, ["training.gp_weight=5", "degradation.fraction=[0.3, 0.8]", "generator.residual=true", "seed=7"]
    )
    assert experiment.training.gp_weight == 5
    assert experiment.degradation.fraction == (0.3, 0.8)
    assert experiment.generator.residual is True
    assert experiment.seed == 7
    assert load_experiment(None, ["data.pattern=*T1w*"]).data.pattern == "*T1w*"
    assert load_experiment(None, ["degradation.fraction=0.4"]).degradation.fraction == (0.4, 0.4)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.gp_weigth=3", ["training.gp_weigth", "3", "did you mean training.gp_weight?"]),
        ("nonsense=1", ["nonsense", "unknown key"]),
        ("training.batch_size=two", ["training.batch_size", "'two'", "integer", "patches per step"]),
        ("training.batch_size=0", ["training.batch_size", "0", "greater than 0"]),
        ("degradation.fraction=[0.8,0.2]", ["degradation.fraction", "[0.2, 0.8]"]),
        ("degradation.fraction=[0.2,1.0]", ["degradation.fraction", "1.0", "passband"]),
        ("degradation.fraction=0", ["degradation.fraction", "zeroes nothing"]),
        ("degradation.kind=gaussian", ["degradation.sigma", "[0.0, 0.0]", "above 0", "degradation.kind=box"]),
        ("degradation.voxels=[-5,10]", ["degradation.voxels", "-5", "greater than or equal to 0"]),
        ("schedule.boost_every=5", ["schedule.boost_every", "5", "8 or more"]),
        ("stream.patch_size=8", ["stream.patch_size = 8", "separable", "16 or more"]),
        ("degradation.axes=[1,5]", ["degradation.axes", "5", "0..2"]),
        ("degradation.noise=[0,-0.1]", ["degradation.noise", "[-0.1, 0"]),
        ("degradation.slice_thickness=3", ["degradation.slice_thickness", "3.0", "degradation.slice_axis"]),
        ("degradation.apodisation=tukey", ["degradation.taper", "above 0"]),
        ("degradation.apodisation=hann", ["degradation.apodisation", "'hann'", "hamming"]),
        ("validation.split=test", ["validation.split = 'test'", "would choose the weights", "such as validation"]),
        ("validation.protocol=mine", ["validation.protocol", "'mine'", "chen2018"]),
        ("resources.workers=4", ["training.batch_size", "resources.workers = 4", "multiple of 4"]),
        ("training.micro_batch=3", ["training.micro_batch", "3"]),
        ("schedule.total_steps=5", ["schedule.pretrain_steps", "schedule.total_steps = 5"]),
        ("stream.patch_size=96", ["stream.patch_size", "96", "data.min_size"]),
        ("stream=3", ["stream", "3"]),
        ("name=a/b", ["name", "a/b"]),
        ("gp_weight", ["'gp_weight' is not an override", "section.key=value"]),
        ("training.gp_weight=[1", ["training.gp_weight", "YAML"]),
    ],
)
def test_errors_name_the_key_the_value_and_the_remedy(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_experiment(None, [override])
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"


def test_a_blur_alone_is_a_degradation() -> None:
    blur = load_experiment(None, ["degradation.kind=gaussian", "degradation.fraction=0", "degradation.sigma=1"])
    assert blur.degradation.end(1).sigma == 1.0


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        load_experiment(None, ["training.gp_weight=-1", "stream.patch_size=x", "seed=-3"])
    assert len(str(error.value).splitlines()) == 3


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    for name, text in (("list.yaml", "- 1\n"), ("broken.yaml", "a: [1\n"), ("missing.yaml", None)):
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        with pytest.raises(ConfigError, match=name):
            load_experiment(path)


@pytest.mark.parametrize("kind", ["full", "pointwise", "separable"])
def test_the_patch_sizes_that_pass_are_those_that_the_critic_takes(kind: str) -> None:
    from mrisr.models import build_critic

    for size in (8, 15, 16, 24, 32, 40):
        try:
            load_experiment(None, [f"critic.kind={kind}", f"stream.patch_size={size}"])
            accepted = True
        except ConfigError:
            accepted = False
        try:
            build_critic(kind, size)
            takes = True
        except ValueError:
            takes = False
        assert accepted == takes, size


def test_a_key_given_twice_is_named(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("training:\n  gp_weight: 1\n  batch_size: 2\n  gp_weight: 10\n")
    with pytest.raises(ConfigError, match=r"twice\.yaml.*'gp_weight' is given twice.*line 4"):
        load_experiment(file)


def test_the_reference_explains_every_key() -> None:
    reference = list(field_reference())
    assert all(meaning for _, _, _, meaning in reference)
    dumped = yaml.safe_load(dump_experiment(Experiment()))
    for key, *_ in reference:
        node = dumped
        for part in key.split("."):
            node = node[part]


def test_the_defaults_of_the_reference_are_overrides() -> None:
    written = [f"{key}={default}" for key, _, default, _ in field_reference()]
    assert "tracking.uri=null" in written
    assert "degradation.fraction=[0.5, 0.5]" in written
    assert load_experiment(None, written) == load_experiment(None)


def test_relative_paths_are_refused_inside_a_ray_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_experiment(None, ["data.store=store.zarr"]).data.store == Path.cwd() / "store.zarr"
    monkeypatch.setenv("MRISR_IN_JOB", "1")
    with pytest.raises(ConfigError, match=r"data\.store.*absolute path"):
        load_experiment(None, ["data.store=store.zarr"])


def test_the_home_folder_is_one_environment_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MRISR_HOME", str(tmp_path))
    experiment = load_experiment(None)
    assert experiment.data.store == tmp_path / "store.zarr"
    assert experiment.run_folder == tmp_path / "runs" / "mdcsrn"
