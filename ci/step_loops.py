"""The loops that ci/bench_step.py times: a plain PyTorch loop of the networks, and ours, alone and under Ray Train.

Only `under_ray` needs more than torch.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mrisr.engine.networks import build_networks
from mrisr.engine.precision import native_bf16, precision_on
from mrisr.engine.schedule import Phase
from mrisr.engine.sharding import float32_convolutions
from mrisr.engine.step import train_step
from mrisr.engine.step_settings import StepConfig
from mrisr.models import build_critic, build_generator
from mrisr.models.depthwise import DepthwiseConv3d

PUBLISHED: dict[str, Any] = {"growth_rate": 16, "blocks": 4, "units": 4, "residual": False}
PHASES = (Phase.PRETRAIN, Phase.CRITIC)
Steps = dict[Phase, Callable[[int], object]]
Seconds = dict[Phase, list[float]]


def patches(count: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Seeded (lr, hr), each (count, 1, size, size, size)."""
    hr = torch.rand(count, 1, size, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    return 0.9 * hr, hr


def plain_loop(lr: Tensor, hr: Tensor, bf16: bool, channels_last: bool) -> Steps:
    """The steps as a script would write them: one process, no micro-batches, no check of what is finite."""
    generator = build_generator(PUBLISHED).to(lr.device).train()
    generator.channels_last = channels_last
    critic = build_critic("separable", lr.shape[-1]).to(lr.device)
    networks: list[nn.Module] = [generator, critic]
    moves = {net: torch.optim.Adam(net.parameters(), lr=1e-5) for net in networks}

    def generate() -> Tensor:
        with torch.autocast(lr.device.type, torch.bfloat16, enabled=bf16):
            return generator(lr).float()

    def update(network: nn.Module, loss: Tensor) -> float:
        moves[network].zero_grad(set_to_none=True)
        loss.backward()
        moves[network].step()
        return loss.item()

    def pretrain(index: int) -> float:
        return update(generator, (generate() - hr).abs().mean())

    def train_critic(index: int) -> float:
        with torch.no_grad():
            fake = generate()
        # A view: FlopCounterMode does not follow gradients of leaves.
        mixed = torch.lerp(fake, hr, 0.5).requires_grad_().view_as(hr)
        (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        return update(critic, critic(fake).mean() - critic(hr).mean() + 10 * penalty)

    return {Phase.PRETRAIN: pretrain, Phase.CRITIC: train_critic}


def fast_plain_loop(count: int, size: int, device: torch.device) -> Steps:
    """The fastest plain loop of the device: channels_last_3d, and bf16 where it is native."""
    return plain_loop(*patches(count, size, device), bf16=native_bf16(device), channels_last=True)


def our_loop(
    lr: Tensor,
    hr: Tensor,
    strategy: str = "single",
    batch_size: int | None = None,
    own_depthwise: bool = True,
    **options: Any,
) -> Steps:
    """train_step on this rank's patches, in training.precision=auto unless `options` say otherwise.

    batch_size: over all ranks; own_depthwise=False: the critic uses torch's depthwise convolutions.
    """
    own: dict[str, Any] = {"batch_size": batch_size or lr.shape[0], "micro_batch": lr.shape[0]}
    own["precision"] = precision_on("auto", lr.device)
    config = StepConfig(**own | options)
    critic = build_critic("separable", lr.shape[-1])
    for part in critic.modules():
        if isinstance(part, DepthwiseConv3d) and not own_depthwise:
            part.__class__ = nn.Conv3d  # type: ignore[assignment]  # the same but for its derivatives
    networks = build_networks(build_generator(PUBLISHED), critic, config, lr.device, strategy)
    return {phase: partial(train_step, networks, config, phase, lr=lr, hr=hr) for phase in PHASES}


def interleaved(steps: Mapping[str, Callable[[int], object]], repeats: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of `repeats` calls of each, taken in turn, so that the machine is in the same state for all."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(warm_up + repeats):
        for name, step in steps.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = time.perf_counter()
            step(index)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if index >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return seconds


class Turn:
    """Two processes that take turns, so that the machine is in the same state for the steps of both.

    folder: shared; its file `turn` holds the name of the process that begins. own, other: the two names. partner: the
    other process as a future, whose error ends the wait.
    """

    def __init__(self, folder: Path, own: str, other: str, partner: Future[Any] | None = None) -> None:
        self._file, self._own, self._other, self._partner = folder / "turn", own, other, partner

    def __call__(self, step: Callable[[int], object]) -> Callable[[int], float]:
        """The step, run when it is its turn; returns its seconds without the wait."""

        def timed(index: int) -> float:
            while self._file.read_text() != self._own:
                if self._partner is not None and self._partner.done():
                    raise RuntimeError("the other side ended before its last turn") from self._partner.exception()
                time.sleep(0.01)
            started = time.perf_counter()
            step(index)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
            part = self._file.with_suffix(f".{self._own}")
            part.write_text(self._other)
            part.replace(self._file)
            return seconds

        return timed

    def by_phase(self, steps: Steps, repeats: int, warm_up: int = 2) -> Seconds:
        """Like the function `by_phase`; both processes must ask for the same number of steps."""
        return {
            phase: [self(step)(index) for index in range(warm_up + repeats)][warm_up:] for phase, step in steps.items()
        }


def by_phase(steps: Steps, repeats: int) -> Seconds:
    """The seconds of each kind of step, one kind after the other."""
    return {phase: interleaved({"": step}, repeats)[""] for phase, step in steps.items()}


def with_tf32(steps: Steps, tf32: bool) -> Steps:
    """The same steps with a GPU's float32 convolutions in TF32, or not; the setting is the process's."""

    def one(step: Callable[[int], object]) -> Callable[[int], object]:
        def run(index: int) -> object:
            float32_convolutions(tf32)
            return step(index)

        return run

    return {phase: one(step) for phase, step in steps.items()}


def _restrict(cores: list[int], device: torch.device) -> None:
    float32_convolutions(tf32=False)  # for the plain loop too; device_for_worker does it for ours
    if device.type == "cpu":
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(len(cores))


def _plain_alone(cores: list[int], count: int, size: int, repeats: int) -> Seconds:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _restrict(cores, device)
    return by_phase(fast_plain_loop(count, size, device), repeats)


def plain_processes(cores: list[list[int]], count: int, size: int, repeats: int) -> list[Seconds]:
    """`fast_plain_loop` in processes of its own, one per list of cores, all at once."""
    with ProcessPoolExecutor(len(cores), mp_context=get_context("spawn")) as pool:
        return [job.result() for job in [pool.submit(_plain_alone, own, count, size, repeats) for own in cores]]


def _followed(step: Callable[[int], object], after: Callable[[], object], index: int) -> None:
    step(index)
    after()


def waited_for_core() -> float:
    """Seconds in which this thread was ready to run but something else had its core (Linux)."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def _ray_worker(settings: dict[str, Any]) -> tuple[Seconds, float]:
    import ray.train

    from mrisr.engine.sharding import device_for_worker
    from mrisr.training.run_folder import RunFolder
    from mrisr.training.stopping import Requests

    context, device = ray.train.get_context(), device_for_worker(settings["gpu"])
    world, cores = context.get_world_size(), settings["cores"]
    _restrict(cores[context.get_world_rank()], device)
    lr, hr = patches(settings["count"], settings["size"], device)
    requests = Requests(RunFolder(Path(settings["folder"])), device)
    steps = our_loop(lr, hr, "fsdp", batch_size=world * settings["count"], critic_samples=settings["samples"])
    # With the work of the worker's loop after a step that is neither logged, validated nor saved.
    whole: Steps = {phase: partial(_followed, steps[phase], requests.after_step) for phase in settings["phases"]}
    if settings["turns"]:
        return Turn(Path(settings["turns"]), "ray", "plain").by_phase(whole, settings["repeats"]), 0.0
    started, before = time.perf_counter(), waited_for_core()
    seconds = by_phase(whole, settings["repeats"])
    return seconds, (waited_for_core() - before) / (time.perf_counter() - started)


def in_turns(
    cores: list[int], count: int, size: int, repeats: int, samples: int | None = 1, phases: tuple[Phase, ...] = PHASES
) -> tuple[Seconds, Seconds]:
    """The plain loop in this process and our step in a Ray Train worker under FSDP, step by step in turn."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _restrict(cores, device)
    plain = fast_plain_loop(count, size, device)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        (Path(folder) / "turn").write_text("ray")
        ours = pool.submit(under_ray, [cores], count, size, repeats, folder, samples, phases)
        own = {phase: plain[phase] for phase in phases}
        return Turn(Path(folder), "plain", "ray", ours).by_phase(own, repeats), ours.result()[0]


def under_ray(
    cores: list[list[int]],
    count: int,
    size: int,
    repeats: int,
    turns: str = "",
    samples: int | None = 1,
    phases: tuple[Phase, ...] = PHASES,
) -> tuple[Seconds, float]:
    """Our step in Ray Train workers under FSDP, one per list of cores. Ray must be connected.

    Returns rank 0's seconds and the share of the time that it waited for its core. turns: folder of a `Turn`, if any.
    samples: as `critic.samples_at_once`, whose default saves memory.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"cores": cores, "count": count, "size": size, "repeats": repeats, "folder": folder}
        settings |= {"turns": turns, "gpu": gpu, "samples": samples, "phases": phases}
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config=settings,
            scaling_config=ray.train.ScalingConfig(
                num_workers=len(cores), use_gpu=gpu, resources_per_worker={"CPU": 0.5, **({"GPU": 1} if gpu else {})}
            ),
            run_config=ray.train.RunConfig(
                name="bench", storage_path=folder, logging_config=ray.train.LoggingConfig(log_level="WARNING")
            ),
        )
        result = trainer.fit()
    found: tuple[Seconds, float] = result.return_value
    return found
