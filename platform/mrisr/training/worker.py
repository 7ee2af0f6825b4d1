"""What every Ray Train worker runs: it makes its part of a run ready, from the last checkpoint if there is one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ray.train
import torch

from mrisr import cluster
from mrisr.config import Experiment
from mrisr.data.stream import StreamLimits, rank_batches
from mrisr.engine import checkpoint
from mrisr.engine.sharding import device_for_worker
from mrisr.models import MDCSRN
from mrisr.tracking.outbox import Outbox
from mrisr.training.best import Best
from mrisr.training.build import (
    generator_config,
    initial_networks,
    patch_maker,
    step_config,
)
from mrisr.training.loop import Loop, Stopped, report
from mrisr.training.outcome import StorageStopped, TrainingStopped
from mrisr.training.placement_groups import note_group
from mrisr.training.plan import memory_advice, out_of_memory
from mrisr.training.precision import settle_precision
from mrisr.training.run_folder import RunFolder
from mrisr.training.state import RunState
from mrisr.training.stopping import Requests
from mrisr.training.validation import Validator
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
        experiment = Experiment.model_validate(settings["experiment"])
        advice = memory_advice(RunFolder.of(experiment).as_recorded(experiment), error)
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
    if rank == 0 and settings["driver_cpus"]:  # in a trial of a search
        note_group(experiment.run_folder)
    device = device_for_worker(settings["gpu"], experiment.training.tf32)
    if device.type == "cpu":
        threads = experiment.resources.threads_per_worker
        torch.set_num_threads(threads or max(1, settings["node_cpus"] // context.get_local_world_size()))

    store, folder = VolumeStore.open(experiment.data.store), RunFolder.of(experiment)
    state = RunState(Best(experiment.validation))
    found, known = folder.agreed_checkpoint(), ray.train.get_checkpoint()
    if known is not None and (found is None or found.name < Path(known.path).name):
        # Saved again, it would be twice in Ray's list, and its folder deleted with the older of the two entries.
        told = f"{known.path} is gone or damaged since it was written; the same command goes on from the one before it"
        return _ended(state, ["checkpoint", told])
    try:
        experiment = settle_precision(experiment, device)
    except StorageStopped as error:
        return _ended(state, ["storage", str(error)])
    schedule, config = experiment.schedule, step_config(experiment, device)
    initial = Path(settings["initial"]) if settings["initial"] else None
    networks = initial_networks(experiment, initial, device)
    evaluated = MDCSRN(**generator_config(experiment), channels_last=config.channels_last).to(device).eval()
    if found is not None:
        try:
            state.restore(checkpoint.load(found, networks), found)
        except checkpoint.CheckpointError as error:
            return _ended(state, ["checkpoint", str(error)])
        if known is None or Path(known.path).name != found.name:
            # Whole on the disk, but the process died before Ray heard of it.
            report(found, state)

    if rank == 0 and experiment.resources.min_workers is not None:
        print(
            f"{world} of {experiment.resources.workers} workers from step {state.step:,} on, each with "
            f"{config.local_batch(world)} of the {config.batch_size} patches of a step",
            flush=True,
        )

    v = experiment.validation
    subjects = store.subjects(v.split)[: v.max_subjects]
    validators: dict[str, Validator] = {
        protocol: Validator(store, subjects, protocol, v.patch_size, v.patches_per_subject, rank, world)
        for protocol in dict.fromkeys((v.protocol, *v.further_protocols, *v.mean_over))
    }
    outbox = Outbox(settings["tracking_uri"], settings["mlflow_run_id"], folder.outbox) if rank == 0 else None
    requests = Requests(folder.path, device)
    maker = patch_maker(experiment, store.subjects("train"))
    # Of the cluster as it is now: a group that comes after a lost node has fewer workers and fewer CPUs beside them.
    task, each = experiment.stream.cpus_per_task, settings["cpus_per_worker"]
    cpus = cluster.available()[0] / settings["runs"] - settings["driver_cpus"]
    limits = StreamLimits(task, cluster.data_share(cpus, each, world, task), experiment.stream.rounds)
    batches = rank_batches(maker, rank, world, state.step, schedule.total_steps, limits)

    try:
        stopped = Loop(
            experiment, schedule, config, networks, evaluated, state, validators, maker, batches, requests, outbox
        ).run()
    finally:
        batches.close()
    if outbox is not None:
        terminated = stopped is not None and stopped[0] == "terminated"
        outbox.close(LAST_DELIVERY_S, LAST_DELIVERY_WHEN_TERMINATED_S if terminated else math.inf)
    return _ended(state, stopped)


def _ended(state: RunState, stopped: Stopped | None) -> dict[str, Any]:
    return {"step": state.step, "best": state.best.progress(), "stopped": stopped}
