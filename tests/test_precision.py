"""Which precision `auto` is: asked of the device, agreed by all workers, and kept for the whole of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mrisr import planning
from mrisr.config import load_experiment
from mrisr.inference import superresolve_array
from mrisr.models import MDCSRN
from mrisr.precision import chosen, native_bf16
from mrisr.training import assembly
from mrisr.training.assembly import settle_precision, step_config
from mrisr.training.checkpoint import PROGRESS

CPU = torch.device("cpu")


def bf16_processor(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    """A machine whose processor is, or is not, made for bfloat16; there is only one here."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native}, raising=False)


def checkpoint(folder: Path, **progress: str) -> Path:
    folder.mkdir()
    (folder / PROGRESS).write_text(json.dumps({"step": 10, **progress}))
    return folder


def test_a_processor_is_asked() -> None:
    flags = {flag for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")
             for flag in line.partition(":")[2].split()}  # fmt: skip
    assert native_bf16(CPU) == ("avx512_bf16" in flags)


@pytest.mark.parametrize(("native", "auto"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_what_the_device_is_made_for(monkeypatch: pytest.MonkeyPatch, native: bool, auto: str) -> None:
    bf16_processor(monkeypatch, native)
    assert [chosen(given, CPU) for given in ("auto", "fp32", "bf16")] == [auto, "fp32", "bf16"]
    assert step_config(load_experiment(None)).precision == auto
    assert step_config(load_experiment(None, ["training.precision=fp32"])).precision == "fp32"


def test_a_torch_that_cannot_ask_the_processor_computes_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert chosen("auto", CPU) == "fp32"


@pytest.mark.parametrize(("native", "auto"), [(True, "bf16"), (False, "fp32")])
def test_whole_volumes_follow(monkeypatch: pytest.MonkeyPatch, native: bool, auto: str) -> None:
    bf16_processor(monkeypatch, native)
    network, volume = (
        MDCSRN(2, 1, 1, seed=1),
        torch.rand(20, 18, 16, generator=torch.Generator().manual_seed(0)).numpy(),
    )
    own = superresolve_array(network, volume, patch_size=16, precision="auto")
    same = {given: bool((own == superresolve_array(network, volume, patch_size=16, precision=given)).all())
            for given in ("fp32", "bf16")}  # fmt: skip
    assert same == {given: given == auto for given in same}


def test_a_run_keeps_what_it_began_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another machine goes on in the same numbers, and says what that costs it."""
    experiment = load_experiment(None)
    bf16_processor(monkeypatch, native=True)
    assert settle_precision(experiment, None, CPU).training.precision == "bf16"
    assert "auto is bf16, bfloat16 is native to all workers" in capsys.readouterr().out
    bf16_processor(monkeypatch, native=False)
    assert settle_precision(experiment, None, CPU).training.precision == "fp32"
    assert "auto is fp32, bfloat16 is not native to all workers" in capsys.readouterr().out
    begun = checkpoint(tmp_path / "checkpoint_00000010", precision="bf16")
    assert settle_precision(experiment, begun, CPU).training.precision == "bf16"
    told = capsys.readouterr().out
    assert "auto is bf16, as the run began" in told
    assert "the CPU of rank 0 has no AVX512-BF16: a step takes tens of times as long" in told
    bf16_processor(monkeypatch, native=True)
    begun = checkpoint(tmp_path / "checkpoint_00000011", precision="fp32")
    assert settle_precision(experiment, begun, CPU).training.precision == "fp32"
    (tmp_path / "experiment.yaml").write_text("training: {precision: bf16}")
    of_before = checkpoint(tmp_path / "checkpoint_00000012")
    assert settle_precision(experiment, of_before, CPU).training.precision == "bf16"
    explicit = load_experiment(None, ["training.precision=bf16"])
    assert settle_precision(explicit, None, CPU) == explicit


def test_one_worker_that_is_not_made_for_it_is_enough(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bf16_processor(monkeypatch, native=True)
    monkeypatch.setattr(assembly, "on_every_rank", lambda own, device: False)  # another rank's processor is older
    assert settle_precision(load_experiment(None), None, CPU).training.precision == "fp32"
    assert "not native to all workers" in capsys.readouterr().out


@pytest.mark.parametrize(("native", "auto"), [(True, "bf16"), (False, "fp32")])
def test_an_estimate_is_of_what_this_machine_would_compute(
    monkeypatch: pytest.MonkeyPatch, native: bool, auto: str
) -> None:
    bf16_processor(monkeypatch, native)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for given, expected in ((None, auto), (False, auto), (True, "bf16")):
        gpus = "null" if given is None else str(given).lower()
        assert planning.assumed_precision(load_experiment(None, [f"resources.gpus={gpus}"])) == expected
    forced = load_experiment(None, ["training.precision=fp32", "resources.gpus=true"])
    assert planning.assumed_precision(forced) == "fp32"
