"""Fourier shell correlation against a sum over the full spectrum."""

from __future__ import annotations

import numpy as np
import pytest

from mrisr.metrics.shell_correlation import fourier_shell_correlation


def _pair(shape: tuple[int, ...] = (19, 23, 21), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference = rng.random(shape)
    return reference.astype(np.float32), (reference + 0.1 * rng.standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize("shape", [(12, 10, 14), (11, 13, 9)])
def test_shell_correlation_equals_a_sum_over_the_full_spectrum(shape: tuple[int, int, int]) -> None:
    reference, estimate = _pair(shape)
    spacing = (0.7, 1.0, 1.2)
    found = fourier_shell_correlation(reference, estimate, spacing)
    f, g = np.fft.fftn(reference), np.fft.fftn(estimate)
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*map(np.fft.fftfreq, shape, spacing), indexing="ij")))
    width = found.frequency[1]
    for index, frequency in enumerate(found.frequency):
        shell = (radius >= frequency - width / 2) & (radius < frequency + width / 2)
        expected = (f[shell] * g[shell].conj()).sum().real
        expected /= np.sqrt((np.abs(f[shell]) ** 2).sum() * (np.abs(g[shell]) ** 2).sum())
        assert found.correlation[index] == pytest.approx(expected, abs=1e-4)
    assert found.frequency[-1] < 0.5 / max(spacing)


def test_shell_correlation_falls_where_the_spectrum_was_cut() -> None:
    rng = np.random.default_rng(3)
    reference = rng.random((32, 32, 32))
    spectrum = np.fft.fftn(reference)
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*[np.fft.fftfreq(32)] * 3, indexing="ij")))
    noise = np.fft.fftn(rng.standard_normal(reference.shape))
    estimate = np.fft.ifftn(np.where(radius < 0.25, spectrum, noise)).real
    found = fourier_shell_correlation(reference, estimate)
    assert (found.correlation[found.frequency < 0.23] > 0.999).all()
    assert (np.abs(found.correlation[found.frequency > 0.27]) < 0.3).all()
