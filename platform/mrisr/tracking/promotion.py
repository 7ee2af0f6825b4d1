"""The champion of a registered model: the version with the alias `champion`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mrisr.metrics import METRICS
from mrisr.tracking.registry import (
    CHAMPION,
    FINGERPRINT,
    PROTOCOL,
    LoadedModel,
    ModelVersion,
    UnreadableModelError,
    champion,
    find,
    load,
)
from mrisr.tracking.runs import client, registry_lock

Evaluate = Callable[[LoadedModel], Mapping[str, float]]


@dataclass(frozen=True)
class Promotion:
    """What was decided. figure: of the candidate; champion_version and its figure: of the champion before."""

    promoted: bool
    reason: str
    figure: float
    champion_version: str | None = None
    champion_figure: float | None = None


def promote(name: str, version: str, uri: str, metric: str = "val_psnr", evaluate: Evaluate | None = None) -> Promotion:
    """Give the alias `champion` to a version if there is no champion, or if its figure beats the champion's.

    metric: the tag with the figure, `val_` and a name from METRICS. Figures compare only on the same validation
    protocol and subjects (tags `protocol`, `validation_fingerprint`). Where the champion's differ, `evaluate` measures
    the champion on the candidate's protocol and subjects and returns {metric: figure}; a champion that cannot be loaded
    stays. Equal is not better. Where the database is a local file, one process at a time decides. The decision and both
    figures become tags of the candidate (promotion, promotion_reason, ...).
    Raises ValueError for a candidate without the figure (or with nan), and for a champion that cannot be compared
    without `evaluate`.
    """
    with registry_lock(uri):
        candidate = find(f"models:/{name}/{version}", uri)
        decision = _decide(candidate, champion(name, uri), metric, evaluate, uri)
        tags = {
            "promotion": "promoted" if decision.promoted else "kept",
            "promotion_reason": decision.reason,
            "promotion_metric": metric,
            "promotion_figure": repr(decision.figure),
            "promotion_champion_version": str(decision.champion_version),
            "promotion_champion_figure": repr(decision.champion_figure),
        }
        store = client(uri)
        for key, value in tags.items():
            store.set_model_version_tag(name, candidate.version, key, value)
        if decision.promoted:
            store.set_registered_model_alias(name, CHAMPION, candidate.version)
        return decision


def _decide(
    candidate: ModelVersion, present: ModelVersion | None, metric: str, evaluate: Evaluate | None, uri: str
) -> Promotion:
    figure = candidate.figure(metric)
    if figure is None:
        raise ValueError(f"{candidate.uri} has no tag {metric!r} to compare by; it has {sorted(candidate.tags)}")
    if math.isnan(figure):
        raise ValueError(f"{candidate.uri}: its tag {metric!r} is nan; a diverged network is never the champion")
    if present is None:
        return Promotion(True, "there was no champion", figure)
    if present.version == candidate.version:
        return Promotion(False, "it is the champion already", figure, present.version, figure)
    try:
        old, how = _champion_figure(present, candidate, metric, evaluate, uri)
    except UnreadableModelError as error:
        reason = f"version {present.version}, the champion, cannot be measured here: {error}"
        return Promotion(False, reason, figure, present.version)
    # A champion whose figure is nan (of a diverged network) is beaten by any other.
    promoted = math.isnan(old) or METRICS[metric.removeprefix("val_")].improvement(figure, old) > 0
    verb = "beats" if promoted else "does not beat"
    reason = f"{metric} {figure:.6g} {verb} {old:.6g} of version {present.version} ({how})"
    return Promotion(promoted, reason, figure, present.version, old)


def _champion_figure(
    present: ModelVersion, candidate: ModelVersion, metric: str, evaluate: Evaluate | None, uri: str
) -> tuple[float, str]:
    known = present.figure(metric)
    differing = [key for key in (PROTOCOL, FINGERPRINT) if present.tags.get(key) != candidate.tags.get(key)]
    if known is not None and not differing:
        return known, "same protocol and subjects"
    if evaluate is None:
        what = f"has no tag {metric!r}" if known is None else f"differs in {' and '.join(differing)}"
        raise ValueError(
            f"champion {present.uri} {what}, so the figures do not compare: pass `evaluate` to measure it anew"
        )
    return float(evaluate(load(present.uri, uri))[metric]), "measured anew"
