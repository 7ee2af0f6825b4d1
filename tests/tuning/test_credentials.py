"""Passwords in addresses stay out of what a search writes into its folder, prints or uploads."""

from __future__ import annotations

from pathlib import Path

import cloudpickle
import optuna
import pytest
import yaml

from mrisr.cli.app import main
from mrisr.config import ConfigError, load_experiment
from mrisr.config.loading import dump_experiment
from mrisr.tuning.history import TrialHistory
from mrisr.tuning.plan import SearchPlan, plan_search
from mrisr.tuning.progress import Progress
from mrisr.tuning.report import winner_yaml
from mrisr.tuning.resume import DESCRIPTION, description, learn
from mrisr.tuning.scheduler import build_scheduler
from mrisr.tuning.searcher import StudySearcher
from mrisr.tuning.study import open_storage, open_study
from mrisr.tuning.summary import summarize
from mrisr.tuning.trial import trial_experiment


def plan_of(folder: Path, *overrides: str) -> SearchPlan:
    space = "training.gp_weight={log_uniform: [0.1, 100], fixed: 10}"
    plan = plan_search(None, [space, f"output={folder}", "tuning.protocols=[chen2018, hz2538]", *overrides])
    plan.folder.mkdir(parents=True, exist_ok=True)
    return plan


def test_the_winner_keeps_no_password_and_is_trained_by_the_figure_that_chose_it(tmp_path: Path) -> None:
    address = "tracking.uri=https://user:hunter2@mlflow.example"
    plan = plan_of(tmp_path, address, "tuning.metrics=[nrmse]", "schedule.total_steps=4", "schedule.pretrain_steps=0")
    search = StudySearcher(plan, open_study(plan))
    config = search.suggest("a")
    TrialHistory(plan.folder / "trials" / config["run"]).add(4, {"nrmse": 0.1})
    search.on_trial_complete("a", {"step": 4, "nrmse": 0.1})
    text = winner_yaml(plan, summarize(plan).best[0])
    assert "hunter2" not in text
    assert "set MLFLOW_TRACKING_URI" in text
    (tmp_path / "winner.yaml").write_text(text)
    winner = load_experiment(tmp_path / "winner.yaml")
    assert winner.tracking.uri is None
    assert (winner.validation.metric, winner.validation.mean_over) == ("nrmse", ("chen2018", "hz2538"))
    assert winner.validation.start_counts, "an honest champion may be the network as it was initialised"


def test_what_tune_and_the_trials_keep_in_the_folder_holds_no_password(tmp_path: Path) -> None:
    storage = f"tuning.storage=sqlite:///file:{tmp_path}/all.db?uri=true&password=hunter2"
    plan = plan_of(tmp_path, "tracking.uri=https://user:hunter2@mlflow.example", storage)
    assert "hunter2" in plan.base.tuning.storage
    search = StudySearcher(plan, open_study(plan))
    search.save_to_dir(str(tmp_path), "session")
    assert not list(tmp_path.glob("searcher-state*"))
    # Tune's own snapshot pickles the searcher, the scheduler and the callbacks.
    for kept in (search, build_scheduler(plan, {}), Progress(plan)):
        assert b"hunter2" not in cloudpickle.dumps(kept)
    trial = trial_experiment(plan, "trial-0000", {"training.gp_weight": 3.0})
    text = dump_experiment(trial)
    assert "hunter2" not in text
    assert "set MLFLOW_TRACKING_URI" in text


def test_the_folder_of_a_search_keeps_no_password_of_its_study(tmp_path: Path) -> None:
    def at(name: str, database: str, *overrides: str) -> SearchPlan:
        # sqlite takes a file's address with a query, where other databases take user:password@.
        storage = f"tuning.storage=sqlite:///file:{tmp_path}/{database}.db?uri=true&password=hunter2"
        return plan_of(tmp_path, f"name={name}", storage, *overrides)

    earlier = at("earlier", "all")
    text = yaml.safe_dump(description(earlier, "data"))
    assert "hunter2" not in text
    before, now = (plan_of(tmp_path, f"tuning.storage=mysql://u:{password}@db/s") for password in ("old", "new"))
    assert description(before, "data") == description(now, "data"), "a password may change"

    (earlier.folder / DESCRIPTION).write_text(text)
    search = StudySearcher(earlier, open_study(earlier))
    search.suggest("a")
    search.on_trial_complete("a", {"step": earlier.trial_steps, "psnr": 30.0})
    later = at("later", "all", f"tuning.learn_from=[{earlier.folder}]")
    assert learn(later, "data", open_study(later)) == 1
    elsewhere = at("elsewhere", "other", f"tuning.learn_from=[{earlier.folder}]")
    with pytest.raises(ConfigError, match=r"whose credentials are not kept.*give this search the same tuning\.storage"):
        learn(elsewhere, "data", optuna.create_study())


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("postgresql://user:hunter2@127.0.0.1:9/db", "its database driver is not installed; pip install psycopg"),
        ("oracle+nothing://user:hunter2@127.0.0.1:9/db", "start the database, correct the address, or use sqlite"),
        ("sqlite:////nowhere/all.db", "unable to open database file"),
    ],
)
def test_a_storage_that_cannot_be_used_is_a_line(tmp_path: Path, address: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_storage(plan_of(tmp_path, f"tuning.storage={address}"))
    told = str(refused.value)
    assert told.startswith("tuning.storage = ")
    assert words in told
    assert "hunter2" not in told
    assert "\n" not in told


def test_a_search_tries_its_storage_before_it_starts_ray(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MRISR_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    small = [f"{key}=16" for key in ("stream.patch_size", "validation.patch_size", "data.min_size")]
    storage = "tuning.storage=postgresql://user:hunter2@127.0.0.1:9/db"
    with pytest.raises(SystemExit) as done:
        main(["tune", "--config", "tune", f"data.store={small_store}", f"output={tmp_path}/runs", storage, *small])
    assert done.value.code == 2
    told = capsys.readouterr().err
    assert "Error: tuning.storage = 'postgresql://***@127.0.0.1:9/db': its database driver is not installed" in told
    assert "hunter2" not in told
    assert not (tmp_path / "runs").exists()
