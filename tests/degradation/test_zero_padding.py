"""Zero-padding of k-space against the sum that defines it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrisr.degradation import enforce_consistency
from mrisr.degradation.zero_padding import acquired_band, nearest, zero_padded


def interpolated(line: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The trigonometric polynomial through `line` at real places; a Nyquist term is the cosine."""
    n = len(line)
    spectrum = np.fft.fft(line)
    out = np.zeros(len(places), complex)
    for k, value in zip(np.rint(np.fft.fftfreq(n) * n), spectrum, strict=True):
        phase = 2j * np.pi * k * places / n
        out += value / n * (np.cos(2 * np.pi * k * places / n) if 2 * abs(k) == n else np.exp(phase))
    assert np.abs(out.imag).max() < 1e-9
    return out.real


@settings(deadline=None, max_examples=40)
@given(old=st.integers(1, 9), more=st.integers(0, 12), axis=st.integers(0, 2), seed=st.integers(0, 99))
def test_each_line_is_the_polynomial_through_it(old: int, more: int, axis: int, seed: int) -> None:
    shape = tuple(old if one == axis else 2 for one in range(3))
    finer = tuple(old + more if one == axis else 2 for one in range(3))
    volume = np.random.default_rng(seed).standard_normal(shape)
    places = (np.arange(old + more) + 0.5) * old / (old + more) - 0.5
    expected = np.apply_along_axis(interpolated, axis, volume, places)
    found = zero_padded(volume, finer)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_the_mean_is_kept_and_consistency_changes_nothing() -> None:
    volume = np.random.default_rng(0).random((9, 12, 10), dtype=np.float32)
    finer = (9, 20, 25)
    padded = zero_padded(volume, finer)
    assert padded.mean() == pytest.approx(volume.mean(), rel=1e-5)
    np.testing.assert_allclose(
        enforce_consistency(padded, padded, acquired_band(volume.shape, finer)), padded, atol=1e-6
    )
    noise = np.random.default_rng(1).random(finer, dtype=np.float32)
    spectra = [
        np.fft.fftn(one) for one in (enforce_consistency(noise, padded, acquired_band(volume.shape, finer)), padded)
    ]
    kept = [np.abs(np.fft.fftfreq(n) * n) < old / 2 for n, old in zip(finer, (99, 12, 10), strict=True)]
    inside = np.ix_(*kept)
    np.testing.assert_allclose(spectra[0][inside], spectra[1][inside], atol=2e-2)
    assert kept[1].sum() == 11, "all frequencies of the 12 samples but Nyquist"


def test_a_coarser_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="coarser"):
        zero_padded(np.zeros((4, 4, 4)), (8, 3, 4))


def test_a_mask_goes_to_the_nearest_voxels() -> None:
    mask = np.zeros((1, 3, 2), bool)
    mask[0, 1, 0] = True
    found = nearest(mask, (1, 6, 3))
    # Voxels of the finer grid have their centres at -0.25, 0.25, 0.75, 1.25 ... and -1/6, 1/2, 7/6.
    assert [tuple(place) for place in np.argwhere(found)] == [(0, 2, 0), (0, 3, 0)]
