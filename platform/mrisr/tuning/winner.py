"""The verb: search, show, publish the winner, and evaluate it on the test split once."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from mrisr.engine.checkpoint import read_progress
from mrisr.evaluation.cluster_tasks import evaluate_on_cluster
from mrisr.evaluation.subject import Evaluation
from mrisr.models.weights import build_generator
from mrisr.tracking import runs as tracking
from mrisr.tracking.redaction import mask_secrets
from mrisr.training.build import generator_config
from mrisr.training.publishing import publish
from mrisr.training.run import Host, TrainedRun, outcome, train
from mrisr.training.run_folder import RunFolder
from mrisr.tuning.outcome import TrialOutcome
from mrisr.tuning.plan import SearchPlan, plan_search
from mrisr.tuning.report import cost_lines, figures, trials_table, winner_yaml, write_csv
from mrisr.tuning.search import Search, search
from mrisr.tuning.trial import PRETRAINED, TrialSetting, configured, in_begun_precision, trial_experiment


def tune(config: Path | None, overrides: list[str]) -> None:
    """Search, or go on with a search; then print the table, the winner, the cost, and register the winner."""
    plan = plan_search(config, overrides)
    console = Console(highlight=False)
    with search(plan, console) as found:
        best = _show(found, console)
        _publish(found, best, console)
    uri = mask_secrets(found.place.uri)
    console.print(f"search run {found.parent_run_id} at {uri}; study {plan.folder}", markup=False, soft_wrap=True)


def _show(found: Search, console: Console) -> TrialOutcome:
    """Print the table, the winner and the cost, and keep them with the search's run. Returns the winner."""
    plan, outcome = found.plan, found.outcome
    logger = tracking.RunLogger(found.place.uri, found.parent_run_id)
    logger.artifact(write_csv(plan, outcome, plan.folder / "trials.csv"))
    for name, picture in figures(plan, outcome):
        file = plan.folder / "plots" / f"{name}.html"
        file.parent.mkdir(exist_ok=True)
        picture.write_html(file)
        logger.artifact(file, "plots")
    console.print(trials_table(plan, outcome, console))
    if not outcome.best:
        raise ValueError(f"no trial of {plan.folder.name} came to a validation; see the reasons in the table")
    if len(outcome.best) > 1:
        front = ", ".join(str(trial.number) for trial in outcome.best)
        console.print(f"Pareto front: trials {front}; the first, which is best by {_first_metric(plan)}, is published")
    best = outcome.best[0]
    text = winner_yaml(plan, best)
    file = plan.folder / "winner.yaml"
    file.write_text(text)
    logger.artifact(file)
    console.print(f"\n{text}", markup=False, soft_wrap=True)
    console.print(f"train it: mrisr train --config {file}", markup=False, soft_wrap=True)
    for line in cost_lines(plan, outcome):
        console.print(line, markup=False, soft_wrap=True)
    measured = {"search/steps": float(outcome.steps)} | {f"search/best_{k}": v for k, v in best.figures.items()}
    # By the number of trials: a search that is extended tells more.
    logger.metrics(len(outcome.trials), measured)
    logger.replace_tags("best.", {key: str(value) for key, value in best.values.items()} | {"trial": best.run})
    return best


def _first_metric(plan: SearchPlan) -> str:
    return plan.base.tuning.metrics[0].upper()


def _publish(found: Search, best: TrialOutcome, console: Console) -> None:
    plan = found.plan
    run = _retrained(found, best) if plan.base.tuning.winner == "retrain" else _as_is(found, best)
    published = publish(
        run, {"search_run_id": found.parent_run_id, "search": plan.folder.name, "search_trial": best.run}
    )
    console.print("\n".join(published.lines()), markup=False, soft_wrap=True)
    parent = tracking.RunLogger(found.place.uri, found.parent_run_id)
    parent.tags({"winner.model": published.model_uri})
    csv = plan.folder / f"test-{published.name}-{published.version}.csv"
    if csv.exists():
        console.print(f"evaluated on the test split before: {csv}", markup=False, soft_wrap=True)
        return
    experiment = run.experiment
    generator = build_generator(generator_config(experiment), run.state)
    result = evaluate_on_cluster(Evaluation.of(experiment, "test"), generator, console)
    console.print(result.table())
    # For the search by the model's version: a later winner's figures follow, whatever its number of steps.
    own = tracking.RunLogger(found.place.uri, run.run_id)
    with TemporaryDirectory(dir=plan.folder) as folder:
        fresh = Path(folder) / csv.name
        result.write_csv(fresh)
        for logger, step in ((parent, int(published.version)), (own, run.step)):
            logger.metrics(step, {f"test/{key}": value for key, value in result.as_metrics().items()})
            logger.artifact(fresh)
        # Last: where it lies, nothing of the evaluation is missing elsewhere.
        fresh.replace(csv)


def _setting(found: Search) -> TrialSetting:
    initial = found.plan.folder / PRETRAINED if found.plan.base.tuning.shared_pretraining else None
    return TrialSetting(found.plan, 1, found.parent_run_id, None if initial is None else str(initial))


def _as_is(found: Search, best: TrialOutcome) -> TrainedRun:
    experiment = trial_experiment(_setting(found), best.run, best.values)
    assert best.mlflow_run_id is not None
    return outcome(experiment, best.mlflow_run_id, found.place.uri, _scored_checkpoint(best))


def _scored_checkpoint(best: TrialOutcome) -> Path:
    """The newest checkpoint that holds the weights of the trial's score.

    A trial that was stopped may have written one more before it died, with weights that nobody has scored.
    """
    folders = RunFolder(best.folder).checkpoints()
    scored = best.results[-1]["best_step"]
    for folder in reversed(folders):
        if read_progress(folder)["best"]["step"] == scored:
            return folder
    return folders[-1]


def _retrained(found: Search, best: TrialOutcome) -> TrainedRun:
    """A new run of the winner's configuration, with another seed: what it shows is not the luck of one trial.

    It starts where the trials started, so that its best weights are of the stage that was searched.
    """
    plan = found.plan
    experiment = in_begun_precision(plan, configured(_setting(found), best.values), best.run).changed(
        {"name": f"winner-{best.run}", "output": plan.folder, "seed": plan.base.seed + 1}
    )
    return train(experiment, Host(parent_run_id=found.parent_run_id))
