"""The cubic spline starts from the kept samples of k-space and is not shifted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mrisr.degradation import PROTOCOLS, Degradation, degrade
from mrisr.evaluation.interpolation import crop_spectrum, cubic_spline, low_resolution_shape, spline_matrix

HALF = Degradation("truncate", axes=(1, 2), fraction=0.5)


def _blob(shape: tuple[int, int, int], sigma: float = 5.0) -> np.ndarray:
    """A Gaussian off centre, and off the grid."""
    axes = [
        np.exp(-((np.arange(n) - 0.43 * n) ** 2) / (2 * sigma**2)).reshape([-1 if a == i else 1 for i in range(3)])
        for a, n in enumerate(shape)
    ]
    return (axes[0] * axes[1] * axes[2]).astype(np.float32)


def test_the_small_grid_is_the_protocols() -> None:
    assert low_resolution_shape((256, 320, 320), PROTOCOLS["chen2018"]) == (256, 160, 160)
    assert low_resolution_shape((256, 320, 320), PROTOCOLS["hz2538"]) == (256, 64, 64)
    assert low_resolution_shape((256, 320, 320), PROTOCOLS["report160"]) == (256, 320, 320)
    assert cubic_spline(_blob((32, 32, 32)), PROTOCOLS["report160"]) is None


@pytest.mark.parametrize("shape", [(40, 64, 64), (33, 61, 70)])
def test_a_smooth_function_is_reproduced_and_not_shifted(shape: tuple[int, int, int]) -> None:
    volume = _blob(shape)
    found = cubic_spline(degrade(volume, HALF), HALF)
    assert found is not None
    assert (found.shape, found.dtype) == (shape, np.float32)
    assert np.abs(found - volume).max() < 2e-3
    for axis in range(3):
        position = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
        centre, expected = ((position * v).sum() / v.sum() for v in (found, volume))
        assert centre == pytest.approx(expected, abs=5e-3)


def test_a_constant_stays_constant() -> None:
    constant = np.full((20, 30, 31), 0.7, np.float32)
    found = cubic_spline(degrade(constant, HALF), HALF)
    assert found is not None
    np.testing.assert_allclose(found, constant, atol=1e-5)


def test_it_is_zoom_of_the_small_volume() -> None:
    lr = degrade(np.random.default_rng(0).random((12, 24, 28), dtype=np.float32), HALF)
    small = crop_spectrum(crop_spectrum(lr, 1, 12), 2, 14)
    whole = ndimage.zoom(small.astype(np.float64), (1, 2, 2), order=3, mode="grid-wrap", grid_mode=True)
    np.testing.assert_allclose(cubic_spline(lr, HALF), whole, atol=1e-5)


@pytest.mark.parametrize(("n", "length"), [(24, 12), (25, 12), (31, 10)])
def test_small_samples_lie_where_they_are_said_to_lie(n: int, length: int) -> None:
    def wave(x: np.ndarray) -> np.ndarray:
        return 1 + np.cos(2 * np.pi * (2 * x + 0.3) / n) + np.sin(2 * np.pi * 3 * x / n)

    positions = (np.arange(length) + 0.5) * n / length - 0.5
    np.testing.assert_allclose(crop_spectrum(wave(np.arange(n)), 0, length), wave(positions), atol=1e-10)
    assert spline_matrix(length, n).shape == (n, length)
