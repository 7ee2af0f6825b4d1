"""A home that was renamed: its models load, its experiments take new runs, and its runs and searches go on."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tests.tuning.test_credentials import plan_of

from mrisr.config import ConfigError, load_experiment
from mrisr.config.loading import dump_experiment
from mrisr.config.paths import after_move
from mrisr.models import build_generator
from mrisr.models.weights import TrainedOn, Weights
from mrisr.tracking import registry
from mrisr.tracking import runs as tracking
from mrisr.tracking.addresses import check_address
from mrisr.tracking.relocation import relocate
from mrisr.training.run_folder import RunFolder
from mrisr.tuning.resume import DESCRIPTION, begin_or_resume, description
from voxelstore import VolumeStore

CONFIG = {"growth_rate": 2, "blocks": 2, "units": 2}


def a_home(folder: Path) -> tuple[Path, str]:
    """A home with a run and a registered champion; its address."""
    place = tracking.prepare(f"sqlite:///{folder}/mlflow.db", folder / "mlartifacts", "one")
    run_id = tracking.start_run(place, {"a": 1}, name="first")
    weights = Weights(CONFIG, build_generator(CONFIG).state_dict(), TrainedOn())
    registry.register(weights, run_id, "m", {}, "a test", place.uri)
    tracking.client(place.uri).set_registered_model_alias("m", "champion", "1")
    return folder, run_id


def locations(database: Path) -> list[str]:
    queries = (
        "SELECT artifact_location FROM experiments WHERE name = 'one'", "SELECT artifact_uri FROM runs",
        "SELECT artifact_location FROM logged_models", "SELECT source FROM model_versions",
    )  # fmt: skip
    with closing(sqlite3.connect(database)) as connection:
        return [row[0] for query in queries for row in connection.execute(query)]


@pytest.mark.parametrize("name", ["moved", "moved here, 100% sure"])
def test_a_renamed_home_works_as_before(tmp_path: Path, name: str) -> None:
    old, run_id = a_home(tmp_path / "old home")
    new = tmp_path / "deeper" / name
    new.parent.mkdir()
    old.rename(new)
    uri = f"sqlite:///{new}/mlflow.db"
    loaded = registry.load("models:/m@champion", uri)
    assert isinstance(next(loaded.generator.parameters()), torch.Tensor)
    assert len(locations(new / "mlflow.db")) == 4
    assert all(location.startswith(f"{new.as_uri()}/") for location in locations(new / "mlflow.db"))
    client = tracking.client(uri)
    assert "config.yaml" in [artifact.path for artifact in client.list_artifacts(run_id)]
    # What is written after the move lands in the new home, and the old one does not come back.
    place = tracking.prepare(uri, new / "mlartifacts", "one")
    second = tracking.start_run(place, {"a": 2}, name="second")
    assert (new / "mlartifacts" / "one" / second / "artifacts" / "config.yaml").exists()
    assert not old.exists()
    assert relocate(new / "mlflow.db") == 0, "once is enough"


def test_a_copy_of_a_home_leaves_both_as_they_are(tmp_path: Path) -> None:
    old, _ = a_home(tmp_path / "old")
    shutil.copytree(old, tmp_path / "copy")
    before = locations(tmp_path / "copy" / "mlflow.db")
    check_address(f"sqlite:///{tmp_path}/copy/mlflow.db")
    assert locations(tmp_path / "copy" / "mlflow.db") == before


def test_artifacts_that_are_elsewhere_or_gone_stay_as_recorded(tmp_path: Path) -> None:
    old, _ = a_home(tmp_path / "old")
    (old / "mlartifacts").rename(tmp_path / "elsewhere")
    (tmp_path / "new").mkdir()
    (old / "mlflow.db").rename(tmp_path / "new" / "mlflow.db")
    before = locations(tmp_path / "new" / "mlflow.db")
    check_address(f"sqlite:///{tmp_path}/new/mlflow.db")
    assert locations(tmp_path / "new" / "mlflow.db") == before


def test_a_moved_run_is_resumed_and_another_configuration_still_refused(small_store: Path, tmp_path: Path) -> None:
    shutil.copytree(small_store, tmp_path / "old" / "store.zarr")

    def settings(home: str, *more: str) -> list[str]:
        return ["name=r", f"output={tmp_path}/{home}/runs", f"data.store={tmp_path}/{home}/store.zarr", *more]

    begun = load_experiment(None, settings("old"))
    folder = RunFolder.of(begun)
    folder.path.mkdir(parents=True)
    folder.settings.write_text(dump_experiment(begun))
    checkpoint = folder.path / "checkpoint_00000001"
    checkpoint.mkdir()
    (tmp_path / "old").rename(tmp_path / "new")
    store = VolumeStore.open(tmp_path / "new" / "store.zarr")
    now = load_experiment(None, settings("new"))
    moved = RunFolder.of(now)
    whole = pytest.MonkeyPatch()
    whole.setattr("mrisr.training.run_folder.is_complete", lambda folder: True)
    whole.setattr("mrisr.training.run_folder.read_progress", lambda folder: {})
    try:
        moved.refuse_other(now, store)
        with pytest.raises(ConfigError, match=r"seed: was 0, now 7"):
            moved.refuse_other(load_experiment(None, settings("new", "seed=7")), store)
        with pytest.raises(ConfigError, match=r"data\.store: was .*old/store\.zarr', now .*store\.zarr'"):
            moved.refuse_other(load_experiment(None, settings("new", f"data.store={small_store}")), store)
    finally:
        whole.undo()


def test_a_moved_search_goes_on(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "old" / "runs", f"data.store={tmp_path}/old/s.zarr")
    begin_or_resume(plan, "data")
    plan.trials_folder.mkdir()
    (tmp_path / "old").rename(tmp_path / "new")
    begin_or_resume(plan_of(tmp_path / "new" / "runs", f"data.store={tmp_path}/new/s.zarr"), "data")
    other = plan_of(tmp_path / "new" / "runs", f"data.store={tmp_path}/new/other.zarr")
    with pytest.raises(ConfigError, match=r"data\.store: was"):
        begin_or_resume(other, "data")


def test_a_search_whose_folder_holds_a_password_of_an_older_version_goes_on(tmp_path: Path) -> None:
    storage = f"sqlite:///file:{tmp_path}/all.db?uri=true&password="
    plan = plan_of(tmp_path, f"tuning.storage={storage}x")
    begin_or_resume(plan, "data")
    plan.trials_folder.mkdir()
    file = plan.folder / DESCRIPTION
    assert "password=***" in file.read_text()
    file.write_text(file.read_text().replace("password=***", "password=hunter2"))
    begin_or_resume(plan, "data")
    assert description(plan, "data")["tuning"]["storage"].endswith("password=***")


@pytest.mark.parametrize(
    ("value", "was", "now", "expected"),
    [
        ("/old/home/store.zarr", "/old/home/runs", "/new/runs", "/new/store.zarr"),
        ("/old/homes/store.zarr", "/old/home/runs", "/new/runs", "/old/homes/store.zarr"),
        ("/data/store.zarr", "/old/home/runs", "/new/runs", "/data/store.zarr"),
        ("/a/runs", "/a/runs", "/a/b/runs", "/a/b/runs"),
        ("/a/s", "/a/runs", "/a/b/runs", "/a/b/s"),
        ("/runs/x", "/runs", "/mnt/runs", "/mnt/runs/x"),
        ("/a/runs", "/a/runs", "/a/others", "/a/others"),
        ("/a/s", "/a/runs", "/a/runs", "/a/s"),
        (["/a/x", "models:/m@champion"], "/a/runs", "/b/runs", ["/b/x", "models:/m@champion"]),
        (3, "/a/runs", "/b/runs", 3),
        (None, "/a/runs", "/b/runs", None),
    ],
)
def test_paths_after_a_move(value: object, was: str, now: str, expected: object) -> None:
    assert after_move(value, was, now) == expected
