"""Energy in the zeroed band: empty for the input, whole for the reference, and not fooled by what is elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from mrisr.degradation import PROTOCOLS, Degradation, degrade
from mrisr.metrics.zeroed_band import zeroed_band

CHEN = PROTOCOLS["chen2018"]


@pytest.mark.parametrize("shape", [(12, 20, 24), (9, 21, 15)])
def test_the_input_has_nothing_there_and_the_reference_everything(shape: tuple[int, int, int]) -> None:
    reference = np.random.default_rng(0).random(shape, np.float32)
    low = degrade(reference, CHEN)
    assert zeroed_band(reference, low, CHEN).energy == pytest.approx(0, abs=1e-10)
    assert zeroed_band(reference, reference, CHEN) == pytest.approx((1, 1))
    assert zeroed_band(reference, low + 0.5 * (reference - low), CHEN) == pytest.approx((0.25, 1), rel=1e-4)
    # Parseval: the difference between reference and input lies in the band, all of it.
    other = np.random.default_rng(1).random(shape, np.float32)
    expected = np.sum((other - degrade(other, CHEN)) ** 2) / np.sum((reference - low) ** 2)
    assert zeroed_band(reference, other, CHEN).energy == pytest.approx(expected, rel=1e-4)


def test_detail_that_is_not_the_references_has_energy_and_no_correlation() -> None:
    rng = np.random.default_rng(2)
    reference, other = rng.random((2, 16, 32, 32), np.float32)
    low = degrade(reference, CHEN)
    band = zeroed_band(reference, low + (other - degrade(other, CHEN)), CHEN)
    assert band.energy == pytest.approx(1, abs=0.05)
    assert abs(band.correlation) < 0.05
    assert zeroed_band(reference, low + 3.0, CHEN).energy == pytest.approx(0, abs=1e-9), "DC is in the kept band"


def test_what_cannot_be_measured_says_why() -> None:
    volume = np.ones((8, 8, 8), np.float32)
    with pytest.raises(ValueError, match="differ in shape"):
        zeroed_band(volume, volume[:4], CHEN)
    with pytest.raises(ValueError, match="zeroes no part"):
        zeroed_band(volume, volume, Degradation("gaussian", sigma=1.0, fraction=0.0))
    with pytest.raises(ValueError, match="no energy in the zeroed band"):
        zeroed_band(volume, volume, CHEN)
