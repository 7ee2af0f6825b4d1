"""The effect of each critic on held-out volumes, and its cost: one shared L1 start, then WGAN-GP with each critic.

`none` makes as many updates of the generator from the same start on L1 alone. The recipe is `--config critics`.
Figures are over the whole held-out volumes of the splits validation and test. The last weights are compared, not the
best ones, so that neither split chooses anything. Results are kept in --home.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mrisr.config import Experiment, load_experiment
from mrisr.engine.schedule import updates_before

CONFIG = "critics"
KINDS = ("none", "full", "pointwise", "separable")
COLUMNS = {
    "psnr": "PSNR, dB", "ssim": "SSIM", "energy": "energy in the zeroed band", "correlation": "its correlation",
}  # fmt: skip
COSTS = {"seconds": "s / critic step", "peak": "peak, GiB", "parameters": "parameters"}


def restore(start: Experiment, weights: Path | None) -> Callable[..., Any] | None:
    """A function that super-resolves a volume with the weights of a file; None for the zero-filled input itself."""
    if weights is None:
        return None
    from safetensors.torch import load_file

    from mrisr.inference.whole_volume import InferenceOptions, superresolve_array
    from mrisr.models import build_generator

    generator = build_generator(start.generator.architecture)
    generator.load_state_dict(load_file(weights))
    return partial(superresolve_array, generator, options=InferenceOptions(precision="auto"))


def held_out(experiment: Experiment, weights: Path | None) -> dict[str, float]:
    """Means over the held-out subjects, foreground for PSNR and SSIM, of a generator or (None) of the input."""
    from mrisr.degradation import PROTOCOLS, degrade
    from mrisr.evaluation.subject import foreground_mask
    from mrisr.metrics import measure_regions
    from mrisr.metrics.zeroed_band import zeroed_band
    from voxelstore import VolumeStore

    store, protocol = VolumeStore.open(experiment.data.store), PROTOCOLS[experiment.validation.protocol]
    restored = restore(experiment, weights)
    rows = []
    for subject in [*store.subjects("validation"), *store.subjects("test")]:
        hr = store.read_normalised(subject)
        lr = degrade(hr, protocol)
        estimate = lr if restored is None else restored(lr)
        figures = measure_regions(hr, estimate, {"foreground": foreground_mask(store, subject)})["foreground"]
        rows.append({**figures, **zeroed_band(hr, estimate, protocol)._asdict()})
        print(f"  {subject}: " + ", ".join(f"{key} {rows[-1][key]:.4f}" for key in COLUMNS), flush=True)
    return {key: statistics.fmean(row[key] for row in rows) for key in COLUMNS}


def cost(experiment: Experiment) -> dict[str, float]:
    """Median seconds of a critic step alone in this process, estimated peak of a step in GiB, parameters."""
    import torch
    from step_loops import interleaved, patches

    from mrisr.engine.schedule import Phase
    from mrisr.engine.step import train_step
    from mrisr.models import build_critic
    from mrisr.training.build import initial_networks, step_config
    from mrisr.training.memory import estimated_peaks

    size, config = experiment.stream.patch_size, step_config(experiment)
    lr, hr = patches(config.batch_size, size, torch.device("cpu"))
    networks = initial_networks(experiment, None, torch.device("cpu"))
    step = interleaved({"": lambda index: train_step(networks, config, Phase.CRITIC, index, lr, hr)}, 5)[""]
    peaks = estimated_peaks(experiment, config.micro_batch)
    peak = max(peaks[phase] for phase in Phase) / 2**30
    parameters = sum(parameter.numel() for parameter in build_critic(experiment.critic.kind, size).parameters())
    return {
        "seconds": statistics.median(step),
        "peak": peak,
        "parameters": parameters,
    }


def once(file: Path, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The figures in a file, computed if it is not there."""
    if not file.exists():
        figures = compute()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(figures))
    found: dict[str, float] = json.loads(file.read_text())
    return found


