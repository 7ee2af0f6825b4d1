"""The report's fifth way and its literal code, and what real acquisitions add: taper, thick slices, noise."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrisr.degradation import (
    Degradation,
    DegradationRange,
    brightness,
    degrade,
    describe,
    kept_band,
    noise_weight,
    spectral_weight,
)
from mrisr.degradation.applying import received_noise
from voxelstore.intensity import IntensityMap

some = settings(max_examples=40, deadline=None)
even = st.integers(3, 7).map(lambda n: 2 * n)


def volume(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def zero_middle(spectrum: np.ndarray, f: float, half_open: bool) -> np.ndarray:
    """Zero the box of half-width fN/2 about the index N//2 of every axis, half-open as in the report or symmetric."""
    offsets = np.meshgrid(*[np.arange(n) - n // 2 for n in spectrum.shape], indexing="ij")
    slack = 1e-9 * (-1 if half_open else 1)
    inside = [(o >= -f * n / 2 - 1e-9) & (o <= f * n / 2 + slack) for o, n in zip(offsets, spectrum.shape, strict=True)]
    return np.where(np.logical_and.reduce(inside), 0, spectrum)


def fourth_way(hr: np.ndarray, f: float, half_open: bool) -> np.ndarray:
    """FFT, shift, zero, shift back, inverse FFT; complex, double precision."""
    spectrum = zero_middle(np.fft.fftshift(np.fft.fftn(hr)), f, half_open)
    return np.fft.ifftn(np.fft.fftshift(spectrum))


def fifth_way(hr: np.ndarray, f: float, half_open: bool) -> np.ndarray:
    """Shift, FFT, shift, zero, shift, inverse FFT, shift, every time with fftshift; complex, double precision."""
    spectrum = zero_middle(np.fft.fftshift(np.fft.fftn(np.fft.fftshift(hr))), f, half_open)
    return np.fft.fftshift(np.fft.ifftn(np.fft.fftshift(spectrum)))


@some
@given(shape=st.tuples(even, even, even), f=st.floats(0.05, 0.9), half_open=st.booleans())
def test_the_fifth_way_is_the_fourth_on_even_axes(shape: tuple[int, int, int], f: float, half_open: bool) -> None:
    hr = volume(shape).astype(np.float64)
    np.testing.assert_allclose(fifth_way(hr, f, half_open), fourth_way(hr, f, half_open), atol=1e-14)
    if not half_open:
        by_alias = degrade(hr, Degradation("shift_fft_shift", (0, 1, 2), f))
        np.testing.assert_allclose(by_alias, fifth_way(hr, f, half_open).real, atol=2e-6)
        np.testing.assert_array_equal(by_alias, degrade(hr, Degradation("shift", (0, 1, 2), f)))


def test_on_odd_axes_the_fifth_way_as_written_moves_the_image() -> None:
    hr = volume((9, 11, 7)).astype(np.float64)
    difference = np.abs(fifth_way(hr, 0.0, True) - hr).max()
    assert difference > 0.1, "fftshift is its own inverse on even axes only; the alias stays in place on odd ones, too"
    np.testing.assert_allclose(degrade(hr, Degradation("shift_fft_shift", (0, 1, 2), 0.0)), hr, atol=1e-6)


def literal(hr: np.ndarray, half_widths: tuple[int, ...], a: float) -> np.ndarray:
    """The report's program, statement by statement, with the clipping."""
    mixed = (1 - a) * np.fft.fftn(hr) + a * np.fft.fftshift(hr)
    (c0, c1, c2), (d0, d1, d2) = (n // 2 for n in hr.shape), half_widths
    mixed[max(0, c0 - d0) : c0 + d0, max(0, c1 - d1) : c1 + d1, max(0, c2 - d2) : c2 + d2] = 0
    return np.fft.ifftn(mixed).real


@pytest.mark.parametrize(("voxels", "half"), [(8, (4, 4, 4)), (20, (10, 10, 10)), (0, (0, 0, 0))])
def test_report_literal_is_the_reports_program_clipped(voxels: int, half: tuple[int, ...]) -> None:
    hr = volume((16, 24, 21)).astype(np.float64)
    out = degrade(hr, Degradation("report_literal", (0, 1, 2), voxels=voxels, mix=0.3))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, literal(hr, half, 0.3), atol=2e-6)


def test_report_literal_is_almost_a_dimmed_box() -> None:
    hr = volume((32, 40, 36))
    out = degrade(hr, Degradation("report_literal", (0, 1, 2), 0.5, mix=0.4))
    box = degrade(hr, Degradation("box", (0, 1, 2), 0.5))
    np.testing.assert_allclose(out.mean(), 0.6 * box.mean(), rtol=1e-3)
    assert np.abs(out - np.float32(0.6) * box).max() < 0.25
    with pytest.raises(ValueError, match="no spectral weight"):
        spectral_weight(hr.shape, Degradation("report_literal"))


@pytest.mark.parametrize("apodisation", ["tukey", "hamming"])
def test_a_taper_ends_the_ringing_and_keeps_the_scale(apodisation: str) -> None:
    edge = np.zeros((4, 64, 64), np.float32)
    edge[:, 16:48, 16:48] = 1.0
    plain = degrade(edge, Degradation("truncate", fraction=0.6))
    tapered = degrade(edge, Degradation("truncate", fraction=0.6, apodisation=apodisation, taper=1.0))
    assert -tapered.min() < 0.25 * -plain.min()
    assert tapered.mean() == pytest.approx(edge.mean(), rel=1e-5)


def test_a_tukey_window_leaves_the_middle_of_the_band_exact() -> None:
    d = Degradation("truncate", (1,), 0.5, apodisation="tukey", taper=0.25)
    weight = spectral_weight((4, 64, 4), d)[0, :, 0]
    assert weight.shape == (33,)
    np.testing.assert_array_equal(np.flatnonzero(kept_band((4, 64, 4), d)[0, :, 0]), np.arange(13))
    assert (np.diff(weight[12:17]) < 0).all()
    assert not weight[16:].any()


def test_a_slice_profile_is_a_gaussian_of_that_width() -> None:
    for axis in range(3):
        impulse = np.zeros((41, 48, 44), np.float32)
        impulse[20, 20, 20] = 1.0
        d = Degradation("truncate", ((axis + 1) % 3,), 0.0, slice_axis=axis, slice_thickness=5.0)
        line = np.moveaxis(degrade(impulse, d), axis, 0)[:, 20, 20]
        expected = np.exp(-4 * np.log(2) * (np.arange(len(line)) - 20) ** 2 / 5.0**2)
        np.testing.assert_allclose(line / line[20], expected, atol=1e-5)
        assert line.sum() == pytest.approx(1.0, abs=1e-5)


@some
@given(
    shape=st.tuples(*[st.integers(5, 14)] * 3), kind=st.sampled_from(["truncate", "box", "shift", "mixed", "gaussian"]),
    axes=st.sampled_from([(0,), (1, 2), (2, 0), (0, 1, 2)]), seed=st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_noise_is_the_magnitude_of_signal_and_seeded_noise(
    shape: tuple[int, int, int], kind: str, axes: tuple[int, ...], seed: int
) -> None:
    hr = volume(shape)
    d = Degradation(kind, axes, 0.4, mix=0.5, sigma=0.7, slice_axis=1, slice_thickness=1.5, noise=0.2, noise_seed=seed)
    out = degrade(hr, d)
    assert out.dtype == np.float32
    assert out.shape == shape
    np.testing.assert_array_equal(out, degrade(hr, d))
    assert not np.array_equal(out, degrade(hr, d._replace(noise_seed=seed ^ 1)))
    noise = received_noise(shape, d)
    np.testing.assert_allclose(out, np.abs(degrade(hr, d._replace(noise=0.0)) + noise), atol=1e-6)
    # Samples that are not acquired carry no noise: through a full complex FFT, both halves of the spectrum.
    full = np.fft.fftn(noise.astype(np.complex128), axes=d.transform_axes)
    empty = np.broadcast_to(noise_weight(shape, d) == 0, np.fft.rfftn(hr, axes=d.transform_axes).shape)
    half = full[tuple(slice(None, n) for n in empty.shape)]
    assert np.abs(half[empty]).max(initial=0.0) < 1e-5
    mirrored = full[np.ix_(*[-np.arange(n) if a in d.transform_axes else np.arange(n) for a, n in enumerate(shape)])]
    assert np.abs(mirrored[tuple(slice(None, n) for n in empty.shape)][empty]).max(initial=0.0) < 1e-5


def test_noise_follows_rice() -> None:
    """Sampled in full: Rayleigh in air (mean s sqrt(pi/2)); the second moment of a voxel of height A is A^2 + 2s^2."""
    scene = np.zeros((40, 64, 64), np.float32)
    scene[:, :, 32:] = 0.8
    d = Degradation("truncate", fraction=0.0, noise=0.1, noise_seed=5)
    out = degrade(scene, d)
    air, tissue = out[:, :, :32].astype(float), out[:, :, 32:].astype(float)
    assert air.mean() == pytest.approx(0.1 * np.sqrt(np.pi / 2), rel=0.01)
    assert np.square(air).mean() == pytest.approx(2 * 0.1**2, rel=0.02)
    assert np.square(tissue).mean() == pytest.approx(0.8**2 + 2 * 0.1**2, rel=0.005)
    assert tissue.std() == pytest.approx(0.1, rel=0.03)
    # Half of each in-plane axis is not acquired, and its noise neither: a quarter of the energy is left.
    quarter = degrade(np.zeros_like(scene), d._replace(fraction=0.5)).astype(float)
    kept = spectral_weight(scene.shape, Degradation("truncate", (1, 2), 0.5))[0]
    share = (kept[:, 0].sum() / 64) * ((2 * kept[0].sum() - 1) / 64)
    assert np.square(quarter).mean() == pytest.approx(2 * 0.1**2 * share, rel=0.03)


@pytest.mark.parametrize(("low", "high"), [(120.0, 900.0), (-300.0, 900.0), (0.0, 900.0)])
def test_the_magnitude_is_that_of_the_physical_signal(low: float, high: float) -> None:
    """A normalised volume gives what the complex signal in physical units gives, whatever its background is."""
    physical = low - 50 + (high - low + 100) * volume((10, 12, 14)).astype(np.float64)
    intensity = IntensityMap(low, high)
    d = Degradation("truncate", (1, 2), 0.4, noise=0.15, noise_seed=3)
    kept = spectral_weight(physical.shape, d)
    kept = np.concatenate([kept, kept[..., (physical.shape[2] - 1) // 2 : 0 : -1]], axis=2)
    signal = np.fft.ifftn(np.fft.fftn(physical, axes=(1, 2)) * kept, axes=(1, 2))
    received = np.abs(signal + (high - low) * received_noise(physical.shape, d))
    out = degrade(intensity.normalise(physical), d, no_signal=intensity.no_signal)
    np.testing.assert_allclose(out, (received - low) / (high - low), atol=3e-6)
    if low != 0:
        assert np.abs(out - degrade(intensity.normalise(physical), d)).max() > 0.01


def test_noise_takes_no_more_memory_than_its_complex_volume() -> None:
    """Beside the volume itself: the result, the noise's real and imaginary part, and little else."""
    hr = volume((48, 96, 96))
    d = Degradation("truncate", fraction=0.5, noise=0.1, noise_seed=5)
    tracemalloc.start()
    degrade(hr, d)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.5 * hr.nbytes


def test_sampling_draws_the_noise_and_leaves_the_other_draws_where_they_were() -> None:
    plain = DegradationRange("truncate", fraction=(0.3, 0.7))
    rich = replace(
        plain, apodisation="tukey", taper=(0.1, 0.5), slice_axis=0, slice_thickness=(1.0, 3.0), noise=(0.01, 0.05)
    )
    rngs = [np.random.default_rng([7, 2]) for _ in range(3)]
    a, b, c = plain.sample(rngs[0]), rich.sample(rngs[1]), rich.sample(rngs[2])
    assert b == c
    assert a.fraction == b.fraction
    assert rngs[0].random() == rngs[1].random(), "what the row draws next is the same"
    assert a.noise == 0
    assert 0.1 <= b.taper <= 0.5
    assert 1.0 <= b.slice_thickness <= 3.0
    assert 0.01 <= b.noise <= 0.05
    assert b.noise_seed != rich.sample(np.random.default_rng([7, 3])).noise_seed
    hr = volume((12, 14, 16))
    before = np.random.get_state()[1].copy()
    np.testing.assert_array_equal(degrade(hr, b), degrade(hr, c))
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_a_description_names_what_is_on() -> None:
    ranges = DegradationRange("truncate", fraction=(0.3, 0.7), slice_axis=0, slice_thickness=(0.0, 2.5))
    assert ranges.describe() == (
        "truncate, axes 1 2, f=0.3 ... truncate, axes 1 2, f=0.7, slices of 2.5 voxels on axis 0"
    )
    assert DegradationRange("truncate").describe() == "truncate, axes 1 2, f=0.5"
    rich = Degradation("mixed", (0,), voxels=8, mix=0.25, apodisation="tukey", taper=0.5, noise=0.02, noise_seed=0)
    assert describe(rich) == "mixed, axes 0, 8 voxels, a=0.25, tukey 0.5, noise 0.02"


@pytest.mark.parametrize(("kind", "gain"), [("mixed", 0.7), ("shift", 0.0), ("truncate", 1.0), ("box", 1.0)])
def test_noise_is_counted_from_where_the_degradation_leaves_the_zero(kind: str, gain: float) -> None:
    """Against the physical volume, whose zero no weight moves."""
    d = Degradation(kind, (0, 1, 2), 0.5, mix=0.3, noise=0.05, noise_seed=3)
    physical = np.random.default_rng(1).random((12, 10, 14)).astype(np.float32)
    assert brightness(physical.shape, d) == pytest.approx(gain)
    expected = degrade(physical, d)
    # Normalised so that physical 0 is 0.25: the constant passes as W(0) times itself.
    found = degrade(physical + np.float32(0.25), d, no_signal=0.25)
    np.testing.assert_allclose(found, expected + gain * 0.25, atol=1e-5)
