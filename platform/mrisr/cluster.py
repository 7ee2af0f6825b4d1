"""Connecting to Ray, and dividing a cluster among workers and data tasks."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from mrisr.config import Experiment

ENVIRONMENT = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's banner and advice; with "0" nothing is printed at verbose=0
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # By default OpenMP's threads spin while they wait for each other. Where other processes use the same cores, that
    # costs ten times the work: 31 s of two busy cores instead of 3 s for a volume of 96x128x128.
    "OMP_WAIT_POLICY": "passive",
}
# For training workers on CPUs. Without it, glibc returns the memory of every step's tensors to the kernel and gets it
# back, page by page, in the next step: blocks from 32 MiB (mmap_max), and all arenas but the main one (arena_max).
# glibc reads this when a process starts; `mallopt` in a running worker does not change the arenas that it has.
KEEP_MEMORY = {
    "GLIBC_TUNABLES": f"glibc.malloc.trim_threshold={2**32}:glibc.malloc.mmap_max=0:glibc.malloc.arena_max=1"
}
# A Ray that mrisr starts listens on loopback only.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# It has one machine, which nobody takes away with notice: no process needs to watch for that.
OWN = {**LOOPBACK, "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
# Joining a cluster: Ray gives up after 20 s instead of 20 times 40 s if the address is not a cluster.
JOINING = {"RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_py_gcs_connect_timeout_s": "10"}
CPUS_WITHIN_S = 10
# Seconds without a free CPU until that is said.
SILENT_S = 20.0


# A machine: logical CPUs, GPUs.
Node = tuple[float, float]


class ResourceError(RuntimeError):
    """Workers that this cluster can never hold. The message says what would fit."""


class Share(NamedTuple):
    """Each training worker's logical CPUs, whether it has a GPU, and the logical CPUs for its data tasks."""

    cpus: float
    gpu: bool
    data_cpus: float

    @property
    def bundle(self) -> dict[str, float]:
        return {"CPU": self.cpus, "GPU": 1} if self.gpu else {"CPU": self.cpus}


def connect() -> None:
    """Join the cluster of $RAY_ADDRESS or a running local one; otherwise start one that ends with this process.

    A cluster started here listens on loopback only and requires the token in ~/.ray. Raises ResourceError that names
    the address or what is missing, and the remedy.
    """
    prepare_environment()
    _check_authentication()
    import ray

    if not ray.is_initialized():
        address = _address()
        if address is None:
            _start()
        else:
            _join(address)
    quiet()


def prepare_environment() -> None:
    """Set the variables that Ray, MLflow and torch read at import. Variables that the user has set stay."""
    own = _address() is None
    for key, value in {**ENVIRONMENT, **(OWN if own else JOINING)}.items():
        os.environ.setdefault(key, value)
    # By default Ray requires the token in clusters that it starts, but does not send it to a cluster that it joins.
    if not own and (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _check_authentication() -> None:
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() not in ("token", "disabled"):
        raise ResourceError(
            f"RAY_AUTH_MODE = {mode!r}: Ray takes any value but `token` for `disabled`, and whoever reaches its ports "
            "could run code as you; unset it, or write one of the two"
        )


def worker_environment(gpu: bool) -> dict[str, str]:
    """Environment variables for training workers: KEEP_MEMORY on CPUs, unless the user has set such a variable."""
    chosen = any(key == "GLIBC_TUNABLES" or key.startswith("MALLOC_") for key in os.environ)
    return {} if gpu or chosen else KEEP_MEMORY


def task_options() -> dict[str, Any]:
    """Ray options that remove KEEP_MEMORY from a worker's data tasks, which inherit its environment."""
    without = {key: "" for key, value in KEEP_MEMORY.items() if os.environ.get(key) == value}
    return {"runtime_env": {"env_vars": without}} if without else {}


def _address() -> str | None:
    """$RAY_ADDRESS, or the address of the last `ray start` on this machine if that cluster answers, or None."""
    wanted = os.environ.get("RAY_ADDRESS", "")
    if wanted == "local":
        return None
    if wanted not in ("", "auto"):
        return wanted
    with suppress(OSError):
        recorded = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster").read_text().strip()
        if wanted or _why_silent(recorded) is None:
            return recorded
    return wanted or None


def _why_silent(address: str) -> str | None:
    """Why nothing answers at an address such as ray://host:10001; None if something does."""
    if address == "auto":
        return "no cluster was started here by `ray start`"
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        with socket.create_connection((parts.hostname or "", parts.port or 10001), timeout=10):
            return None
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)


