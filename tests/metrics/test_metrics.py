"""Image metrics against computations that share no code with them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrisr.metrics import METRICS, measure
from mrisr.metrics.ssim import ssim_map


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
    found = measure(reference, estimate)
    error = reference.astype(float) - estimate.astype(float)
    assert found["ssim"] == pytest.approx(_ssim_by_loops(reference, estimate, 7, 1.0).mean(), abs=1e-6)
    assert found["psnr"] == pytest.approx(-10 * np.log10(np.mean(error**2)), abs=1e-4)
    assert found["nrmse"] == pytest.approx(np.linalg.norm(error) / np.linalg.norm(reference.astype(float)), rel=1e-5)


def test_mask_takes_the_map_and_the_voxels_inside() -> None:
    reference, estimate = _pair()
    mask = np.zeros(reference.shape, bool)
    mask[5:12, 6:15, 4:13] = True
    found = measure(reference, estimate, mask)
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
    np.testing.assert_allclose(ssim_map(reference, estimate, slab=slab), whole, atol=2e-6)


def test_float32_is_exact_enough_on_flat_background() -> None:
    reference, estimate = _pair((32, 32, 32))
    reference[:16] *= 1e-3
    estimate[:16] *= 1e-3
    single = ssim_map(reference, estimate)
    double = ssim_map(reference.astype(np.float64), estimate.astype(np.float64))
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    assert np.abs(single - double).max() < 1e-4
    assert abs(single.mean(dtype=float) - double.mean()) < 1e-6


@settings(max_examples=20)
@given(factor=st.floats(0.05, 50.0), seed=st.integers(0, 5))
def test_scaling_images_and_data_range_together_changes_nothing(factor: float, seed: int) -> None:
    reference, estimate = _pair((9, 8, 10), seed)
    plain = measure(reference, estimate)
    scaled = measure(reference * np.float32(factor), estimate * np.float32(factor), data_range=factor)
    for name in METRICS:
        assert scaled[name] == pytest.approx(plain[name], rel=1e-3)


def test_identical_images_are_perfect() -> None:
    reference, _ = _pair()
    assert measure(reference, reference) == {
        "ssim": pytest.approx(1.0),
        "psnr": np.inf,
        "nrmse": 0.0,
        "hfen": 0.0,
    }


def test_errors_say_what_was_found() -> None:
    reference, estimate = _pair()
    with pytest.raises(ValueError, match="one shape"):
        measure(reference, estimate[:-1])
    with pytest.raises(ValueError, match="empty"):
        measure(reference, estimate, np.zeros(reference.shape, bool))
    with pytest.raises(ValueError, match="must be bool"):
        measure(reference, estimate, np.ones(reference.shape))
    with pytest.raises(ValueError, match="does not fit"):
        measure(reference[:5], estimate[:5])
    with pytest.raises(ValueError, match="reference is zero"):
        measure(np.zeros_like(reference), estimate)
    estimate[3, 3, 3] = np.nan
    with pytest.raises(ValueError, match="1 voxels that are not finite"):
        measure(reference, estimate)
