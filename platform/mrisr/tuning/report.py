"""The report of a search: a table of its trials, its cost, the winner's configuration, and Optuna's plots."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from mrisr.config.loading import dump_experiment
from mrisr.metrics import METRICS
from mrisr.tuning.plan import SearchPlan, short
from mrisr.tuning.study import create_study
from mrisr.tuning.summary import SearchSummary, TrialSummary
from mrisr.tuning.trial import score_settings, with_known_precision

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def trials_table(plan: SearchPlan, summary: SearchSummary, console: Console) -> Table:
    """The trials, best first, failed ones last. On a narrow console all keys share one column."""
    wide = _table(plan, summary, one_column=False)
    fits = Measurement.get(console, console.options.update(max_width=10_000), wide).maximum <= console.width
    return wide if fits else _table(plan, summary, one_column=True)


def _table(plan: SearchPlan, summary: SearchSummary, *, one_column: bool) -> Table:
    metrics = plan.base.tuning.metrics
    names = {key: key.split(".")[-1] for key in plan.spaces}
    table = Table(title=f"{plan.folder.name}: validation, {scale(plan)}")
    for name in ("trial", *(metric.upper() for metric in metrics), "steps"):
        table.add_column(name, justify="right")
    table.add_column("end", overflow="fold")
    for name in ["values"] if one_column else names.values():
        table.add_column(name, overflow="fold", justify="left" if one_column else "right")
    winners = {trial.number for trial in summary.best}
    for trial in best_first(plan, summary):
        values = [short(trial.values.get(key)) for key in names]
        if one_column:
            named = zip(names.values(), values, strict=True)
            values = [", ".join(f"{name}={value}" for name, value in named if value)]
        table.add_row(
            f"{trial.number}{' *' if trial.number in winners else ''}",
            *(f"{trial.figures[m]:.4f}" if trial.figures else "" for m in metrics),
            f"{trial.step:,}",
            trial.state if trial.failure is None else f"failed: {trial.failure[:80]}",
            *values,
            style="bold" if trial.number in winners else None,
        )
    return table


def scale(plan: SearchPlan) -> str:
    protocols = plan.base.tuning.protocols or (plan.base.validation.protocol,)
    return f"{'mean over ' if len(protocols) > 1 else ''}{', '.join(protocols)}"


def best_first(plan: SearchPlan, summary: SearchSummary) -> list[TrialSummary]:
    """The trials, best first. Failed trials and those without a figure come last."""
    metric = METRICS[plan.base.tuning.metrics[0]]

    def rank(trial: TrialSummary) -> tuple[bool, bool, float, int]:
        behind = metric.improvement(0.0, trial.figures.get(metric.name, 0.0))
        return trial.state == "failed", not trial.figures, behind, trial.number

    return sorted(summary.trials, key=rank)


def cost_lines(plan: SearchPlan, summary: SearchSummary) -> list[str]:
    """How the trials ended, and the number of steps, compared with no early stopping and with the full grid."""
    steps, unit = summary.steps, plan.trial_steps
    ended = [
        trial for trial in summary.trials if trial.state != "failed"
    ]  # early stopping saved nothing for failed trials
    useful, whole, grid = sum(trial.step for trial in ended), len(ended) * unit, plan.grid_size * unit
    points = plan.base.tuning.grid_points
    shared = plan.base.schedule.pretrain_steps if plan.base.tuning.shared_pretraining else 0
    ends = Counter(trial.state for trial in summary.trials)
    failed = f", {steps - useful:,} of them by failed trials; the other" if len(ended) < len(summary.trials) else ";"
    lines = [
        f"{len(summary.trials)} trials: {', '.join(f'{count} {state}' for state, count in ends.items())}",
        f"cost: {steps:,} steps run{failed} {len(ended)} trials to their end would be {whole:,} "
        f"({whole / max(1, useful):.1f}x), a grid of {points} values per range {grid:,} ({grid / max(1, steps):,.0f}x)",
    ]
    if shared:
        lines.append(f"      and {shared:,} L1 steps once for all trials, instead of {shared * len(summary.trials):,}")
    if plan.base.tuning.winner == "retrain":
        lines.append(f"      and {plan.trial_steps:,} steps to train the winner anew")
    return lines


def winner_yaml(plan: SearchPlan, trial: TrialSummary) -> str:
    experiment = with_known_precision(plan, plan.experiment(trial.values), trial.run)
    experiment = experiment.changed({"name": f"{plan.base.name}-winner", "tuning": {}, **score_settings(plan)})
    figures = ", ".join(f"{metric} {value:.4f}" for metric, value in trial.figures.items())
    head = f"# Winner of {plan.folder.name}: trial {trial.number}, {figures} on validation under {scale(plan)}.\n"
    return head + dump_experiment(experiment, without=("tuning",))


def write_csv(plan: SearchPlan, summary: SearchSummary, path: Path) -> Path:
    metrics = plan.base.tuning.metrics
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", "steps", *metrics, *plan.spaces, "failure"])
        for t in summary.trials:
            figures, values = [t.figures.get(m) for m in metrics], [t.values.get(key) for key in plan.spaces]
            writer.writerow([t.number, t.state, t.step, *figures, *values, t.failure])
    return path


def study_of_results(plan: SearchPlan, summary: SearchSummary) -> optuna.Study:
    """A study of complete trials, with the best figures of every trial that has figures.

    Optuna's plots of importance and slices ignore pruned trials, which are most trials of a search with ASHA.
    """
    metrics = plan.base.tuning.metrics
    study = create_study(metrics)
    study.add_trials(
        optuna.trial.create_trial(
            state=TrialState.COMPLETE, values=[t.figures[m] for m in metrics], params=t.frozen.params,
            distributions=t.frozen.distributions, user_attrs={"trial": t.number, "steps": t.step},
        )
        for t in summary.trials if t.figures
    )  # fmt: skip
    return study


def plots(plan: SearchPlan, summary: SearchSummary) -> Iterator[tuple[str, Figure]]:
    """Optuna's plots by name. Importance (fANOVA) is left out for few trials or equal figures."""
    import optuna.visualization as show

    study, metrics = study_of_results(plan, summary), plan.base.tuning.metrics
    done = study.get_trials(deepcopy=False)
    if len(done) < 2:
        return
    for place, metric in enumerate(metrics):
        kwargs: dict[str, Any] = {"target_name": metric}
        suffix = ""
        if len(metrics) > 1:
            kwargs["target"] = lambda trial, place=place: trial.values[place]
            suffix = f"-{metric}"
        yield f"history{suffix}", show.plot_optimization_history(study, **kwargs)
        yield f"parallel-coordinates{suffix}", show.plot_parallel_coordinate(study, **kwargs)
        yield f"slice{suffix}", show.plot_slice(study, **kwargs)
        if len({trial.values[place] for trial in done}) > 1 and len(done) >= 4:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=plan.base.seed)
            try:
                plot = show.plot_param_importances(study, evaluator=evaluator, **kwargs)
            except (ValueError, RuntimeError) as error:  # figures beyond float32; trees without any split
                print(f"no plot of importance: {error}")
                continue
            yield f"importance{suffix}", plot
    if len(metrics) > 1:
        yield "pareto-front", show.plot_pareto_front(study, target_names=list(metrics))
