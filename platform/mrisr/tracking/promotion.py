"""Champions of a registered model, one per protocol: see `registry.champion_alias`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mrisr.metrics import METRICS
from mrisr.tracking.registry import (
    FINGERPRINT,
    PROTOCOL,
    LoadedModel,
    ModelVersion,
    champion,
    champion_alias,
    find,
    load,
)
from mrisr.tracking.runs import client, registry_lock

# Measures a version on the candidate's protocol and subjects. Raises ValueError where that is not possible.
Evaluate = Callable[[LoadedModel], Mapping[str, float]]
SEEN = "validation_trained_on"  # tag: how many of the validation subjects the version was trained on


@dataclass(frozen=True)
class Promotion:
    """A decision. figure: of the candidate; champion_version and champion_figure: of the champion before."""

    promoted: bool
    reason: str
    figure: float
    alias: str
    champion_version: str | None = None
    champion_figure: float | None = None


def promote(name: str, version: str, uri: str, metric: str = "val_psnr", evaluate: Evaluate | None = None) -> Promotion:
    """Make a version the champion of its protocol if its figure beats its baseline's and the present champion's.

    metric: the tag with the figure, `val_` and a name from METRICS; the baseline's tag is `baseline_`... Figures
    compare only on the same subjects (tag `validation_fingerprint`). If the champion's subjects differ, `evaluate`
    measures it again; a champion that cannot be measured stays. Equal is not better. A version trained on validation
    subjects is never promoted. For a local database, one process at a time decides. The decision and the figures become
    tags of the candidate (promotion, promotion_reason, ...). Raises ValueError for a candidate without the figure (or
    with nan), and if `evaluate` is needed but not given.
    """
    with registry_lock(uri):
        candidate = find(f"models:/{name}/{version}", uri)
        alias = champion_alias(name, candidate.tags.get(PROTOCOL), uri)
        decision = _decide(candidate, alias, metric, evaluate, uri)
        tags = {
            "promotion": "promoted" if decision.promoted else "kept",
            "promotion_reason": decision.reason,
            "promotion_metric": metric,
            "promotion_alias": alias,
            "promotion_figure": repr(decision.figure),
            "promotion_champion_version": str(decision.champion_version),
            "promotion_champion_figure": repr(decision.champion_figure),
        }
        store = client(uri)
        for key, value in tags.items():
            store.set_model_version_tag(name, candidate.version, key, value)
        if decision.promoted:
            store.set_registered_model_alias(name, alias, candidate.version)
        return decision


def _decide(candidate: ModelVersion, alias: str, metric: str, evaluate: Evaluate | None, uri: str) -> Promotion:
    figure = candidate.figure(metric)
    if figure is None:
        raise ValueError(f"{candidate.uri} has no tag {metric!r} to compare by; it has {sorted(candidate.tags)}")
    if math.isnan(figure):
        raise ValueError(f"{candidate.uri}: its tag {metric!r} is nan; a diverged network is never the champion")
    present = champion(candidate.name, uri, alias)
    if present is not None and present.version == candidate.version:
        return Promotion(False, "it is the champion already", figure, alias, present.version, figure)
    before = None if present is None else present.version
    if int(candidate.tags.get(SEEN, "0")):
        reason = f"it was trained on {candidate.tags[SEEN]} of the validation subjects"
        return Promotion(False, reason, figure, alias, before)
    measured = METRICS[metric.removeprefix("val_")]
    floor = _floor(candidate, f"baseline_{measured.name}", evaluate, uri)
    if not measured.beats(figure, floor):
        reason = f"{metric} {figure:.6g} does not beat {floor:.6g} of the gain-corrected input"
        return Promotion(False, reason, figure, alias, before)
    if present is None:
        return Promotion(True, "there was no champion", figure, alias)
    old, how = present.figure(metric), "same protocol and subjects"
    differing = [key for key in (PROTOCOL, FINGERPRINT) if present.tags.get(key) != candidate.tags.get(key)]
    if old is None or differing:
        if evaluate is None:
            what = f"has no tag {metric!r}" if old is None else f"differs in {' and '.join(differing)}"
            raise ValueError(
                f"champion {present.uri} {what}, so the figures do not compare: pass `evaluate` to measure it anew"
            )
        try:
            old, how = float(evaluate(load(present.uri, uri))[metric]), "measured anew"
        except ValueError as error:  # damaged, out of reach, diverged, or trained on these subjects
            reason = (
                f"version {present.version}, the champion, cannot be measured here: "
                f"{str(error).strip().splitlines()[-1]}; to replace it, set the alias {alias!r} by hand"
            )
            return Promotion(False, reason, figure, alias, present.version)
    # Any figure beats nan, the figure of a diverged network.
    promoted = math.isnan(old) or measured.improvement(figure, old) > 0
    verb = "beats" if promoted else "does not beat"
    reason = f"{metric} {figure:.6g} {verb} {old:.6g} of version {present.version} ({how})"
    return Promotion(promoted, reason, figure, alias, present.version, old)


def _floor(candidate: ModelVersion, tag: str, evaluate: Evaluate | None, uri: str) -> float:
    """The figure of the candidate's gain-corrected input, measured if an older program registered the candidate."""
    floor = candidate.figure(tag)
    if floor is not None:
        return floor
    if evaluate is None:
        raise ValueError(f"{candidate.uri} has no tag {tag!r}: pass `evaluate` to measure its input")
    return float(evaluate(load(candidate.uri, uri))[tag])
