"""HFEN against a filter made tap by tap, and what it is for: it sees blur that NRMSE hardly sees."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mrisr.metrics import METRICS, measure
from mrisr.metrics.hfen import hfen, laplacian_of_gaussian


def _filtered(volume: np.ndarray) -> np.ndarray:
    """By one kernel of 15^3: the second derivatives of a Gaussian of 1.5 voxels, summed over the axes."""
    x, y, z = np.meshgrid(*[np.arange(-7.0, 8.0)] * 3, indexing="ij")
    squared = x**2 + y**2 + z**2
    gaussian = np.exp(-squared / (2 * 1.5**2))
    kernel = (squared / 1.5**4 - 3 / 1.5**2) * gaussian / gaussian.sum()
    return ndimage.convolve(volume.astype(np.float64), kernel, mode="reflect")


@pytest.mark.parametrize("shape", [(24, 19, 21), (16, 16, 16), (9, 30, 12)])
def test_it_equals_the_definition(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    reference, estimate = rng.random((2, *shape))
    mask = rng.random(shape) > 0.4
    wanted, found = _filtered(reference), _filtered(estimate)
    expected = [
        np.linalg.norm((found - wanted)[region]) / np.linalg.norm(wanted[region])
        for region in (np.ones(shape, bool), mask)
    ]
    assert hfen(reference, estimate, [None, mask], 1.0) == pytest.approx(expected, rel=1e-8)
    single = hfen(reference.astype(np.float32), estimate.astype(np.float32), [None, mask], 1.0)
    assert single == pytest.approx(expected, rel=1e-4)
    assert laplacian_of_gaussian(reference.astype(np.float32)).dtype == np.float32


def test_it_sees_blur() -> None:
    """Of two errors of one size, blur and a change of brightness, HFEN finds blur far worse."""
    rng = np.random.default_rng(1)
    reference = ndimage.gaussian_filter(rng.random((32, 32, 32)), 1.0)
    blurred = ndimage.gaussian_filter(reference, 1.0)
    error = np.linalg.norm(blurred - reference)
    brighter = reference * (1 + error / np.linalg.norm(reference))
    blur, gain = measure(reference, blurred), measure(reference, brighter)
    assert blur["nrmse"] == pytest.approx(gain["nrmse"])
    assert blur["hfen"] > 5 * gain["hfen"]
    figures = [measure(reference, ndimage.gaussian_filter(reference, s))["hfen"] for s in (0.3, 0.6, 1.0, 1.5)]
    assert figures == sorted(figures)
    assert not METRICS["hfen"].higher_is_better


def test_a_reference_without_detail_is_named() -> None:
    with pytest.raises(ValueError, match="HFEN is not defined"):
        hfen(np.zeros((16, 16, 16)), np.ones((16, 16, 16)), [None], 1.0)
