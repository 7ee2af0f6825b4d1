"""What a search says that it will do, and how much of it at a time."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from mrisr import cluster
from mrisr.cli.app import main
from mrisr.config import ConfigError, load_experiment
from mrisr.models import torch_private
from mrisr.training.memory import fitting_overrides, memory_advice, peaks_text
from mrisr.training.precision import Assumed
from mrisr.tuning.concurrency import trials_at_once
from mrisr.tuning.dry_run import _memory
from mrisr.tuning.plan import plan_search


def test_dry_run_prints_the_space_and_the_plan_and_starts_nothing(
    small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [f"{key}=16" for key in ("stream.patch_size", "validation.patch_size", "data.min_size")]
    overrides = [f"data.store={small_store}", f"output={tmp_path}/runs", *small]
    with pytest.raises(SystemExit) as done:
        main(["tune", "--config", "tune", "--trials", "8", "--dry-run", *overrides])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    for word in ("training.gp_weight: log_uniform [0.1, 100], fixed 10", "train 4", "PSNR", "trials      8 of at most",
                 "asha, decides at steps", "a grid of 3 values per range", "critic separable",
                 "note        ASHA first decides at step"):  # fmt: skip
        assert word in shown
    assert not (tmp_path / "runs").exists()


KINDS = """
generator:
  kind: {choice: [mdcsrn, rrdb], fixed: mdcsrn}
  growth_rate: {int: [2, 8], fixed: 4, when: {generator.kind: mdcsrn}}
  units: {choice: [2, 3], when: {generator.kind: mdcsrn}}
  features: {int: [2, 8], fixed: 3, when: {generator.kind: rrdb}}
  blocks: 2
critic:
  kind: {choice: [separable, full]}
"""


def test_a_kind_of_generator_is_searched_with_the_keys_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "kinds.yaml").write_text(KINDS)
    plan = plan_search(tmp_path / "kinds.yaml", ["stream.patch_size=16"])
    rrdb = plan.experiment({"generator.kind": "rrdb", "generator.features": 5}).generator.architecture
    assert rrdb == {"kind": "rrdb", "features": 5, "growth_rate": 16, "blocks": 2}, "growth_rate is mdcsrn's here"
    mdcsrn = plan.experiment({"generator.kind": "mdcsrn", "generator.units": 3}).generator.architecture
    assert mdcsrn == {"kind": "mdcsrn", "growth_rate": 4, "blocks": 2, "units": 3, "residual": False}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [plan.draw(study.ask()) for _ in range(20)]
    for values in drawn:
        assert ("generator.features" in values) == (values["generator.kind"] == "rrdb")
        plan.experiment(values)
    assert len({values["generator.kind"] for values in drawn}) == 2
    memory = _memory(plan, Assumed("fp32"))
    assert memory.count("GiB") == 4
    assert "generator rrdb, critic full" in memory
    # The other kind, given as an override, takes the keys of the first out of the search.
    assert list(plan_search(tmp_path / "kinds.yaml", ["generator.kind=rrdb"]).spaces) == [
        "generator.features", "critic.kind",
    ]  # fmt: skip
    wrong = KINDS.replace("features: {int: [2, 8]", "features: {int: [0, 8]")
    (tmp_path / "kinds.yaml").write_text(wrong)
    with pytest.raises(ConfigError, match=r"search space of generator\.features: generator\.features"):
        plan_search(tmp_path / "kinds.yaml")


def test_memory_that_cannot_be_estimated_is_said_to_be_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_private, "FakeTensorMode", None)
    (tmp_path / "kinds.yaml").write_text(KINDS)
    experiment = load_experiment(None, [])
    assert _memory(plan_search(tmp_path / "kinds.yaml"), Assumed("fp32")).startswith("unknown: torch")
    assert peaks_text(experiment, 1).startswith("unknown: torch")
    advice = memory_advice(experiment, MemoryError("no room"))
    assert "What it needs is unknown: torch" in advice
    assert "critic.samples_at_once" not in advice
    assert "a smaller stream.patch_size" in advice
    with pytest.raises(ValueError, match=r"--fit-memory: torch .* give training\.batch_size instead"):
        fitting_overrides(experiment, "8GiB")


def test_concurrency_comes_from_the_cluster_and_impossible_requests_say_what_would_fit() -> None:
    def at_once(cpus: float, *overrides: str, gpus: float = 0) -> int:
        return trials_at_once(load_experiment(None, ["schedule.total_steps=300000", *overrides]), cpus, gpus)

    assert at_once(2) == 1
    assert at_once(2, "stream.cpus_per_task=0.5", "resources.cpus_per_worker=0.4") == 2
    assert at_once(9) == 4
    assert at_once(64, gpus=4) == 4, "a trial that would lose its GPU is one too many"
    with pytest.raises(cluster.ResourceError, match=r"concurrent = 5 .*concurrent=4 at most.*gpus=false"):
        at_once(64, "tuning.concurrent=5", gpus=4)
    with pytest.raises(cluster.ResourceError, match=r"concurrent = 64 .*concurrent=4 at most"):
        at_once(64, "tuning.concurrent=64", gpus=4)
    assert at_once(64, "tuning.concurrent=5", "resources.gpus=false", gpus=4) == 5
    assert at_once(64, "tuning.concurrent=4", gpus=4) == 4
    assert at_once(64, "tuning.trials=3") == 3
    assert trials_at_once(load_experiment(None, []), 6, 0, [(3, 0), (3, 0)]) == 3
    # Workers and a data task that take all of a machine leave no room for the trial's driver, and would wait for ever.
    whole = ["resources.workers=2", "training.batch_size=2", "resources.cpus_per_worker=1.5"]
    for concurrent in ("null", "1", "2"):
        with pytest.raises(cluster.ResourceError, match=r"do not fit into 3\.99 logical CPUs"):
            at_once(4, *whole, f"tuning.concurrent={concurrent}")
    assert at_once(4.1, *whole) == 1
    with pytest.raises(cluster.ResourceError, match="on 6 machines"):
        trials_at_once(load_experiment(None, ["stream.cpus_per_task=2"]), 6, 0, [(1, 0)] * 6)
    with pytest.raises(cluster.ResourceError, match=r"tuning\.concurrent = 8.*tuning\.concurrent=3 at most"):
        at_once(4, "tuning.concurrent=8")
    with pytest.raises(cluster.ResourceError, match="what fits"):
        at_once(1)
