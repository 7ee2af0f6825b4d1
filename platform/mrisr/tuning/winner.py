"""`mrisr tune`: run the search, report it, publish the winner, and evaluate it once on the test split."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from mrisr.config import ConfigError
from mrisr.engine.progress import read_progress
from mrisr.evaluation.cluster_tasks import evaluate_on_cluster
from mrisr.evaluation.subject import Evaluation
from mrisr.models.weights import read_trained_on, trained_generator
from mrisr.tracking import runs as tracking
from mrisr.tracking.redaction import mask_secrets
from mrisr.training.checkpoints import BEST_WEIGHTS
from mrisr.training.publishing import Published, publish
from mrisr.training.run import Host, TrainedRun, outcome, train
from mrisr.training.run_folder import RunFolder
from mrisr.tuning.plan import plan_search
from mrisr.tuning.report import cost_lines, plots, trials_table, winner_yaml, write_csv
from mrisr.tuning.search import Search, search
from mrisr.tuning.summary import TrialSummary
from mrisr.tuning.trial import searched_experiment, trial_experiment, with_known_precision


def tune(config: Path | str | None, overrides: list[str]) -> None:
    plan = plan_search(config, overrides)
    console = Console(highlight=False)
    with search(plan, console) as found:
        winner = _report(found, console)
        run = _retrained(found, winner) if plan.base.tuning.winner == "retrain" else _as_it_is(found, winner)
        tags = {"search_run_id": found.parent_run_id, "search": plan.folder.name, "search_trial": winner.run}
        published, *others = publish(run, tags)
        for one in (published, *others):
            console.print("\n".join(one.lines()), markup=False, soft_wrap=True)
        tracking.RunLogger(found.uri, found.parent_run_id).tags({"winner.model": published.model_uri})
        _evaluate_once(found, run, published, console)
    uri = mask_secrets(found.uri)
    console.print(f"search run {found.parent_run_id} at {uri}; study {plan.folder}", markup=False, soft_wrap=True)


def _report(found: Search, console: Console) -> TrialSummary:
    plan, summary = found.plan, found.summary
    logger = tracking.RunLogger(found.uri, found.parent_run_id)
    logger.artifact(write_csv(plan, summary, plan.folder / "trials.csv"))
    for name, plot in plots(plan, summary):
        file = plan.folder / "plots" / f"{name}.html"
        file.parent.mkdir(exist_ok=True)
        plot.write_html(file)
        logger.artifact(file, "plots")
    console.print(trials_table(plan, summary, console))
    if not summary.best:
        raise ValueError(f"no trial of {plan.folder.name} reached a validation; see the reasons in the table")
    if len(summary.best) > 1:
        front, first = ", ".join(str(trial.number) for trial in summary.best), plan.base.tuning.metrics[0].upper()
        console.print(f"Pareto front: trials {front}; the first, which is best by {first}, is published")
    winner = summary.best[0]
    text, file = winner_yaml(plan, winner), plan.folder / "winner.yaml"
    file.write_text(text)
    logger.artifact(file)
    for line in (f"\n{text}", f"train it: mrisr train --config {file}", *cost_lines(plan, summary)):
        console.print(line, markup=False, soft_wrap=True)
    figures = {"search/steps": float(summary.steps)} | {f"search/best_{k}": v for k, v in winner.figures.items()}
    # The number of trials is the step, so that an extended search adds a point to each curve.
    logger.metrics(len(summary.trials), figures)
    logger.replace_tags("best.", {key: str(value) for key, value in winner.values.items()} | {"trial": winner.run})
    return winner


def _evaluate_once(found: Search, run: TrainedRun, published: Published, console: Console) -> None:
    """Evaluate the winner on the test split, unless the search's folder holds an earlier evaluation."""
    csv = found.plan.folder / f"test-{published.name}-{published.version}.csv"
    if csv.exists():
        console.print(f"evaluated on the test split before: {csv}", markup=False, soft_wrap=True)
        return
    experiment = run.experiment
    generator = trained_generator(experiment.generator.architecture, run.best.state)
    evaluation = Evaluation.of(experiment, "test")
    seen = read_trained_on(run.checkpoint / BEST_WEIGHTS)
    try:
        result = evaluate_on_cluster(evaluation, generator, console, seen)
    except ConfigError as error:  # its initial weights were trained on test subjects; the search is still complete
        console.print(f"not evaluated on the test split: {error}", markup=False, soft_wrap=True)
        return
    console.print(result.table())
    with TemporaryDirectory(dir=found.plan.folder) as folder:
        fresh = Path(folder) / csv.name
        result.write_csv(fresh)
        # For the search, the step is the model's version: a later winner may have fewer steps.
        for run_id, step in ((found.parent_run_id, int(published.version)), (run.run_id, run.step)):
            logger = tracking.RunLogger(found.uri, run_id)
            logger.metrics(step, {f"test/{key}": value for key, value in result.as_metrics().items()})
            logger.artifact(fresh)
        fresh.replace(csv)  # last, since the file says that nothing is left to do


def _as_it_is(found: Search, winner: TrialSummary) -> TrainedRun:
    assert winner.mlflow_run_id is not None
    experiment = trial_experiment(found.plan, winner.run, winner.values)
    return outcome(experiment, winner.mlflow_run_id, found.uri, _scored_checkpoint(winner))


def _scored_checkpoint(winner: TrialSummary) -> Path:
    """The newest checkpoint with the weights of the trial's score. A stopped trial may have saved a later one."""
    folders, scored = RunFolder(winner.folder).checkpoints(), winner.results[-1]["best_step"]
    fitting = [folder for folder in folders if read_progress(folder)["best"]["step"] == scored]
    return (fitting or folders)[-1]


def _retrained(found: Search, winner: TrialSummary) -> TrainedRun:
    """A new run of the winner's configuration with another seed, so that the result does not depend on one seed."""
    plan = found.plan
    experiment = with_known_precision(plan, searched_experiment(plan, winner.values), winner.run)
    changes = {"name": f"winner-{winner.run}", "output": plan.folder, "seed": plan.base.seed + 1}
    return train(experiment.changed(changes), Host(parent_run_id=found.parent_run_id, dataset=found.dataset))
