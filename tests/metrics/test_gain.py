"""The least-squares gain: what a factor alone can do for an estimate."""

from __future__ import annotations

import numpy as np
import pytest

from mrisr.degradation import PROTOCOLS, degrade
from mrisr.metrics.gain import least_squares_gain


def test_it_is_the_factor_of_the_smallest_error() -> None:
    rng = np.random.default_rng(0)
    reference = rng.random((9, 10, 11)).astype(np.float32)
    estimate = (0.4 * reference + 0.05 * rng.standard_normal(reference.shape)).astype(np.float32)
    gain = least_squares_gain(reference, estimate)
    errors = [np.sum((reference - factor * estimate) ** 2) for factor in (gain, 0.99 * gain, 1.01 * gain)]
    assert min(errors) == errors[0]
    assert gain == pytest.approx(np.sum(reference * estimate) / np.sum(estimate**2), abs=2e-5)


@pytest.mark.parametrize("protocol", ["chen2018", "hz2538"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_exactly_one_for_a_truncation(protocol: str, dtype: type) -> None:
    volume = np.random.default_rng(1).random((24, 30, 28)).astype(dtype)
    assert least_squares_gain(volume, degrade(volume, PROTOCOLS[protocol], dtype)) == 1.0


def test_nothing_has_no_gain() -> None:
    assert least_squares_gain(np.ones((2, 2, 2)), np.zeros((2, 2, 2))) == 1.0
