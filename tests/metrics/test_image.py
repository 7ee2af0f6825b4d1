"""Image metrics against computations that share no code with them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mrisr.metrics import image as metrics


def _pair(shape: tuple[int, ...] = (19, 23, 21), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference = rng.random(shape)
    return reference.astype(np.float32), (reference + 0.1 * rng.standard_normal(shape)).astype(np.float32)


def _ssim_by_loops(x: np.ndarray, y: np.ndarray, window: int, data_range: float) -> np.ndarray:
    """Wang et al. 2004 with sample covariances, window by window; only voxels whose window fits."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    inner = [n - window + 1 for n in x.shape]
    result = np.empty(inner)
    for index in np.ndindex(*inner):
        part = tuple(slice(i, i + window) for i in index)
        a, b = x[part].astype(float).ravel(), y[part].astype(float).ravel()
        (va, cov), (_, vb) = np.cov(a, b)
        ma, mb = a.mean(), b.mean()
        result[index] = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return result


def test_figures_equal_the_definitions() -> None:
    reference, estimate = _pair()
    found = metrics.image_metrics(reference, estimate)
    error = reference.astype(float) - estimate.astype(float)
    assert found["ssim"] == pytest.approx(_ssim_by_loops(reference, estimate, 7, 1.0).mean(), abs=1e-6)
    assert found["psnr"] == pytest.approx(-10 * np.log10(np.mean(error**2)), abs=1e-4)
    assert found["nrmse"] == pytest.approx(np.linalg.norm(error) / np.linalg.norm(reference.astype(float)), rel=1e-5)


def test_mask_takes_the_map_and_the_voxels_inside() -> None:
    reference, estimate = _pair()
    mask = np.zeros(reference.shape, bool)
    mask[5:12, 6:15, 4:13] = True
    found = metrics.image_metrics(reference, estimate, mask)
    error = (reference.astype(float) - estimate)[mask]
    inner = np.zeros(reference.shape)
    inner[3:-3, 3:-3, 3:-3] = _ssim_by_loops(reference, estimate, 7, 1.0)
    assert found["ssim"] == pytest.approx(inner[mask].mean(), abs=1e-6)
    assert found["psnr"] == pytest.approx(-10 * np.log10(np.mean(error**2)), abs=1e-4)
    assert found["nrmse"] == pytest.approx(
        np.linalg.norm(error) / np.linalg.norm(reference[mask].astype(float)), rel=1e-5
    )


@pytest.mark.parametrize("slab", [1, 4, 16, 64])
def test_slabs_do_not_show(slab: int) -> None:
    reference, estimate = _pair()
    from skimage.metrics import structural_similarity

    _, whole = structural_similarity(reference, estimate, data_range=1.0, full=True)
    np.testing.assert_allclose(metrics.ssim_map(reference, estimate, slab=slab), whole, atol=2e-6)


def test_float32_is_exact_enough_on_flat_background() -> None:
    reference, estimate = _pair((32, 32, 32))
    reference[:16] *= 1e-3
    estimate[:16] *= 1e-3
    single = metrics.ssim_map(reference, estimate)
    double = metrics.ssim_map(reference.astype(np.float64), estimate.astype(np.float64))
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    assert np.abs(single - double).max() < 1e-4
    assert abs(single.mean(dtype=float) - double.mean()) < 1e-6


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(0.05, 50.0), seed=st.integers(0, 5))
def test_scaling_images_and_data_range_together_changes_nothing(factor: float, seed: int) -> None:
    reference, estimate = _pair((9, 8, 10), seed)
    plain = metrics.image_metrics(reference, estimate)
    scaled = metrics.image_metrics(reference * np.float32(factor), estimate * np.float32(factor), data_range=factor)
    for name in metrics.METRICS:
        assert scaled[name] == pytest.approx(plain[name], rel=1e-3)


def test_identical_images_are_perfect() -> None:
    reference, _ = _pair()
    assert metrics.image_metrics(reference, reference) == {
        "ssim": pytest.approx(1.0),
        "psnr": np.inf,
        "nrmse": 0.0,
    }


def test_errors_say_what_was_found() -> None:
    reference, estimate = _pair()
    with pytest.raises(ValueError, match="one shape"):
        metrics.image_metrics(reference, estimate[:-1])
    with pytest.raises(ValueError, match="empty"):
        metrics.image_metrics(reference, estimate, np.zeros(reference.shape, bool))
    with pytest.raises(ValueError, match="must be bool"):
        metrics.image_metrics(reference, estimate, np.ones(reference.shape))
    with pytest.raises(ValueError, match="does not fit"):
        metrics.image_metrics(reference[:5], estimate[:5])
    with pytest.raises(ValueError, match="reference is zero"):
        metrics.image_metrics(np.zeros_like(reference), estimate)
    estimate[3, 3, 3] = np.nan
    with pytest.raises(ValueError, match="1 voxels that are not finite"):
        metrics.image_metrics(reference, estimate)


@pytest.mark.parametrize("shape", [(12, 10, 14), (11, 13, 9)])
def test_shell_correlation_equals_a_sum_over_the_full_spectrum(shape: tuple[int, int, int]) -> None:
    reference, estimate = _pair(shape)
    spacing = (0.7, 1.0, 1.2)
    found = metrics.fourier_shell_correlation(reference, estimate, spacing)
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
    found = metrics.fourier_shell_correlation(reference, estimate)
    assert (found.correlation[found.frequency < 0.23] > 0.999).all()
    assert (np.abs(found.correlation[found.frequency > 0.27]) < 0.3).all()


def test_bootstrap_agrees_with_scipy_and_leaves_global_state_alone() -> None:
    values = np.random.default_rng(1).normal(30, 2, 25)
    before = np.random.get_state(legacy=True)[1].copy()
    found = metrics.bootstrap_interval(values, seed=7)
    assert (np.random.get_state(legacy=True)[1] == before).all()
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.05)
    assert found == metrics.bootstrap_interval(values, seed=7)
    assert metrics.bootstrap_interval([1.5], seed=0) == (1.5, 1.5, 1.5)
    with pytest.raises(ValueError, match="finite"):
        metrics.bootstrap_interval([1.0, np.inf], seed=0)
