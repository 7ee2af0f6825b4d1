"""Augmented patches against whole volumes: contrast before the degradation, orientation of both patches after it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from mrisr.augmentation import Augmentation, Contrast
from mrisr.config import load_experiment
from mrisr.data.patches import cut, sample_corners
from mrisr.data.rows import PatchMaker, RowPlan
from mrisr.degradation import DegradationRange, degrade
from voxelstore import VolumeStore

RANGE = DegradationRange("truncate", (1, 2), fraction=(0.3, 0.7))
ALL = Augmentation(mirror=(0, 1, 2), exchange=(0, 1, 2), gamma=(0.6, 1.6), bias=0.3, inverted=0.5)


def maker_of(store: Path, augmentation: Augmentation, ranges: DegradationRange = RANGE) -> PatchMaker:
    plan = RowPlan(tuple(VolumeStore.open(store).subjects("train")), 3, 8, 1, 1)
    return PatchMaker(store, plan, ranges, 16, 0.3, augmentation)


def orientations(patch: np.ndarray) -> list[np.ndarray]:
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    signs = list(product((1, -1), repeat=3))
    return [patch.transpose(order)[::a, ::b, ::c] for order in orders for a, b, c in signs]


def test_mirrored_and_exchanged_patches_are_the_plain_ones_turned(small_store: Path) -> None:
    plain, turned = (
        maker_of(small_store, Augmentation()),
        maker_of(small_store, replace(ALL, gamma=(1, 1), bias=0, inverted=0)),
    )
    found = set()
    for row in plain.plan.epoch_rows(0):
        for lr, hr, other_lr, other_hr in zip(*plain.row_patches(row), *turned.row_patches(row), strict=True):
            matches = [i for i, each in enumerate(orientations(hr)) if np.array_equal(each, other_hr)]
            assert len(matches) == 1
            np.testing.assert_array_equal(orientations(lr)[matches[0]], other_lr)
            found.add(matches[0])
    assert len(found) > 8


@pytest.mark.parametrize("ranges", [RANGE, replace(RANGE, noise=(0.01, 0.02))], ids=["plain", "noise"])
def test_contrast_changes_before_the_degradation(
    small_store: Path, ranges: DegradationRange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrisr.data.rows.PART_VOXELS", 2**12)  # several parts
    maker = maker_of(small_store, replace(ALL, mirror=(), exchange=()), ranges)
    store = VolumeStore.open(small_store)
    for row in maker.plan.epoch_rows(0):
        record, rng = store.record(row.subject), maker.plan.row_rng(row)
        degradation = ranges.sample(rng)
        corners = sample_corners(store.foreground(row.subject), record.mask_block, record.shape, 16, 8, 0.3, rng)
        contrast = maker.augmentation.contrast(maker.plan.augmentation_rng(row))
        volume = contrast.apply(store.read_normalised(row.subject), record.shape, (0, 0, 0))
        low = degrade(volume, degradation, no_signal=record.intensity.no_signal)
        lr, hr = maker.row_patches(row)
        for corner, one_lr, one_hr in zip(corners, lr, hr, strict=True):
            np.testing.assert_allclose(one_hr, cut(volume, corner, 16), rtol=2**-10, atol=1e-6)
            np.testing.assert_allclose(one_lr, cut(low, corner, 16), rtol=2**-10, atol=5e-6)


def test_zero_strength_is_the_identity_and_global_random_state_is_untouched(small_store: Path) -> None:
    volume = np.linspace(-0.1, 1.3, 24, dtype=np.float32).reshape(2, 3, 4)
    rng, state = np.random.default_rng(0), np.random.get_state()[1].copy()
    off = Augmentation()
    np.testing.assert_array_equal(off.contrast(rng).apply(volume, (2, 3, 4), (0, 0, 0)), volume)
    assert all(off.orientation(rng) == ((0, 1, 2), ()) for _ in range(50))
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_two_exchanged_axes_leave_the_third_in_place() -> None:
    rng = np.random.default_rng(1)
    drawn = {Augmentation(exchange=(1, 2), mirror=(0,)).orientation(rng) for _ in range(100)}
    assert drawn == set(product([(0, 1, 2), (0, 2, 1)], [(), (0,)]))


def test_inverted_contrast_keeps_the_background_and_turns_the_order_of_tissues() -> None:
    tissue = np.array([0.0, 0.2, 0.5, 0.8], np.float32).reshape(1, 1, 4)
    air, fluid, grey, white = Contrast(inverted=True).apply(tissue, (1, 1, 4), (0, 0, 0)).ravel()
    assert air == 0
    assert fluid > grey > white > 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("augmentation.mirror=[0,3]", r"augmentation\.mirror = \[0, 3\]: use each of the axes"),
        ("augmentation.exchange=[1]", r"augmentation\.exchange = \[1\] exchanges nothing; name two or three axes"),
        ("augmentation.gamma=[0,1]", r"augmentation\.gamma = \[0\.0, 1\.0\]: exponents are above 0"),
        ("augmentation.inverted=1.5", r"augmentation\.inverted.*less than or equal to 1"),
    ],
)
def test_invalid_settings_name_the_key(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_experiment("pretrained", [setting])
