"""Which subject belongs to which split: by subject, seeded, and for good."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping


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
                    f"splits.{name}: {share!r} is no whole count, and as fractions {dict(splits)} sum to "
                    f"{total:g}; let fractions sum to 1 at most, or give whole counts"
                )


def assign_splits(
    assigned: Mapping[str, str | None],
    subjects: Iterable[str],
    splits: Mapping[str, float | int],
    seed: int,
) -> dict[str, str | None]:
    """The split of every subject; None for those that no split takes.

    assigned: what is already so, and stays. splits: fractions of all subjects, or counts where they sum to more
    than 1 (so `{train: 1}` is everything). The others are taken in the order of SHA-256(seed, subject) and go, one
    by one, where the deficit (the split's quota minus what it holds) is greatest; the earlier-named split wins a
    tie. Once there are as many subjects as splits with a quota, the empty ones come first, so that a small cohort
    has something in each. Subjects beyond the sum of the counts, or the share that fractions below 1 leave over,
    get None: silently growing a split would change the experiment that was asked for. Raises ValueError.
    """
    check_splits(splits)
    result: dict[str, str | None] = {s: assigned.get(s) for s in sorted(subjects)}
    scale = 1 if _are_counts(splits) else len(result)
    quota: dict[str | None, float] = {name: share * scale for name, share in splits.items() if share > 0}
    wanted = list(quota)
    quota[None] = math.inf if _are_counts(splits) else len(result) - math.fsum(quota.values())
    held: dict[str | None, int] = {
        name: sum(split == name for split in result.values()) if name is not None else 0 for name in quota
    }
    for subject in sorted((s for s, split in result.items() if split is None), key=lambda s: _rank(seed, s)):
        candidates = [name for name in wanted if held[name] == 0] if len(result) >= len(wanted) else []
        if not candidates and _are_counts(splits):
            candidates = [name for name in wanted if held[name] < quota[name]] or [None]
        # 1e-9: a remainder of rounding does not count as a share that was left over.
        chosen = max(candidates or quota, key=lambda name: quota[name] - held[name] - 1e-9 * (name is None))
        result[subject] = chosen
        held[chosen] += 1
    return result


def _are_counts(splits: Mapping[str, float | int]) -> bool:
    return math.fsum(splits.values()) > 1 + 1e-6


def _rank(seed: int, subject: str) -> str:
    return hashlib.sha256(f"{seed}:{subject}".encode()).hexdigest()
