"""The heart of distributed training: world sizes 1, 2 and 3, FSDP2 and DDP, make the same networks.

Real processes run every phase of the schedule (parity_worker.py), over gloo, or over nccl on GPUs where there is one
for each; one process without a process group, on the CPU, is the reference. A checkpoint saved by two ranks resumes on
one and on three, under the other strategy too.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mrisr.engine.schedule import phase

WORKER = Path(__file__).with_name("parity_worker.py")
SPLIT = 5  # after the first generator step with the critic: all three optimizers have moved


def load_worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["parity_worker"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


worker = load_worker()
LAST = worker.SCHEDULE.total_steps
WHOLE = {strategy: worker.Case(strategy) for strategy in ("fsdp", "ddp", "single")}
FIRST_HALF = worker.Case("fsdp", "float64", 0, SPLIT, "", "half")
SECOND_HALF = {s: worker.Case(s, "float64", SPLIT, LAST, "half", "") for s in ("fsdp", "ddp", "single")}
FLOAT32 = {strategy: worker.Case(strategy, "float32") for strategy in ("fsdp", "single")}
RUNS = {
    2: [WHOLE["fsdp"], WHOLE["ddp"], FLOAT32["fsdp"], FIRST_HALF],
    3: [WHOLE["fsdp"], WHOLE["ddp"], SECOND_HALF["fsdp"], SECOND_HALF["ddp"]],
    1: [WHOLE["fsdp"], WHOLE["ddp"], SECOND_HALF["fsdp"]],
}


def launch(folder: Path, world: int) -> None:
    """Run all cases of that world size in `world` processes; fails with the ranks' output."""
    roots = {str(Path(sys.modules[name].__file__ or "").parents[1]) for name in ("mrisr",)}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*roots, os.environ.get("PYTHONPATH", "")])}
    cases = [str(case) for case in RUNS[world]]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), str(rank), str(world), *cases],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert all(process.returncode == 0 for process in ranks), "\n".join(outputs)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[int, str], dict]]:
    """(world, case) -> what the run returned; world 0 is this process, without a process group."""
    folder = tmp_path_factory.mktemp("parity")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {(0, str(case)): worker.run(case, folder) for case in (WHOLE["single"], FLOAT32["single"])}
    launch(folder, 2)
    launch(folder, 3)
    worker.main(folder, 0, 1, RUNS[1])
    found[0, str(SECOND_HALF["single"])] = worker.run(SECOND_HALF["single"], folder)
    for world, cases in RUNS.items():
        for case in cases:
            found[world, str(case)] = torch.load(folder / f"{world}-{case}.pt", weights_only=True)
        for strategy in ("fsdp", "ddp"):
            paths = [folder / f"poisoned-{world}-{strategy}-{rank}.pt" for rank in range(world)]
            found[world, f"poisoned-{strategy}"] = {p.name: torch.load(p, weights_only=True) for p in paths}
    yield found
    torch.set_num_threads(threads)


def assert_same_history(
    history: list[dict[str, float]], reference: list[dict[str, float]], tolerance: float = 1e-9
) -> None:
    assert len(history) == len(reference)
    for own, expected in zip(history, reference, strict=True):
        assert own.keys() == expected.keys()
        for name in own:
            assert own[name] == pytest.approx(expected[name], rel=tolerance, abs=tolerance), name


def assert_same_state(state: dict[str, dict], reference: dict[str, dict], tolerance: float = 1e-9) -> None:
    for part in {"generator", "critic", "ema"} & reference.keys():
        assert state[part].keys() == reference[part].keys()
        for name, expected in reference[part].items():
            distance = (state[part][name].double() - expected.double()).norm()
            assert distance <= tolerance * expected.double().norm(), f"{part}.{name}"


def test_the_schedule_of_this_test_has_every_phase_and_its_changes() -> None:
    order = [str(phase(worker.SCHEDULE, step)) for step in range(LAST)]
    assert order[:6] == ["pretrain"] * 3 + ["critic"] * 2 + ["generator"]
    assert order[6:] == ["critic", "generator", "critic", "critic"]


@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_world_size_makes_the_same_networks(results: dict, world: int, strategy: str) -> None:
    reference = results[0, str(WHOLE["single"])]
    own = results[world, str(WHOLE[strategy])]
    assert_same_history(own["history"], reference["history"])
    assert_same_state(own, reference)


def test_the_real_critic_in_float32(results: dict) -> None:
    reference = results[0, str(FLOAT32["single"])]
    own = results[2, str(FLOAT32["fsdp"])]
    assert_same_history(own["history"], reference["history"], tolerance=1e-5)
    assert_same_state(own, reference, tolerance=1e-5)


@pytest.mark.parametrize(("world", "strategy"), [(0, "single"), (1, "fsdp"), (3, "fsdp"), (3, "ddp")])
def test_a_checkpoint_of_two_ranks_resumes_on_any_number(results: dict, world: int, strategy: str) -> None:
    reference = results[0, str(WHOLE["single"])]
    own = results[world, str(SECOND_HALF[strategy])]
    assert_same_history(own["history"], reference["history"][SPLIT:])
    assert_same_state(own, reference)


@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_nan_on_one_rank_stops_every_rank(results: dict, world: int, strategy: str) -> None:
    said = results[world, f"poisoned-{strategy}"]
    assert len(said) == world
    # A gradient is looked at once it is averaged, and then all of them have it: none is accused that may be innocent.
    ranks = {"loss": [world - 1], "gradient norm": [0] if world == 1 else []}
    for value in worker.POISONED:
        expected = {"value": value, "ranks": ranks[value], "still": True}
        assert [own[value] for own in said.values()] == [expected] * world
    assert [own["agreed"] for own in said.values()] == [[True, False]] * world


def test_the_runs_moved_the_networks(results: dict) -> None:
    """Parity of networks that stood still would be worth nothing: they moved 100,000 times what parity tolerates."""
    start = worker.networks_for("single", "float64", seed=1)
    end = results[0, str(WHOLE["single"])]
    for part, module in (("generator", start.generator), ("critic", start.critic)):
        for name, parameter in module.named_parameters():
            moved = (end[part][name] - parameter.detach()).norm()
            # The critic's last bias cancels in every difference of scores.
            assert name == "critic.layers.8.bias" or moved >= 1e-4 * parameter.detach().norm(), f"{part}.{name}"
