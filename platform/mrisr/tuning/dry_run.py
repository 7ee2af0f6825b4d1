"""The plan of a search as text, before anything starts: `mrisr tune --dry-run`."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path

import torch

from mrisr import cluster
from mrisr.models.torch_private import MemoryUnknownError
from mrisr.training.memory import estimated_peaks
from mrisr.training.precision import Assumed, precision_here
from mrisr.tuning.concurrency import trials_at_once
from mrisr.tuning.plan import SearchPlan, plan_search, short
from mrisr.tuning.report import scale
from mrisr.tuning.scheduler import rungs
from mrisr.tuning.search import open_search_store
from mrisr.tuning.trial import with_known_precision

# Keys without effect in the L1 stage.
_ADVERSARIAL = (
    "critic.", "training.generator_lr", "training.critic_lr", "training.adversarial_weight", "training.gp_weight",
    "schedule.critic", "schedule.boost",
)  # fmt: skip


def describe_search(config: Path | str | None, overrides: list[str]) -> str:
    """The search space and the plan. Reads the store and starts nothing. Raises ConfigError as the search would."""
    plan = plan_search(config, overrides)
    store, t, base = open_search_store(plan), plan.base.tuning, plan.base
    trials, steps = plan.trials, plan.trial_steps
    at = rungs(plan)
    stops = f"{t.scheduler}, decides at steps {', '.join(f'{step:,.0f}' for step in at)}" if at else t.scheduler
    shared = f"; {base.schedule.pretrain_steps:,} L1 steps once before" if t.shared_pretraining else ""
    anew = f" and {plan.trial_steps:,} to train the winner anew" if t.winner == "retrain" else ""
    points = (", ".join(f"{name}={short(value)}" for name, value in point.items()) for point in plan.points)
    assumed = _assumed(plan)
    lines = [
        *(f"{'space' if number == 0 else '':<12}{line}" for number, line in enumerate(_space_lines(plan))),
        f"first       {'; '.join(points) or 'nothing known'}",
        f"volumes     {', '.join(f'{name} {len(names)}' for name, names in store.splits().items())}  in {store.path}",
        f"score       {' and '.join(m.upper() for m in t.metrics)} on split {base.validation.split!r}, {scale(plan)}, "
        f"every {base.validation.every:,} steps",
        f"trials      {trials} of at most {steps:,} steps{shared}; sampler {t.sampler}; scheduler {stops}",
        f"cost        at most {trials * steps:,} steps{anew}; a grid of {t.grid_points} values per range would be "
        f"{plan.grid_size * steps:,}",
        f"at a time   {_at_a_time(plan)}",
        f"memory      {_memory(plan, assumed)} ({assumed}; live tensors, before sharding)",
        f"search      {plan.folder}"
        + ("; goes on with what is there" if (plan.folder / "search.yaml").exists() else ""),
    ]
    return "\n".join([*lines, *_notes(plan)])


def _notes(plan: SearchPlan) -> list[str]:
    pretrain, at = plan.base.schedule.pretrain_steps, rungs(plan)
    late = [key for key in plan.spaces if key.startswith(_ADVERSARIAL)]
    if plan.base.tuning.shared_pretraining or not late or not at or at[0] > pretrain:
        return []
    return [
        f"note        ASHA first decides at step {at[0]:,.0f}, within the {pretrain:,} L1 steps, where "
        f"{', '.join(late)} do nothing yet; tuning.shared_pretraining=true searches the adversarial stage alone"
    ]


def _space_lines(plan: SearchPlan) -> list[str]:
    lines = []
    for space in plan.spaces.values():
        options = ", ".join(short(option) for option in space.options)
        when = "; ".join(f"{key} is {' or '.join(map(str, values))}" for key, values in space.when)
        lines.append(
            f"{space.key}: {space.kind} [{options}]"
            + (f", fixed {short(space.fixed)}" if space.has_fixed else "")
            + (f", when {when}" if when else "")
        )
    return lines


def _at_a_time(plan: SearchPlan) -> str:
    """The number of concurrent trials on this machine. The cluster is not known before the search starts."""
    cpus, gpus = os.cpu_count() or 1, torch.cuda.device_count()
    where = f"on this machine's {cpus} logical CPUs and {gpus} GPUs"
    try:
        return f"{trials_at_once(plan.base, cpus, gpus)} {where}"
    except cluster.ResourceError as error:
        return f"none {where}: {error}"


def _assumed(plan: SearchPlan) -> Assumed:
    begun = with_known_precision(plan, plan.base).training.precision
    if begun == plan.base.training.precision:
        return precision_here(plan.base)
    return precision_here(plan.base.changed({"training.precision": begun}))._replace(why="as the search began")


def _memory(plan: SearchPlan, assumed: Assumed) -> str:
    """The largest peak over all kinds of generator and critic in the search. Other keys have their base values."""
    generators, critics = (
        searched.options if (searched := plan.spaces.get(key)) is not None else (base,)
        for key, base in (("generator.kind", plan.base.generator.kind), ("critic.kind", plan.base.critic.kind))
    )
    found = []
    for generator, critic in product(generators, critics):
        values = {"generator.kind": generator, "critic.kind": critic, "training.precision": assumed.precision}
        named = f"generator {generator}, critic {critic}" if len(generators) > 1 else f"critic {critic}"
        try:
            experiment = plan.experiment(values)
            peak = max(estimated_peaks(experiment, experiment.micro_batch).values())
        except MemoryUnknownError as error:
            return f"unknown: {error}"
        found.append(f"{named} {peak / 2**30:.2f} GiB")
    return ", ".join(found) + " per worker"