def _join(address: str) -> None:
    import ray

    remedy = (
        "start the cluster (`ray start --head`), correct the address, or unset RAY_ADDRESS to use this machine alone"
    )
    if (reason := _why_silent(address)) is not None:
        raise ResourceError(f"RAY_ADDRESS = {address}: no Ray answers there ({reason}); {remedy}")
    try:
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ResourceError(
            f"RAY_ADDRESS = {address}: {_first_line(error)}; {remedy}. A cluster that wants a token takes the "
            "~/.ray/auth_token of its head node, with RAY_AUTH_MODE=token"
        ) from None
    deadline = time.monotonic() + CPUS_WITHIN_S
    while not available()[0]:
        if time.monotonic() > deadline:
            ray.shutdown()
            raise ResourceError(
                f"the Ray cluster at {address} has no CPUs, so that nothing can run; add a node with "
                "`ray start --address=...`, or start the head with --num-cpus above 0"
            )
        time.sleep(0.5)


def _start() -> None:
    import ray

    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        logging.getLogger(__name__).warning(
            "RAY_AUTH_MODE=disabled: whoever reaches this Ray's ports can run code as you; unset it to ask for a token"
        )
    # This logger reports at every start that the token is in use.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    try:
        # The dashboard's ten processes take 4 s of a core, and Ray waits for them; `ray start --head` gives one.
        ray.init("local", include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    except Exception as error:  # the class that Ray raises if its processes take too long
        folder = os.environ.get("RAY_TMPDIR")
        if "AF_UNIX" in str(error) and folder:
            raise ResourceError(
                f"RAY_TMPDIR = {folder}: is too long for the names of Ray's sockets; give at most 40 characters"
            ) from None
        raise ResourceError(
            f"Ray does not start on this machine: {_first_line(error).rstrip('.')}; if it is busy, end other work and "
            "run the same command again: Ray's processes need 1 GB and must answer within 30 s"
        ) from error
    with suppress(OSError):
        (Path.home() / ".ray" / "auth_token").chmod(0o600)  # Ray leaves it readable to others


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def quiet() -> None:
    """Hide the progress notes of libraries in drivers and workers; warnings and errors stay."""
    # Ray names some loggers after their files; these are not below `ray.train`.
    by_file = [name for name in logging.root.manager.loggerDict if "/ray/train/" in name]
    for name in ("ray.train", "ray.tune", "mlflow", "alembic", *by_file):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns while no task can run. That is normal when two ranks share the CPUs that `divide` left for tasks.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # How long Tune's own callbacks took, and a traceback of each failed trial, whose reason the search tells in a line.
    logging.getLogger("ray.tune.utils.util").setLevel(logging.ERROR)
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    # It prints a traceback of every error that it raises; mrisr reports a locked database in one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def divide(experiment: Experiment, cpus: float, gpus: float, nodes: Sequence[Node] = ()) -> Share:
    """Divide a cluster's logical CPUs and GPUs among the largest number of workers that fits.

    nodes: (logical CPUs, GPUs) of each machine; by default one machine has them all. At least one data task must fit
    beside the workers on one machine: otherwise the run would hang without an error. Raises ResourceError if not even
    the smallest number of workers fits.
    """
    *larger, fewest = experiment.worker_counts
    for workers in larger:
        with suppress(ResourceError):
            return _divide_among(workers, experiment, cpus, gpus, nodes or [(cpus, gpus)])
    return _divide_among(fewest, experiment, cpus, gpus, nodes or [(cpus, gpus)])


def _divide_among(workers: int, experiment: Experiment, cpus: float, gpus: float, nodes: Sequence[Node]) -> Share:
    want, task = experiment.resources, experiment.stream.cpus_per_task
    gpu = gpus >= experiment.worker_counts[-1] if want.gpus is None else want.gpus
    if gpu and gpus < workers:
        fewer = f"resources.workers={int(gpus)} or " if gpus >= 1 else ""
        raise ResourceError(
            f"resources.workers = {workers} with resources.gpus = true needs {workers} GPUs; the cluster has "
            f"{gpus:g}. Set {fewer}resources.gpus=false"
        )

    def largest(limit: float) -> float:
        """The largest share up to a limit that fits, in hundredths of a CPU; 0 if none does."""
        hundredths = range(math.floor(limit * 100 + 1e-9), 0, -1)
        return next((n / 100 for n in hundredths if fits(nodes, workers, n / 100, gpu, task)), 0.0)

    room = (cpus - task) / workers
    share = want.cpus_per_worker or largest(min(1.0, room))
    if share > 0 and fits(nodes, workers, share, gpu, task):
        return Share(share, gpu, data_share(cpus, share, workers, task))
    on = f" on {len(nodes)} machines" if len(nodes) > 1 else ""
    raise ResourceError(
        f"{workers} workers of {max(share, 0.01):g} CPUs and a data task of {task:g} do not fit into {cpus:g} logical "
        f"CPUs{on}; what fits: resources.cpus_per_worker={largest(room):.2f} at most, fewer resources.workers, or a "
        "smaller stream.cpus_per_task (0.5, say)"
    )


def data_share(cpus: float, cpus_per_worker: float, workers: int, task: float) -> float:
    return max(task, (cpus - cpus_per_worker * workers) / workers)


def fits(nodes: Iterable[Node], workers: int, share: float, gpu: bool, task: float) -> bool:
    """Whether one machine has room for a data task beside workers of `share` CPUs each, packed as Ray packs them."""
    room_for_task, unplaced = False, workers
    for cpus, gpus in sorted(nodes, reverse=True):
        here = min(unplaced, math.floor(cpus / share + 1e-9), int(gpus) if gpu else unplaced)
        unplaced -= here
        room_for_task = room_for_task or cpus - here * share >= task - 1e-9
    return unplaced == 0 and room_for_task


def nodes() -> list[Node]:
    """The living machines of the connected cluster that have CPUs."""
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(float(node["CPU"]), float(node.get("GPU", 0))) for node in found if node.get("CPU")]


def wait_for_cpu(cpus: float, tell: Callable[[str], None] = print) -> None:
    """Return once a task of that many logical CPUs can start. Ray lets tasks wait without a word; this says so."""
    import ray

    if ray.available_resources().get("CPU", 0) >= cpus:
        return
    probe = ray.remote(num_cpus=cpus)(nothing).remote()
    if not ray.wait([probe], timeout=SILENT_S)[0]:
        tell(f"{no_free_cpu(cpus, SILENT_S)}; end it, or add a node")
        ray.get(probe)


def no_free_cpu(cpus: float, seconds: float) -> str:
    return (
        f"no task could start for {seconds:.0f} s: it needs {cpus:g} of the cluster's {available()[0]:g} logical CPUs, "
        "and other work holds them. Everything goes on once they are free"
    )


def nothing() -> None:
    """A task that only shows that it could start."""


def available() -> Node:
    """(logical CPUs, GPUs) of the connected cluster."""
    import ray

    total = ray.cluster_resources()
    return float(total.get("CPU", 0)), float(total.get("GPU", 0))
