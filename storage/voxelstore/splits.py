"""Assigns subjects to splits: by person, seeded, and never changed later."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class SplitRule(NamedTuple):
    """The rule that split a store: fraction or count by name, whose order decides ties, and the seed of the draw."""

    splits: dict[str, float]
    seed: int

    def __str__(self) -> str:
        shares = ", ".join(f"{name}: {share:g}" for name, share in self.splits.items())
        return f"data.splits='{{{shares}}}' data.split_seed={self.seed}"

    def to_json(self) -> dict[str, Any]:
        """The rule as JSON types. Splits are pairs, because the keys of JSON objects are sorted on writing."""
        return {"shares": [[name, share] for name, share in self.splits.items()], "seed": self.seed}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SplitRule:
        return cls(dict(value["shares"]), value["seed"])


def check_splits(splits: Mapping[str, float | int]) -> None:
    """Raise ValueError unless `splits` are fractions that sum to at most 1, or whole counts that sum to more."""
    if not splits:
        raise ValueError("splits: empty; name at least one, such as {train: 0.8, validation: 0.1, test: 0.1}")
    for name, share in splits.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < math.inf:
            raise ValueError(f"splits.{name}: {share!r} is neither a count from 0 nor a fraction from 0 to 1")
    total = math.fsum(splits.values())
    if total == 0:
        raise ValueError(f"splits: {dict(splits)} gives nothing to any split; raise at least one")
    if _are_counts(splits):
        for name, share in splits.items():
            if share != int(share):
                raise ValueError(
                    f"splits.{name}: {share!r} is not a whole count, and as fractions {dict(splits)} sum to "
                    f"{total:g}; let fractions sum to 1 at most, or give whole counts"
                )


def assign_splits(
    assigned: Mapping[str, str | None],
    subjects: Iterable[str],
    splits: Mapping[str, float | int],
    seed: int,
    groups: Mapping[str, str] | None = None,
) -> dict[str, str | None]:
    """The split of every subject; None for people beyond the counts, or beyond fractions below 1. Raises ValueError.

    assigned: the present splits of subjects, which do not change. groups: subject -> person, by default the subject
    itself; a person's volumes share a split, and people are counted. splits: fractions, or counts if they sum to more
    than 1. New people are ordered by SHA-256(seed, the person's first subject). Each goes to the split with the largest
    deficit, in a tie to the one named first; empty splits come first if there are enough people for all.
    """
    check_splits(splits)
    people: dict[str, list[str]] = {}
    for subject in sorted(subjects):
        people.setdefault((groups or {}).get(subject, subject), []).append(subject)
    placed = {
        person: next((assigned[s] for s in volumes if assigned.get(s) is not None), None)
        for person, volumes in people.items()
    }
    waiting = [person for person, split in placed.items() if split is None]
    waiting.sort(key=lambda person: _rank(seed, people[person][0]))
    placed |= _place(waiting, [split for split in placed.values() if split is not None], splits)
    return {s: assigned.get(s) or placed[person] for person, volumes in people.items() for s in volumes}


def _place(waiting: list[str], taken: list[str], splits: Mapping[str, float | int]) -> dict[str, str | None]:
    """The split of each person in `waiting`, in that order. taken: the splits of people that already have one."""
    result: dict[str, str | None] = {}
    total = len(waiting) + len(taken)
    scale = 1 if _are_counts(splits) else total
    quota: dict[str | None, float] = {name: share * scale for name, share in splits.items() if share > 0}
    wanted = list(quota)
    quota[None] = math.inf if _are_counts(splits) else total - math.fsum(quota.values())
    held: dict[str | None, int] = {name: taken.count(name) if name is not None else 0 for name in quota}
    for person in waiting:
        candidates = [name for name in wanted if held[name] == 0] if total >= len(wanted) else []
        if not candidates and _are_counts(splits):
            candidates = [name for name in wanted if held[name] < quota[name]] or [None]
        # 1e-9: a rounding error of the quotas must not leave a person without a split.
        chosen = max(candidates or quota, key=lambda name: quota[name] - held[name] - 1e-9 * (name is None))
        result[person] = chosen
        held[chosen] += 1
    return result


def _are_counts(splits: Mapping[str, float | int]) -> bool:
    return math.fsum(splits.values()) > 1 + 1e-6


def _rank(seed: int, subject: str) -> str:
    return hashlib.sha256(f"{seed}:{subject}".encode()).hexdigest()
