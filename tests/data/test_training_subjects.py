"""Nobody is trained on and measured: the list of training volumes travels with the weights to any store."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mrisr.config import ConfigError, Experiment, load_experiment
from mrisr.data.training_subjects import seen_in_training, trained_on
from mrisr.evaluation.cluster_tasks import evaluate_on_cluster
from mrisr.evaluation.subject import Evaluation
from mrisr.models import build_generator
from mrisr.models.weights import TrainedOn, read_trained_on, serialised, write_weights
from mrisr.training.run_folder import RunFolder
from mrisr.training.warm_start import prepare_initial_weights
from voxelstore import VolumeStore

CONFIG = {"growth_rate": 2, "blocks": 2, "units": 2}


@pytest.fixture(scope="module")
def stores(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[VolumeStore, VolumeStore]:
    """The small store, and one that holds two of its training subjects under other names, for validation."""
    first = VolumeStore.open(small_store)
    other = VolumeStore.create(tmp_path_factory.mktemp("other") / "store.zarr")
    for index, name in enumerate([*first.subjects("train")[:2], *first.subjects("test")]):
        source = first.source(name)
        # As another program would save it: the same image in another type.
        other.write_subject(f"person-{index}", replace(source, voxels=source.voxels.astype(np.float32)))
    other.update_manifest({"validation": 2, "train": 1}, seed=0)
    return first, VolumeStore.open(other.path)


def experiment(folder: Path, store: VolumeStore, init_from: Path, *more: str) -> Experiment:
    keys = [f"output={folder}/runs", f"data.store={store.path}", f"generator.init_from={init_from}"]
    return load_experiment(None, [*keys, *(f"generator.{key}={value}" for key, value in CONFIG.items()), *more])


def weights_file(folder: Path, seen: TrainedOn | None) -> Path:
    return write_weights(folder, CONFIG, build_generator(CONFIG).state_dict(), seen)[0]


def test_the_list_is_of_contents_not_of_names_or_stores(stores: tuple[VolumeStore, VolumeStore]) -> None:
    first, other = stores
    seen = trained_on(first, None)
    assert seen.complete
    assert seen.contents >= {first.record(subject).content_hash for subject in first.subjects("train")}
    assert seen_in_training(first, first.subjects("test"), seen) == ()
    names = seen_in_training(other, other.subjects(), seen)
    assert len(names) == 2
    assert all(name.startswith("person-") for name in names)


def test_a_warm_start_inherits_its_ancestors_list(stores: tuple[VolumeStore, VolumeStore], tmp_path: Path) -> None:
    first, _ = stores
    ancestor = TrainedOn(frozenset({"of an ancestor"}), complete=True)
    (tmp_path / "a.safetensors").write_bytes(serialised(CONFIG, build_generator(CONFIG).state_dict(), ancestor))
    run = experiment(tmp_path, first, tmp_path / "a.safetensors")
    RunFolder.of(run).path.mkdir(parents=True)
    initial = prepare_initial_weights(run, first, "sqlite:///none.db")
    assert initial is not None
    inherited = trained_on(first, initial)
    assert inherited.contents == ancestor.contents | trained_on(first, None).contents
    assert inherited.complete
    save_file(build_generator(CONFIG).state_dict(), tmp_path / "foreign.safetensors")
    assert not trained_on(first, tmp_path / "foreign.safetensors").complete
    assert read_trained_on(tmp_path / "no such file") == TrainedOn()


def test_a_warm_start_that_has_seen_the_validation_subjects_is_refused(
    stores: tuple[VolumeStore, VolumeStore], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, other = stores
    file = weights_file(tmp_path, trained_on(first, None))
    run = experiment(tmp_path, other, file)
    RunFolder.of(run).path.mkdir(parents=True)
    seen = seen_in_training(other, other.subjects("validation"), trained_on(first, None))
    with pytest.raises(ConfigError, match=rf"init_from = .*trained on {len(seen)} \(person-.*allow_trained_on=true"):
        prepare_initial_weights(run, other, "sqlite:///none.db")
    assert not RunFolder.of(run).initial_weights.exists()
    allowed = experiment(tmp_path, other, file, "validation.allow_trained_on=true")
    assert prepare_initial_weights(allowed, other, "sqlite:///none.db") is not None
    assert "not recorded" not in capsys.readouterr().out
    shutil.rmtree(RunFolder.of(run).path)
    RunFolder.of(run).path.mkdir()
    weights_file(tmp_path, None)
    prepare_initial_weights(run, other, "sqlite:///none.db")
    assert "which volumes the weights were trained on is not recorded" in capsys.readouterr().out


def test_figures_on_training_subjects_are_refused_or_marked(
    stores: tuple[VolumeStore, VolumeStore], tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = stores
    [subject] = first.subjects("test")
    seen = TrainedOn(frozenset({first.record(subject).content}), complete=True)
    with pytest.raises(ConfigError, match=rf"split = 'test': 1 \({subject}\) of its 1 subjects .*--allow-trained-on"):
        evaluate_on_cluster(Evaluation(first, "test", "chen2018"), torch.nn.Identity(), trained_on=seen)
    allowed = Evaluation(first, "test", "chen2018", allow_trained_on=True)
    marked = evaluate_on_cluster(allowed, torch.nn.Identity(), trained_on=seen)
    assert marked.trained_on == (subject,)
    assert {row["trained_on"] for row in marked.rows()} == {"yes"}
    assert any("1 of 1 subjects are among" in line for line in marked._notes())
    assert "not recorded" not in capsys.readouterr().out
    clean = evaluate_on_cluster(Evaluation(first, "test", "chen2018"), torch.nn.Identity(), trained_on=TrainedOn())
    assert clean.trained_on == ()
    assert "trained on is not recorded" in capsys.readouterr().out.replace("\n", " ")
