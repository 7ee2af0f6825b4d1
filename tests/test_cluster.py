"""Dividing a cluster: workers never take the CPU that a data task needs, and what cannot be placed is said at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrisr.cluster import KEEP_MEMORY, ResourceError, connect, divide, worker_environment
from mrisr.config import ConfigError, Experiment, load_experiment


def experiment(workers: int, *overrides: str) -> Experiment:
    return load_experiment(None, [f"resources.workers={workers}", f"training.batch_size={workers}", *overrides])


@given(workers=st.integers(1, 64), cpus=st.floats(1.1, 512), gpus=st.integers(0, 64))
def test_a_data_task_always_fits_beside_the_workers(workers: int, cpus: float, gpus: int) -> None:
    try:
        share = divide(experiment(workers), cpus, gpus)
    except ResourceError:
        assert cpus - 1.0 < 0.01 * workers
        return
    assert share.cpus * workers + 1.0 <= cpus + 1e-6
    assert share.gpu == (gpus >= workers)
    assert share.data_cpus >= 1.0


@given(
    workers=st.integers(1, 32),
    machines=st.lists(st.tuples(st.integers(1, 32), st.integers(0, 8)), min_size=1, max_size=6),
)
def test_on_several_machines_a_task_fits_on_one_of_them(workers: int, machines: list[tuple[int, int]]) -> None:
    """Whatever machine is filled first, one has room for a whole data task beside the workers it carries."""
    cpus, gpus = (float(sum(column)) for column in zip(*machines, strict=True))
    try:
        share = divide(experiment(workers), cpus, gpus, machines)
    except ResourceError:
        return
    left, unplaced = [], workers
    for machine_cpus, machine_gpus in sorted(machines, reverse=True):
        carried = min(unplaced, int(machine_cpus / share.cpus + 1e-9), machine_gpus if share.gpu else unplaced)
        unplaced -= carried
        left.append(machine_cpus - carried * share.cpus)
    assert unplaced == 0
    assert max(left) >= 1.0 - 1e-6


def test_eight_gpus_on_each_of_two_machines_leave_a_task_its_cpu() -> None:
    machines = [(8.0, 8.0)] * 2
    assert divide(experiment(16), 16, 16, machines).cpus == 0.87


def test_two_cores_carry_two_workers_and_a_data_task() -> None:
    assert divide(experiment(2), 2, 0).cpus == 0.5


@pytest.mark.parametrize(
    ("overrides", "cpus", "gpus", "words"),
    [
        (["resources.cpus_per_worker=4"], 4, 0, ["resources.cpus_per_worker=1.50", "4 logical CPUs"]),
        (["stream.cpus_per_task=2"], 2, 0, ["stream.cpus_per_task"]),
        (["resources.gpus=true"], 8, 0, ["the cluster has 0. Set resources.gpus=false"]),
        (["resources.gpus=true"], 8, 1, ["resources.workers=1", "resources.gpus=false"]),
    ],
)
def test_what_cannot_be_placed_says_what_would_fit(
    overrides: list[str], cpus: float, gpus: float, words: list[str]
) -> None:
    with pytest.raises(ResourceError) as error:
        divide(experiment(2, *overrides), cpus, gpus)
    assert all(word in str(error.value) for word in words), error.value


def test_an_elastic_run_takes_the_sizes_that_share_its_batch() -> None:
    elastic = ["training.batch_size=12", "resources.min_workers=2"]
    assert experiment(6, *elastic).worker_counts == (6, 3, 2), "two patches a forward pass, as with all six"
    assert experiment(6, *elastic, "training.micro_batch=1").worker_counts == (6, 4, 3, 2)
    assert experiment(6, "training.batch_size=12").worker_counts == (6,)
    assert experiment(6, *elastic).micro_batch == 2
    with pytest.raises(ConfigError, match=r"resources\.min_workers = 3 is more than resources\.workers = 2"):
        experiment(2, "resources.min_workers=3")


def test_an_elastic_run_starts_on_a_cluster_that_holds_its_fewest_workers() -> None:
    wanted = ["training.batch_size=4", "resources.cpus_per_worker=1", "resources.min_workers=1"]
    assert divide(experiment(4, *wanted), cpus=2, gpus=0).cpus == 1
    assert divide(experiment(4, *wanted), cpus=2, gpus=1).gpu
    with pytest.raises(ResourceError, match="1 workers of 1 CPUs and a data task of 1"):
        divide(experiment(4, *wanted), cpus=1.5, gpus=0)


def test_what_the_user_told_glibc_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_environment(gpu=False) == KEEP_MEMORY
    assert worker_environment(gpu=True) == {}
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert worker_environment(gpu=False) == {}


@pytest.mark.parametrize("mode", ["bogus", "", " token", "enabled", "tokens"])
def test_a_mode_that_ray_would_take_for_an_open_door_is_refused(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ResourceError, match=f"RAY_AUTH_MODE = '{mode}': .*unset it"):
        connect()


def test_a_machine_too_busy_for_ray_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*arguments: object, **options: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does, 30 s after its own start

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(
        ResourceError, match=r"does not start on this machine: .* timed out .* run the same command again"
    ):
        connect()