def second_stage(experiment: Experiment, kind: str) -> list[str]:
    """What `kind` does after the L1 start: the rest of the schedule, or its updates of the generator on L1."""
    s = experiment.schedule
    if kind != "none":
        length = s.total_steps - s.pretrain_steps
        return [f"critic.kind={kind}", "schedule.pretrain_steps=0", f"schedule.total_steps={length}"]
    updates = updates_before(experiment.schedule, s.total_steps).generator
    rate = experiment.training.generator_lr
    steps = [f"schedule.total_steps={updates}", f"schedule.pretrain_steps={updates}"]
    return [*steps, "schedule.critic_warmup_steps=0", f"training.pretrain_lr={rate}"]


def compare(home: Path, data: Path, kinds: list[str], seeds: list[int], overrides: list[str]) -> None:
    """Convert, train and measure these critics and seeds unless done before; then print the table of all."""
    from safetensors.torch import load_file

    from mrisr import cluster
    from mrisr.data.conversion import convert_folder
    from mrisr.models.weights import write_weights
    from mrisr.training.checkpoints import LAST_WEIGHTS
    from mrisr.training.run import train

    whole = load_experiment(CONFIG, overrides)
    results, s = home / "results", whole.schedule
    cluster.connect()
    convert_folder(data, whole.data)
    begin = [*overrides, "name=start", f"schedule.total_steps={s.pretrain_steps}"]
    print(f"L1 start, {s.pretrain_steps} steps", flush=True)
    started = train(load_experiment(CONFIG, begin))
    # The end of the L1 stage, not its best weights: the adversarial stage of a run starts there.
    (home / "start").mkdir(exist_ok=True)
    start, _ = write_weights(home / "start", whole.generator.architecture, load_file(started.checkpoint / LAST_WEIGHTS))
    once(results / "input.json", lambda: held_out(whole, None))
    once(results / "start.json", lambda: held_out(whole, start))
    for kind in kinds:
        for seed in seeds:
            stage = load_experiment(CONFIG, [
                *overrides, f"name={kind}-{seed}", f"seed={seed}", "generator.ema_decay=null",
                f"generator.init_from={start}", *second_stage(whole, kind),
            ])  # fmt: skip

            def trained(experiment: Experiment = stage) -> dict[str, float]:
                print(f"{experiment.name}, {experiment.schedule.total_steps} steps", flush=True)
                return held_out(experiment, train(experiment).checkpoint / LAST_WEIGHTS)

            once(results / f"{kind}-{seed}.json", trained)
            if kind != "none":
                once(results / f"{kind}-cost.json", partial(cost, stage))
    print("\n" + "\n".join(table(results)))


def table(results: Path) -> list[str]:
    """Markdown of all figures in the folder: means over seeds, with their range in brackets if there are several."""
    lines = [
        "| | " + " | ".join([*COLUMNS.values(), *COSTS.values()]) + " |",
        "|---" * (1 + len(COLUMNS | COSTS)) + "|",
    ]
    for name in ("input", "start", *KINDS):
        files = sorted(results.glob(f"{name}-[0-9]*.json")) if name in KINDS else [results / f"{name}.json"]
        runs = [json.loads(file.read_text()) for file in files if file.exists()]
        if not runs:
            continue
        cells = []
        for key in COLUMNS:
            values = [run[key] for run in runs]
            digits = 2 if key == "psnr" else 4
            spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.{digits}f}{spread}")
        told = results / f"{name}-cost.json"
        costs = json.loads(told.read_text()) if told.exists() else None
        cells += [f"{costs['seconds']:.2f}", f"{costs['peak']:.2f}", f"{costs['parameters']:,}"] if costs else ["-"] * 3
        title = {"input": "zero-filled input", "start": "L1 start", "none": "no critic, L1 alone"}.get(name, name)
        if name in KINDS:
            title += f", {len(runs)} seed{'s' if len(runs) > 1 else ''}"
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=list(KINDS), help="critics to train now; default: all three")
    parser.add_argument("--data", type=Path, required=True, help="folder of NIfTI volumes, four or more")
    parser.add_argument("--home", type=Path, default=Path("critics"), help="everything that this makes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of the adversarial stage")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="override configuration keys")
    options = parser.parse_args()
    home = options.home.absolute()
    os.environ["MRISR_HOME"] = str(home)
    compare(home, options.data.absolute(), options.kinds, options.seeds, options.set)


if __name__ == "__main__":
    main()
