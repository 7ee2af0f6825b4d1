"""Publication: a version per stage, registered once whatever is killed, and measured as it was validated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from rich.console import Console

from mrisr.config import Experiment, load_experiment
from mrisr.data.training_subjects import trained_on
from mrisr.evaluation.cluster_tasks import evaluate_on_cluster, log_evaluation
from mrisr.evaluation.subject import Evaluation
from mrisr.inference.model import load_model
from mrisr.inference.whole_volume import InferenceOptions
from mrisr.models import build_generator
from mrisr.tracking import runs as tracking
from mrisr.tracking.registry import load
from mrisr.training import publishing
from mrisr.training.publishing import publish
from mrisr.training.run import StageWeights, TrainedRun
from mrisr.training.run_folder import RunFolder
from voxelstore import VolumeStore

KEYS = (
    "generator.growth_rate=2", "generator.blocks=2", "generator.units=2", "generator.residual=true",
    "training.precision=fp32", "validation.patch_size=24", "stream.patch_size=16",
    "schedule={total_steps: 24, pretrain_steps: 8, critic_warmup_steps: 4}", "data.min_size=32", "tracking.model=pair",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A finished run of two stages, as far as publication looks at it."""
    home = tmp_path_factory.mktemp("publishing")
    experiment: Experiment = load_experiment(None, [*KEYS, f"output={home}/runs", f"data.store={small_store}"])
    RunFolder.of(experiment).path.mkdir(parents=True)
    place = tracking.prepare(f"sqlite:///{home}/mlflow.db", home / "artifacts", "publishing")
    run_id = tracking.start_run(place, {}, name="pair")
    weights = []
    for stage, step in (("l1", 8), ("wgan-gp", 20)):
        state = build_generator(experiment.generator.architecture, seed=step).state_dict()
        if stage == "wgan-gp":  # not the identity that a residual generator begins as
            state = {key: value + 1e-3 if value.is_floating_point() else value for key, value in state.items()}
        weights.append(StageWeights(stage, step, {"psnr": 30.0}, state))
    return TrainedRun(experiment, run_id, place.uri, 24, weights[0], (weights[1],), RunFolder.of(experiment).path)


class Killed(BaseException):
    pass


def test_a_kill_before_the_record_registers_nothing_twice(
    run: TrainedRun, local_ray: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as context:
        context.setattr(publishing, "_write_record", killed)
        with pytest.raises(Killed):
            publish(run)
    client = MlflowClient(run.tracking_uri)
    assert len(client.search_model_versions("name = 'pair'")) == 1
    first, second = publish(run, {"search": "mine"})
    assert len(client.search_model_versions("name = 'pair'")) == 2
    assert (first.stage, first.best_step, second.stage, second.best_step) == ("l1", 8, "wgan-gp", 20)
    assert not first.promoted, "the identity is its input"
    assert "gain-corrected input" in first.decision
    capsys.readouterr()
    assert publish(run) == [first, second]
    assert "gain-corrected" not in capsys.readouterr().out, "nothing is measured again"


def test_the_versions_say_what_they_are(run: TrainedRun) -> None:
    versions = MlflowClient(run.tracking_uri).search_model_versions("name = 'pair'")
    by_stage = {version.tags["stage"]: version for version in versions}
    assert by_stage.keys() == {"l1", "wgan-gp"}
    store = VolumeStore.open(run.experiment.data.store)
    for version in versions:
        tags = version.tags
        assert tags["precision"] == "fp32"
        assert (tags["trained_on_subjects"], tags["trained_on_complete"]) == ("4", "true")
        assert tags["validation_trained_on"] == "0"
        found = load(f"models:/pair/{version.version}", run.tracking_uri)
        assert found.trained_on == trained_on(store, None)
        assert found.trained_on.digest == tags["trained_on_digest"]
        loaded = load_model(f"models:/pair/{version.version}", run.tracking_uri)
        assert loaded.options == InferenceOptions(precision="fp32")
    metrics = MlflowClient(run.tracking_uri).get_run(run.run_id).data.metrics
    assert metrics["volumes/model/whole/psnr"] == metrics["volumes/l1/model/whole/psnr"]
    assert metrics["volumes/wgan-gp/model/whole/psnr"] != metrics["volumes/l1/model/whole/psnr"]
    assert "volumes/gain_corrected/whole/psnr" in metrics


def test_a_record_of_an_older_version_is_read(run: TrainedRun, local_ray: None) -> None:
    record = RunFolder.of(run.experiment).published
    newer = record.read_text()
    older = {key: value for key, value in json.loads(newer)[0].items() if key not in ("stage", "alias")}
    record.write_text(json.dumps(older))
    [found] = publish(run._replace(others=()))
    assert (found.version, found.stage) == (older["version"], "")
    record.write_text(newer)


def test_every_evaluation_of_a_version_is_logged_under_its_own_key(
    run: TrainedRun, small_store: Path, local_ray: None, tmp_path: Path
) -> None:
    """Versions in any order, and one version again: nothing is dropped without a word."""
    store, client = VolumeStore.open(small_store), MlflowClient(run.tracking_uri)
    model = load_model("models:/pair/1", run.tracking_uri)
    evaluation = Evaluation(store, "test", "chen2018", model.options)
    result = evaluate_on_cluster(evaluation, model.generator, Console(quiet=True), model.trained_on)
    csv = result.write_csv(tmp_path / "test-chen2018.csv")
    other = replace(result, fingerprint="f" * 64)
    told = [
        log_evaluation(one, csv, run.tracking_uri, run.run_id, version)
        for one, version in ((result, "2"), (result, "1"), (other, "1"), (result, "1"))
    ]
    key = result.fingerprint[:8]
    assert f"test/chen2018/version-1/{key}/..., evaluation 2 of them" in told[-1]

    def steps(metric: str) -> list[int]:
        return [point.step for point in client.get_metric_history(run.run_id, f"test/chen2018/{metric}")]

    assert steps(f"version-2/{key}/model/whole/psnr") == [1]
    assert steps(f"version-1/{key}/model/whole/psnr") == [1, 2]
    assert steps("version-1/ffffffff/model/whole/psnr") == [1]
    assert steps("model/whole/psnr") == [2]
    (logged,) = client.list_artifacts(run.run_id, f"evaluation/version-1/{key}")
    assert logged.path.endswith("test-chen2018.csv")
