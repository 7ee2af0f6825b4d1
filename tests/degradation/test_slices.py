"""Thick slices against slices computed one by one, and the exactness of their data consistency."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.slices_by_hand import one_by_one

from mrisr.degradation import Degradation, brightness, degrade, degrader, enforce_consistency
from mrisr.degradation.slices import slice_centres, slices

some = settings(max_examples=25, deadline=None)


def volume(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.mark.parametrize(("axis", "spacing"), [(0, 2), (1, 3), (2, 5), (2, 2.5)])
def test_slices_against_a_loop(axis: int, spacing: float) -> None:
    hr = volume((24, 27, 31))
    out = degrade(hr, Degradation("slices", (axis,), 1 - 1 / spacing))
    np.testing.assert_allclose(out, one_by_one(hr, axis, spacing), atol=2e-6)


def test_centres_are_voxels_for_odd_factors_and_symmetric() -> None:
    np.testing.assert_allclose(slice_centres(15, 2 / 3), [1, 4, 7, 10, 13])
    np.testing.assert_allclose(slice_centres(16, 0.5), [0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 12.5, 14.5])
    np.testing.assert_allclose(slice_centres(17, 2 / 3) + slice_centres(17, 2 / 3)[::-1], 16)


@some
@given(st.tuples(*[st.integers(12, 24)] * 3), st.floats(0.05, 0.66), st.sampled_from([(0,), (2,), (1, 2), (0, 1, 2)]))
def test_consistency_gives_the_observed_slices_and_never_raises_the_error(
    shape: tuple[int, int, int], f: float, axes: tuple[int, ...]
) -> None:
    d = Degradation("slices", axes, f)
    truth, guess = volume(shape, 1), volume(shape, 2)
    observed = degrade(truth, d)
    better = enforce_consistency(guess, observed, d)
    np.testing.assert_allclose(degrade(better, d), observed, atol=1e-4)
    assert np.square(better - truth).sum() <= np.square(guess - truth).sum() * (1 + 1e-4)
    np.testing.assert_allclose(enforce_consistency(truth, observed, d), truth, atol=1e-4)


def test_a_constant_stays_and_parts_are_those_of_the_whole() -> None:
    d = Degradation("slices", (2,), 2 / 3)
    assert brightness((20, 20, 20), d) == 1
    np.testing.assert_allclose(slices(np.full((4, 5, 20), 3.0), d), 3.0, rtol=1e-5)
    hr = volume((12, 16, 20))
    apply, whole = degrader(hr.shape, d), degrade(hr, d)
    assert d.independent_axes == (0, 1)
    np.testing.assert_allclose(apply(hr[3:7]), whole[3:7], atol=1e-6)


def test_too_few_slices_is_an_error_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"degradation\.fraction = 0\.8: 16 voxels give 3 slices .* use 0\.75 at most"):
        degrade(volume((16, 16, 16)), Degradation("slices", (2,), 0.8))
