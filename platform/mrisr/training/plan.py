"""The plan of a run as text: `mrisr train --dry-run`."""

from __future__ import annotations

from torch import nn

from mrisr.config import Experiment
from mrisr.config.loading import dump_experiment
from mrisr.data.checks import open_store
from mrisr.data.splits import resolve_splits
from mrisr.data.stream import AHEAD, group_bytes, object_store_bytes
from mrisr.engine.schedule import updates_before
from mrisr.models import build_critic, build_generator
from mrisr.training.build import patch_maker, step_config
from mrisr.training.memory import peaks_text, whole_volume_text
from mrisr.training.precision import assumed_precision


def describe_plan(experiment: Experiment) -> str:
    """The resolved configuration and the plan. Reads the store and starts nothing. Raises ConfigError like `train`."""
    store = open_store(experiment)
    experiment = resolve_splits(experiment, store)
    schedule, steps = experiment.schedule, step_config(experiment)
    stream, workers = experiment.stream, experiment.resources.workers
    splits = store.splits()
    subjects = len(splits["train"])
    patches = schedule.total_steps * steps.batch_size
    rows = -(-patches // stream.patches_per_row)
    updates = updates_before(schedule, schedule.total_steps)
    networks: dict[str, nn.Module] = {
        f"generator {experiment.generator.kind}": build_generator(experiment.generator.architecture)
    }
    if schedule.needs_critic:
        kind = experiment.critic.kind
        networks[f"critic {kind}"] = build_critic(kind, stream.patch_size, experiment.critic.width)
    parameters = ", ".join(
        f"{name} {sum(p.numel() for p in network.parameters()):,}" for name, network in networks.items()
    )
    maker = patch_maker(experiment, splits["train"])
    on_cpus, on_gpus = (steps.batchnorm_over(workers, cuda) for cuda in (False, True))
    batchnorm = f"{on_cpus}" if on_cpus == on_gpus else f"{on_cpus}, on GPUs over all {on_gpus}"
    fewer = " or ".join(map(str, experiment.worker_counts[1:]))
    elastic = f", {fewer} while nodes are away" if fewer else ""
    shapes = (store.record(subject).shape for subject in splits[experiment.validation.split])
    lines = [
        f"volumes     {', '.join(f'{name} {len(names)}' for name, names in splits.items())}  in {store.path}",
        f"rows        {rows:,}: one volume degraded once ({experiment.degradation.describe()}), "
        f"{stream.patches_per_row} patches of {stream.patch_size}^3 each; "
        f"{rows / subjects:,.1f} epochs",
        f"steps       {schedule.total_steps:,} of {steps.batch_size} patches on {workers} workers{elastic} "
        f"({steps.micro_batch} per forward pass, BatchNorm over {batchnorm}): {updates.pretrain:,} L1, "
        f"{updates.critic:,} critic, {updates.generator:,} adversarial",
        f"parameters  {parameters}",
        f"memory      {peaks_text(experiment, steps.micro_batch)} "
        f"({assumed_precision(experiment)}; live tensors, without kernel workspace), before sharding",
        f"stream      {object_store_bytes(maker, stream.rounds) / 2**30:.2f} GiB of Ray's object store at most: "
        f"{(1 + AHEAD) * stream.rounds} groups for each of {maker.plan.lanes} lanes, "
        f"{group_bytes(maker) / 2**20:.1f} MiB a group",
        f"validation  {experiment.validation.protocol} every {experiment.validation.every:,} steps on split "
        f"{experiment.validation.split!r}",
        f"evaluation  {whole_volume_text(experiment, shapes)}",
        f"run         {experiment.run_folder}",
    ]
    return f"{dump_experiment(experiment)}\n" + "\n".join(lines)
