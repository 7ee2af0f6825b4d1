"""Which subject belongs to which split: by subject, seeded, and for good."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping


def check_splits(splits: Mapping[str, float | int]) -> None:
    """Raise ValueError unless `splits` are all counts (integers from 0) or fractions that sum to 1."""
    if not splits:
        raise ValueError("splits: empty; name at least one, such as {train: 0.8, validation: 0.1, test: 0.1}")
    for name, share in splits.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not share >= 0:
            raise ValueError(f"splits.{name}: {share!r} is neither a count from 0 nor a fraction from 0 to 1")
    if _are_counts(splits):
        return
    total = math.fsum(splits.values())
    if abs(total - 1.0) > 1e-6:
        raise ValueError(
            f"splits: the fractions {dict(splits)} sum to {total:g}; let them sum to 1, "
            "or give counts of subjects, all of them integers"
        )


def assign_splits(
    assigned: Mapping[str, str | None],
    subjects: Iterable[str],
    splits: Mapping[str, float | int],
    seed: int,
) -> dict[str, str | None]:
    """The split of every subject.

    assigned: what is already so, and stays. splits: fractions that sum to 1, or counts (all integers; a lone
    `{train: 1}` is a count). The others are taken in the order of SHA-256(seed, subject) and go, one by one,
    where the deficit (the split's quota minus what it holds) is greatest; the earlier-named split wins a tie.
    Once there are as many subjects as there are splits with a quota, those that are empty come first, so that
    a small cohort has something in each. With counts, subjects beyond their sum get None: silently growing a
    split would change the experiment that was asked for. Raises ValueError.
    """
    check_splits(splits)
    result: dict[str, str | None] = {s: assigned.get(s) for s in sorted(subjects)}
    waiting = sorted((s for s, split in result.items() if split is None), key=lambda s: _rank(seed, s))
    held = {name: sum(split == name for split in result.values()) for name in splits}
    scale = 1 if _are_counts(splits) else len(result)
    quota = {name: share * scale for name, share in splits.items()}
    wanted = [name for name, share in splits.items() if share > 0]
    for subject in waiting:
        empty = [name for name in wanted if held[name] == 0]
        candidates = empty if empty and len(result) >= len(wanted) else wanted
        if _are_counts(splits):
            candidates = [name for name in candidates if held[name] < quota[name]]
        if not candidates:
            break
        chosen = max(candidates, key=lambda name: quota[name] - held[name])  # the first of equals
        result[subject] = chosen
        held[chosen] += 1
    return result


def _are_counts(splits: Mapping[str, float | int]) -> bool:
    return all(isinstance(share, int) for share in splits.values())


def _rank(seed: int, subject: str) -> str:
    return hashlib.sha256(f"{seed}:{subject}".encode()).hexdigest()
