"""Which precision `auto` is: asked of the device, agreed by all workers, and kept for the whole of a run."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mrisr.config import ConfigError, Experiment, load_experiment
from mrisr.config.loading import dump_experiment
from mrisr.engine.checkpoint import METADATA, PROGRESS
from mrisr.engine.precision import native_bf16, precision_on
from mrisr.inference.whole_volume import InferenceOptions, superresolve_array
from mrisr.models import MDCSRN
from mrisr.models.mdcsrn import MDCSRNConfig
from mrisr.training import precision as planning
from mrisr.training import run_folder
from mrisr.training.build import step_config
from mrisr.training.checkpoints import BEST_WEIGHTS
from mrisr.training.outcome import StorageStopped
from mrisr.training.precision import resolve_precision
from mrisr.training.run import outcome
from mrisr.training.run_folder import RunFolder

CPU = torch.device("cpu")


def bf16_processor(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    """A machine whose processor is, or is not, made for bfloat16; there is only one here."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native}, raising=False)


def test_a_processor_is_asked() -> None:
    flags = {flag for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")
             for flag in line.partition(":")[2].split()}  # fmt: skip
    assert native_bf16(CPU) == ("avx512_bf16" in flags and hasattr(torch.cpu, "get_capabilities"))


@pytest.mark.parametrize(("native", "auto"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_what_the_device_is_made_for(monkeypatch: pytest.MonkeyPatch, native: bool, auto: str) -> None:
    bf16_processor(monkeypatch, native)
    assert [precision_on(given, CPU) for given in ("auto", "fp32", "bf16")] == [auto, "fp32", "bf16"]
    assert step_config(load_experiment(None)).precision == auto
    assert step_config(load_experiment(None, ["training.precision=fp32"])).precision == "fp32"


def test_a_torch_that_cannot_ask_the_processor_computes_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert precision_on("auto", CPU) == "fp32"


@pytest.mark.parametrize(("native", "auto"), [(True, "bf16"), (False, "fp32")])
def test_whole_volumes_follow(monkeypatch: pytest.MonkeyPatch, native: bool, auto: str) -> None:
    bf16_processor(monkeypatch, native)
    network, volume = (
        MDCSRN(MDCSRNConfig(2, 1, 1), seed=1),
        torch.rand(20, 18, 16, generator=torch.Generator().manual_seed(0)).numpy(),
    )
    own = superresolve_array(network, volume, InferenceOptions(precision="auto"))
    same = {given: bool((own == superresolve_array(network, volume, InferenceOptions(precision=given))).all())
            for given in ("fp32", "bf16")}  # fmt: skip
    assert same == {given: given == auto for given in same}


def begun(folder: Path, *overrides: str) -> Experiment:
    """An experiment whose run's folder says what it is, as the driver leaves it for the workers."""
    experiment = load_experiment(None, [f"output={folder}", *overrides])
    experiment.run_folder.mkdir(parents=True)
    (experiment.run_folder / "experiment.yaml").write_text(dump_experiment(experiment))
    return experiment


def test_a_run_keeps_what_it_began_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also before its first checkpoint, and on another machine, which says what that costs it."""
    for native, auto, told in ((True, "bf16", "bfloat16 is native"), (False, "fp32", "bfloat16 is not native")):
        experiment = begun(tmp_path / auto)
        bf16_processor(monkeypatch, native)
        assert resolve_precision(experiment, CPU).training.precision == auto
        assert f"auto is {auto}, {told} to all workers" in capsys.readouterr().out
        assert RunFolder.of(experiment).precision() == auto
        bf16_processor(monkeypatch, not native)
        assert resolve_precision(experiment, CPU).training.precision == auto
        again = capsys.readouterr().out
        assert f"auto is {auto}, as the run began" in again
        assert ("the CPU of rank 0 is not made (no AVX512-BF16): a step may take tens of times" in again) == native


def test_a_precision_that_is_given_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And a run of before auto was known, whose settings say it, goes on under the new default."""
    bf16_processor(monkeypatch, native=False)
    given = begun(tmp_path, "training.precision=bf16")
    assert resolve_precision(given, CPU) == given
    now = load_experiment(None, [f"output={tmp_path}"])
    assert now.training.precision == "auto"
    assert resolve_precision(now, CPU).training.precision == "bf16"


@pytest.mark.parametrize("became", ["bf16", "fp32"])
def test_a_model_is_evaluated_in_what_its_run_became(tmp_path: Path, became: str) -> None:
    experiment = begun(tmp_path)
    (experiment.run_folder / "precision.txt").write_text(became)
    checkpoint = experiment.run_folder / "checkpoint_00000010"
    checkpoint.mkdir()
    (checkpoint / PROGRESS).write_text('{"step": 10, "best": {"step": 10, "figures": {"psnr": 30.0}}}')
    save_file({"weight": torch.zeros(1)}, checkpoint / BEST_WEIGHTS)
    assert outcome(experiment, "run", "sqlite:///none.db", checkpoint).experiment.training.precision == became


@pytest.mark.parametrize("native", [True, False])
def test_a_run_whose_note_is_gone_is_known_by_its_checkpoints(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, native: bool
) -> None:
    bf16_processor(monkeypatch, native)
    experiment = begun(tmp_path)
    became = "fp32" if native else "bf16"
    for step, progress in ((5, {"step": 5}), (10, {"step": 10, "precision": became})):
        checkpoint = experiment.run_folder / f"checkpoint_{step:08d}"
        checkpoint.mkdir()
        (checkpoint / METADATA).write_bytes(b"x")
        (checkpoint / PROGRESS).write_text(json.dumps(progress))
    assert resolve_precision(experiment, CPU).training.precision == became
    assert planning.assumed_precision(experiment) == (became, "as the run began")
    assert planning.assumed_precision(experiment.changed({"training.precision": "fp32"})) == ("fp32", "")


def test_a_note_that_cannot_be_written_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that is there is not written again: a run on a full disk must come as far as its checkpoint."""
    experiment = begun(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(run_folder, "write_atomic", full)
        with pytest.raises(StorageStopped, match=r"experiment\.yaml could not be written: rank 0: No space left"):
            resolve_precision(experiment, CPU)
    resolve_precision(experiment, CPU)
    monkeypatch.setattr(run_folder, "write_atomic", full)
    resolve_precision(experiment, CPU)


def test_the_plan_tells_what_a_start_would_go_on_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a checkpoint too; not what another configuration noted, which a start would discard."""
    bf16_processor(monkeypatch, native=False)
    experiment = begun(tmp_path)
    (experiment.run_folder / "precision.txt").write_text("bf16\n")
    assert planning.assumed_precision(experiment) == ("bf16", "as the run began")
    other = experiment.changed({"seed": 7})
    assert planning.assumed_precision(other) == ("fp32", "if the workers are like this machine")
    (experiment.run_folder / "precision.txt").write_text("float64")
    with pytest.raises(ConfigError, match=r"precision\.txt: 'float64' is no precision; it must be fp32 or bf16"):
        planning.assumed_precision(experiment)


def test_one_worker_that_is_not_made_for_it_is_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bf16_processor(monkeypatch, native=True)
    monkeypatch.setattr(planning, "on_every_rank", lambda own, device: False)  # another rank's processor is older
    assert resolve_precision(begun(tmp_path), CPU).training.precision == "fp32"
    assert "not native to all workers" in capsys.readouterr().out


@pytest.mark.parametrize(("native", "auto"), [(True, "bf16"), (False, "fp32")])
def test_an_estimate_is_of_what_this_machine_would_compute(
    monkeypatch: pytest.MonkeyPatch, native: bool, auto: str
) -> None:
    bf16_processor(monkeypatch, native)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for given, expected in ((None, auto), (False, auto), (True, "fp32")):
        gpus = "null" if given is None else str(given).lower()
        planned = planning.assumed_precision(load_experiment(None, [f"resources.gpus={gpus}"]))
        assert planned.precision == expected
        assert ("no GPU here" in planned.why) == bool(given)
    forced = load_experiment(None, ["training.precision=bf16", "resources.gpus=true"])
    assert planning.assumed_precision(forced) == ("bf16", "")


@pytest.mark.parametrize("given", ["auto", "bf16"])
def test_a_start_before_the_first_checkpoint_goes_on_with_what_auto_became(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str
) -> None:
    """It is written into the resolved configuration; a run that was given bf16 is another one than `auto`."""
    bf16_processor(monkeypatch, native=True)
    experiment = begun(tmp_path)
    folder = RunFolder.of(experiment)
    if given == "auto":
        resolve_precision(experiment, CPU)
    else:
        folder.settings.write_text(dump_experiment(experiment.changed({"training.precision": "bf16"})))
    assert load_experiment(folder.settings) == experiment.changed({"training.precision": "bf16"})
    assert folder.continues(experiment.changed({"training.precision": "bf16"}))
    assert folder.continues(experiment) == (given == "auto")
    assert not folder.continues(experiment.changed({"training.precision": "fp32"}))


def test_a_run_of_an_older_version_keeps_its_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bf16_processor(monkeypatch, native=True)
    experiment = begun(tmp_path)
    (experiment.run_folder / "precision.txt").write_text("fp32")
    assert resolve_precision(experiment, CPU).training.precision == "fp32"
    assert RunFolder.of(experiment).continues(experiment)
