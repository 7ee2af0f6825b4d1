"""Splits are by person, seeded, and for good."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelstore.splits import assign_splits

REPORT = {"train": 572, "validation": 81, "evaluation": 81, "test": 10}


def names(count: int, start: int = 0) -> list[str]:
    return [f"sub-{i:04d}" for i in range(start, start + count)]


def sizes(result: dict[str, str | None]) -> dict[str | None, int]:
    return dict(Counter(result.values()))


def test_the_reports_split_of_744_is_one_line() -> None:
    assert sizes(assign_splits({}, names(744), REPORT, 0)) == REPORT


@pytest.mark.parametrize(
    ("count", "splits", "expected"),
    [
        (4, {"train": 2, "validation": 1, "test": 1}, {"train": 2, "validation": 1, "test": 1}),
        (4, {"train": 0.5, "validation": 0.25, "test": 0.25}, {"train": 2, "validation": 1, "test": 1}),
        (3, {"train": 0.8, "validation": 0.1, "test": 0.1}, {"train": 1, "validation": 1, "test": 1}),
        (2, {"train": 0.8, "validation": 0.1, "test": 0.1}, {"train": 2}),
        (10, REPORT, {"train": 7, "validation": 1, "evaluation": 1, "test": 1}),
        (6, {"train": 2.0, "test": 1.0}, {"train": 2, "test": 1, None: 3}),
        (5, {"train": 1}, {"train": 5}),
        (10, {"train": 0.5, "test": 0.2}, {"train": 5, "test": 2, None: 3}),
        (10, {"train": 1.0, "test": 0}, {"train": 10}),
    ],
)
def test_small_cohorts_and_leftovers(count: int, splits: dict, expected: dict) -> None:
    assert sizes(assign_splits({}, names(count), splits, 0)) == expected


@settings(max_examples=40)
@given(
    weights=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    batches=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_nobody_moves_when_subjects_are_added(weights: list[int], batches: list[int], seed: int) -> None:
    splits = {f"split{i}": weight / sum(weights) for i, weight in enumerate(weights)}
    assigned: dict[str, str | None] = {}
    for batch in batches:
        before = dict(assigned)
        assigned = assign_splits(assigned, names(len(assigned) + batch), splits, seed)
        assert all(assigned[s] == split for s, split in before.items())
        assert None not in assigned.values()
        if len(assigned) >= len(splits):
            assert set(assigned.values()) == set(splits) or len(before) > 0


@settings(max_examples=40)
@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=4), count=st.integers(1, 120))
def test_shares_are_met_within_a_subject_or_the_one_that_each_gets(weights: list[int], count: int) -> None:
    splits = {f"split{i}": weight / sum(weights) for i, weight in enumerate(weights)}
    result = sizes(assign_splits({}, names(count), splits, 1))
    if count >= len(splits):
        for name, share in splits.items():
            assert result[name] >= 1
            assert result[name] <= max(1, share * count + 1)


def test_all_volumes_of_a_person_share_a_split_and_people_are_counted() -> None:
    groups = {
        f"{person}_ses-{session}": person for person in names(30) for session in range(1, 2 + int(person[-1]) % 3)
    }
    splits = {"train": 20, "validation": 5, "test": 5}
    result = assign_splits({}, groups, splits, 0, groups)
    by_person = {(groups[subject], split) for subject, split in result.items()}
    assert dict(Counter(split for _, split in by_person)) == splits
    later = {**groups, "sub-0000_ses-9": "sub-0000", "new_ses-1": "new"}
    again = assign_splits(result, later, splits, 0, later)
    assert again == {**result, "sub-0000_ses-9": result["sub-0000_ses-1"], "new_ses-1": None}


def test_the_seed_decides_and_the_order_of_arrival_does_not() -> None:
    splits = {"train": 0.6, "validation": 0.4}
    first = assign_splits({}, names(40), splits, 0)
    assert first == assign_splits({}, names(40)[::-1], splits, 0)
    assert first != assign_splits({}, names(40), splits, 1)


@pytest.mark.parametrize(
    ("splits", "text"),
    [
        ({}, "empty"),
        ({"train": -0.1, "test": 1.1}, r"splits\.train: -0\.1"),
        ({"train": 0.8, "test": 0.3}, r"splits\.train: 0\.8.*sum to 1\.1"),
        ({"train": 2, "test": 0.5}, r"splits\.test: 0\.5"),
        ({"train": float("nan")}, r"splits\.train: nan"),
        ({"train": True}, r"splits\.train: True"),
        ({"train": 0, "test": 0.0}, "nothing"),
    ],
)
def test_splits_that_do_not_add_up_are_named(splits: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        assign_splits({}, names(4), splits, 0)
