"""What every Ray Train worker runs: the loop from the first step, or the last checkpoint, to the end."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import CheckpointUploadMode
from torch import Tensor

from mrisr import cluster
from mrisr.config import Experiment
from mrisr.metrics import METRICS
from mrisr.models import MDCSRN
from mrisr.outbox import Outbox
from mrisr.pictures import critic_figure
from mrisr.stream import Batch, StreamError, StreamLimits, rank_batches
from mrisr.training import checkpoint, replay
from mrisr.training.assembly import generator_config, initial_networks, patch_maker, schedule_of, step_config
from mrisr.training.best import BEST_WEIGHTS, LAST_WEIGHTS, Best
from mrisr.training.claim import OUTBOX
from mrisr.training.exhaustion import memory_advice, out_of_memory
from mrisr.training.outcome import FiguresNotFinite, SubjectAtFault, TrainingStopped
from mrisr.training.saving import CheckpointWriteError, agreed_checkpoint, checkpoint_name, write_folder
from mrisr.training.schedule import phase
from mrisr.training.sharding import average_statistics, device_for_worker, evaluated_state, full_state, largest
from mrisr.training.step import NonFiniteError, train_step
from mrisr.training.stopping import Request, Requests
from mrisr.training.validation import Validator
from mrisr.training.window import Window
from voxelstore import VolumeStore

# How long the end of a run waits for an MLflow that takes nothing, and after SIGTERM in all; what is left is delivered
# by the next start.
LAST_DELIVERY_S, LAST_DELIVERY_WHEN_TERMINATED_S = 60.0, 3.0


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """`train_rank`; an error of memory, which the same step would meet again, becomes one that ends the run."""
    try:
        return train_rank(settings)
    except Exception as error:
        if not out_of_memory(error):
            raise
        advice = memory_advice(Experiment.model_validate(settings["experiment"]), error)
    raise TrainingStopped(advice)


def train_rank(settings: dict[str, Any]) -> dict[str, Any]:
    """One rank of a run. settings: experiment (JSON), tracking_uri, mlflow_run_id, initial weights, gpu,
    cpus_per_worker, node_cpus, and of a search: runs that share the cluster, driver_cpus of each.

    Returns step, best and `stopped`: None at the end of the schedule, else [kind, message] with kind `terminated`,
    `non-finite`, `storage` or `checkpoint`: what starting the workers again would not mend. What ends one rank alone in
    that way, a row that cannot be made, it raises: SubjectAtFault.
    """
    cluster.quiet()
    experiment = Experiment.model_validate(settings["experiment"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = device_for_worker(settings["gpu"], experiment.training.tf32)
    if device.type == "cpu":
        threads = experiment.resources.threads_per_worker
        torch.set_num_threads(threads or max(1, settings["node_cpus"] // context.get_local_world_size()))

    store, run_folder = VolumeStore.open(experiment.data.store), experiment.run_folder
    schedule, config = schedule_of(experiment), step_config(experiment)
    initial = Path(settings["initial"]) if settings["initial"] else None
    networks = initial_networks(experiment, initial, device)
    evaluated = MDCSRN(**generator_config(experiment), channels_last=config.channels_last).to(device).eval()

    # The position in the stream is the step, so a checkpoint that knows its step knows its row.
    step, best, window = 0, Best(experiment.validation), Window()
    # Since the last picture of the critic; the same on every rank.
    critic_norms: list[float] = []
    # The figures of the last validation, and after which step: `validated`.
    latest: dict[str, float] = {}
    found, known = agreed_checkpoint(run_folder), ray.train.get_checkpoint()
    if known is not None and (found is None or found.name < Path(known.path).name):
        # Saved again, it would be twice in Ray's list, and its folder deleted with the older of the two entries.
        told = f"{known.path} is gone or damaged since it was written; the same command goes on from the one before it"
        return {"step": step, "best": best.progress(), "stopped": ["checkpoint", told]}
    if found is not None:
        try:
            progress = checkpoint.load(found, networks)
            best.restore(progress["best"], found)
        except checkpoint.CheckpointError as error:
            return {"step": step, "best": best.progress(), "stopped": ["checkpoint", str(error)]}
        step = progress["step"]
        window.restore(progress["window"])
        critic_norms, latest = progress["critic_norms"], progress["latest"]
        if known is None or Path(known.path).name != found.name:
            # Whole on the disk, but the process died before Ray heard of it.
            _report(found, {"step": step, **latest})

    if rank == 0 and experiment.resources.min_workers is not None:
        print(
            f"{world} of {experiment.resources.workers} workers from step {step:,} on, each with "
            f"{config.local_batch(world)} of the {config.batch_size} patches of a step",
            flush=True,
        )

    v = experiment.validation
    subjects = store.subjects(v.split)[: v.max_subjects]
    validators = {
        protocol: Validator(store, subjects, protocol, v.patch_size, v.patches_per_subject, rank, world)
        for protocol in dict.fromkeys((v.protocol, *v.further_protocols, *v.mean_over))
    }
    outbox = Outbox(settings["tracking_uri"], settings["mlflow_run_id"], run_folder / OUTBOX) if rank == 0 else None
    requests = Requests(run_folder, device)
    maker = patch_maker(experiment, store.subjects("train"))
    # Of the cluster as it is now: a group that comes after a lost node has fewer workers and fewer CPUs beside them.
    task, each = experiment.stream.cpus_per_task, settings["cpus_per_worker"]
    cpus = cluster.available()[0] / settings["runs"] - settings["driver_cpus"]
    limits = StreamLimits(task, cluster.data_share(cpus, each, world, task), experiment.stream.rounds)
    batches = rank_batches(maker, rank, world, step, schedule.total_steps, limits)

    def validate() -> None:
        average_statistics(networks)
        state = evaluated_state(networks)
        evaluated.load_state_dict(state)
        figures, picture = validators[v.protocol].run(evaluated, device, config.precision)
        for protocol in list(validators)[1:]:
            others, _ = validators[protocol].run(evaluated, device, config.precision)
            figures |= {f"{protocol}/{key}": value for key, value in others.items()}
        if not all(math.isfinite(value) for key, value in figures.items() if key.rpartition("/")[2] in METRICS):
            raise FiguresNotFinite(
                f"after step {step} the validation figures are not finite: {figures}; start a new run from the best "
                f"weights with a smaller learning rate: name=... generator.init_from={run_folder}"
            )
        latest.clear()
        latest.update(figures, validated=step)
        better = best.offer(step, figures, state)
        # All ranks take part in gathering the critic's weights.
        weights = None if networks.critic is None or step <= schedule.pretrain_steps else full_state(networks.critic)
        if outbox is not None:
            outbox.metrics(step, {f"validation/{key}": value for key, value in figures.items()})
            if picture is not None:
                outbox.figure(step, "validation", picture)
            if weights is not None:
                histogram, spread = critic_figure(
                    {name: value.numpy() for name, value in weights.items()}, critic_norms, config.weight_clip
                )
                outbox.figure(step, "critic", histogram)
                outbox.metrics(step, {f"critic_weights/{key}": value for key, value in spread.items()})
            print(
                f"step {step:>7,} validation  psnr {figures['psnr']:.3f} dB "
                f"({figures['psnr_gain']:+.3f} over the input)  "
                f"ssim {figures['ssim']:.4f} ({figures['ssim_gain']:+.4f}){'  best so far' if better else ''}",
                flush=True,
            )
        if weights is not None:
            critic_norms.clear()

    def save() -> None:
        average_statistics(networks)
        progress = {
            "step": step, "best": best.progress(), "window": window.progress(), "critic_norms": critic_norms,
            "latest": latest, "batchnorm_over": networks.batchnorm_over,
        }  # fmt: skip
        weights = {LAST_WEIGHTS: evaluated_state(networks)} | ({BEST_WEIGHTS: best.state} if best.state else {})
        folder = run_folder / checkpoint_name(step)
        _report(
            write_folder(folder, networks, progress, weights, generator_config(experiment)),
            {"step": step, **latest},
        )

    def loop() -> list[str] | None:
        nonlocal step
        t = experiment.training
        while step < schedule.total_steps:
            started = time.perf_counter()
            try:
                batch = next(batches)
            except StreamError as error:
                # The other ranks have their batches: they are in the step's collectives, and end with this worker.
                raise SubjectAtFault(
                    f"{error}. Another store needs a new run, which may begin at this one's weights: name=... "
                    f"generator.init_from={run_folder}"
                ) from None
            waited = time.perf_counter() - started
            now = phase(schedule, step)
            try:
                metrics = train_step(networks, config, now, step, *_tensors(batch))
            except NonFiniteError as error:
                try:
                    folder = replay.record(run_folder, networks, config, maker, batch, error)
                except CheckpointWriteError as full:
                    return ["non-finite", f"{error}. It is not recorded for replay: {full}"]
                return ["non-finite", f"{error}. To see it again: mrisr replay {folder}"]
            step += 1
            window.add(now, metrics, waited, time.perf_counter() - started)
            if "interpolate_gradient_norm" in metrics:
                critic_norms.append(metrics["interpolate_gradient_norm"])

            last = step == schedule.total_steps
            if step % t.log_every == 0 or last:
                record = window.close(config, batch_size=t.batch_size)
                # One rank that waits holds up all: the others' time for it passes in the step's collectives.
                share = "throughput/data_wait_share"
                record[share] = largest(record.get(share, 0.0), device)
                if outbox is not None:
                    outbox.metrics(step, record)
                    print(window.line(step, schedule.total_steps, now, record), flush=True)
            if step % experiment.validation.every == 0 or last:
                validate()
            request = requests.after_step()
            if step % t.checkpoint_every == 0 or last or request is not Request.NOTHING:
                save()
            if request is Request.STOP and not last:
                return ["terminated", f"stopped by SIGTERM after step {step:,}, which is checkpointed"]
        return None

    try:
        if step == 0:
            validate()
        stopped = loop()
    except CheckpointWriteError as error:
        stopped = ["storage", str(error)]
    except FiguresNotFinite as error:
        stopped = ["non-finite", str(error)]
    finally:
        batches.close()
    if outbox is not None:
        terminated = stopped is not None and stopped[0] == "terminated"
        outbox.close(LAST_DELIVERY_S, LAST_DELIVERY_WHEN_TERMINATED_S if terminated else math.inf)
    return {"step": step, "best": best.progress(), "stopped": stopped}


def _report(folder: Path, metrics: dict[str, Any]) -> None:
    """Tell Ray of a checkpoint that lies in its place; every rank must call it."""
    ray.train.report(
        metrics,
        checkpoint=ray.train.Checkpoint(str(folder)),
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
    )


def _tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    """(lr, hr) float32; float16 is only how patches travel."""
    return torch.from_numpy(batch.lr).float(), torch.from_numpy(batch.hr).float()
