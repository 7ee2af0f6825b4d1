"""The degradation against an independent complex FFT, and the invariants that every kind keeps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrisr.degradation import (
    KINDS,
    PROTOCOLS,
    Degradation,
    DegradationRange,
    check,
    degrade,
    enforce_consistency,
    kept_band,
    spectral_weight,
)

SPECTRAL_KINDS = [name for name, kind in KINDS.items() if kind.weight is not None]
shapes = st.tuples(*[st.integers(5, 14)] * 3)
axis_choices = st.sampled_from([c for n in (1, 2, 3) for c in itertools.combinations(range(3), n)])
shares = st.floats(0.0, 0.95)
degradations = axis_choices.flatmap(
    lambda axes: st.builds(
        Degradation,
        kind=st.sampled_from(SPECTRAL_KINDS),
        axes=st.just(axes),
        fraction=st.one_of(shares, st.tuples(*[shares] * len(axes))),
        voxels=st.one_of(st.none(), st.integers(0, 4)),  # less than the shortest axis
        mix=st.floats(0.0, 1.0),
        sigma=st.floats(0.0, 2.0),
        base=st.sampled_from(["box", "truncate"]),
        apodisation=st.sampled_from(["none", "tukey", "hamming"]),
        taper=st.floats(0.0, 1.0),
        slice_axis=st.integers(0, 2),
        slice_thickness=st.one_of(st.just(0.0), st.floats(0.0, 4.0)),
        noise=st.just(0.0),
        noise_seed=st.none(),
    )
)
some = settings(max_examples=60, deadline=None)


def volume(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def reference(hr: np.ndarray, d: Degradation) -> np.ndarray:
    """Sample by sample, from the definitions, through the full complex FFT in double precision."""
    spectrum = np.fft.fftn(hr.astype(np.float64))
    given = d.fraction if isinstance(d.fraction, tuple) else (d.fraction,) * len(d.axes)
    zeroed = given if d.voxels is None else [d.voxels / hr.shape[axis] for axis in d.axes]
    for index in np.ndindex(*hr.shape):
        bands = {"truncate": [], "box": [], "shift": []}
        blur = taper = 1.0
        for axis, f in zip(d.axes, zeroed, strict=True):
            n = hr.shape[axis]
            k = index[axis] if index[axis] <= n // 2 else index[axis] - n
            bands["truncate"].append(max(zeroed) > 0 and abs(k) >= (1 - f) * n / 2 - 1e-9)
            bands["shift"].append(max(zeroed) > 0 and abs(k) <= f * n / 2 + 1e-9)
            blur *= np.exp(-2 * np.pi**2 * d.sigma**2 * (k / n) ** 2)
            cut_off = d.kind == "truncate" or (d.kind == "gaussian" and d.base == "truncate")
            taper *= window(min(abs(k) / ((1 - f if cut_off else 1) * n / 2), 1.0), d)
        weight = {
            "truncate": 1.0 - any(bands["truncate"]),
            "box": 1.0 - all(bands["truncate"]),
            "shift": 1.0 - all(bands["shift"]),
        }
        weight["shift_fft_shift"] = weight["shift"]
        weight["mixed"] = (1 - d.mix) * weight["box"] + d.mix * weight["shift"]
        weight["gaussian"] = weight[d.base] * blur
        k = min(index[d.slice_axis], hr.shape[d.slice_axis] - index[d.slice_axis])
        profile = np.exp(-((np.pi * d.slice_thickness * k / hr.shape[d.slice_axis]) ** 2) / (4 * np.log(2)))
        spectrum[index] *= weight[d.kind] * taper * profile
    out = np.fft.ifftn(spectrum)
    assert np.abs(out.imag).max() < 1e-9, "an even weight leaves no imaginary part"
    return out.real


def window(x: float, d: Degradation) -> float:
    """The textbook windows at x = |k| / (end of the band)."""
    if d.apodisation == "hamming":
        return 0.54 + 0.46 * np.cos(np.pi * x)
    if d.apodisation == "tukey" and d.taper > 0 and x > 1 - d.taper:
        return 0.5 * (1 + np.cos(np.pi * (x - 1 + d.taper) / d.taper))
    return 1.0


@some
@given(shape=shapes, d=degradations, slab=st.sampled_from([1, 100, 2**16]))
def test_equals_the_definition_through_a_complex_fft(shape: tuple[int, int, int], d: Degradation, slab: int) -> None:
    hr = volume(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mrisr.degradation.applying.SLAB_VOXELS", slab)  # slice by slice, a few at a time, all at once
        out = degrade(hr, d)
    assert out.dtype == np.float32
    assert out.shape == shape
    np.testing.assert_allclose(out, reference(hr, d), atol=2e-6)


@some
@given(shape=shapes, d=degradations)
def test_linear_and_never_adds_energy(shape: tuple[int, int, int], d: Degradation) -> None:
    a, b = volume(shape, 1), volume(shape, 2)
    np.testing.assert_allclose(degrade(2 * a - b, d), 2 * degrade(a, d) - degrade(b, d), atol=5e-6)
    weight = spectral_weight(shape, d)
    assert weight.min() >= 0
    assert weight.max() <= 1
    assert np.square(degrade(a, d)).sum() <= np.square(a).sum() * (1 + 1e-6)


@some
@given(shape=shapes, d=degradations)
def test_parseval_the_energy_is_that_of_the_weighted_spectrum(shape: tuple[int, int, int], d: Degradation) -> None:
    hr = volume(shape)
    axes = d.transform_axes
    spectrum = np.fft.rfftn(hr.astype(np.float64), axes=axes) * spectral_weight(shape, d)
    n = shape[axes[-1]]
    # Every sample of the half spectrum stands for itself and its conjugate, but for DC and an even axis' Nyquist.
    twice = [1 if k == 0 or 2 * k == n else 2 for k in range(n // 2 + 1)]
    twice = np.reshape(twice, [-1 if a == axes[-1] else 1 for a in range(3)])
    energy = (twice * np.abs(spectrum) ** 2).sum() / np.prod([shape[a] for a in axes])
    assert np.square(degrade(hr, d).astype(np.float64)).sum() == pytest.approx(energy, rel=1e-4, abs=1e-9)


@some
@given(shape=shapes, axes=axis_choices, kind=st.sampled_from(list(KINDS)), mix=st.floats(0, 1))
def test_zero_strength_is_the_identity(
    shape: tuple[int, int, int], axes: tuple[int, ...], kind: str, mix: float
) -> None:
    hr = volume(shape)
    if kind == "report_literal":
        mix = 0.0
    d = Degradation(kind, axes, 0.0, mix=mix, apodisation="tukey" if KINDS[kind].weight else "none", slice_axis=0)
    np.testing.assert_allclose(degrade(hr, d), hr, atol=1e-6)


@some
@given(shape=shapes, axes=axis_choices, f=st.floats(0.05, 0.9), kind=st.sampled_from(["truncate", "box", "shift"]))
def test_hard_weights_are_idempotent_and_keep_what_they_keep(
    shape: tuple[int, int, int], axes: tuple[int, ...], f: float, kind: str
) -> None:
    d = Degradation(kind, axes, f)
    once = degrade(volume(shape), d)
    np.testing.assert_allclose(degrade(once, d), once, atol=2e-6)


@some
@given(shape=shapes, d=degradations)
def test_consistency_never_raises_the_squared_error(shape: tuple[int, int, int], d: Degradation) -> None:
    truth, guess = volume(shape, 1), volume(shape, 2)
    observed = degrade(truth, d)
    better = enforce_consistency(guess, observed, d)
    assert np.square(better - truth).sum() <= np.square(guess - truth).sum() * (1 + 1e-5)
    spectrum = np.fft.rfftn(better - truth, axes=d.transform_axes)
    kept = np.broadcast_to(kept_band(shape, d), spectrum.shape)
    assert np.abs(spectrum[kept]).max(initial=0.0) < 1e-3


def test_protocols_keep_what_their_papers_say() -> None:
    shape = (256, 320, 320)
    kept = spectral_weight(shape, PROTOCOLS["chen2018"])
    # The symmetric band |k| < 80: the published 160 of 320 with its unpaired last sample left out.
    assert kept.shape == (1, 320, 161)
    assert kept[0, :, 0].sum() == 159
    assert kept[0, 0].sum() == 80
    assert spectral_weight(shape, PROTOCOLS["hz2538"])[0, :, 0].sum() == 63
    report = spectral_weight(shape, PROTOCOLS["report160"])
    assert report[0, 0, 0] == 0.5, "DC lies in the shifted box"
    assert report[128, 160, 160] == 0.5, "Nyquist lies in the box"
    assert report[128, 0, 0] == 1.0


def test_voxels_mean_the_same_as_the_fraction_of_that_axis() -> None:
    hr = volume((20, 16, 12))
    by_voxels = degrade(hr, Degradation("truncate", (0, 1), voxels=8))
    np.testing.assert_array_equal(by_voxels, degrade(hr, Degradation("truncate", (0, 1), fraction=(0.4, 0.5))))


def test_intensity_scale_is_kept() -> None:
    hr = volume((16, 20, 18)) * 700 + 300
    for kind in ("truncate", "box", "gaussian"):
        assert degrade(hr, Degradation(kind, (1, 2), 0.8, sigma=1.0)).mean() == pytest.approx(hr.mean(), rel=1e-5)


def test_sampling_is_seeded_stays_inside_and_touches_no_global_state() -> None:
    ranges = DegradationRange("mixed", (0, 2), fraction=(0.2, 0.7), mix=(0.1, 0.4), sigma=(0.5, 0.6))
    before = np.random.get_state()[1].copy()
    draws = [ranges.sample(np.random.default_rng(7)) for _ in range(2)]
    assert draws[0] == draws[1]
    many = [ranges.sample(np.random.default_rng(i)) for i in range(200)]
    assert all(0.2 <= d.fraction <= 0.7 and 0.1 <= d.mix <= 0.4 for d in many)
    assert len({d.fraction for d in many}) == 200
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_draws_are_part_of_every_runs_numbers_and_stay_what_they_are() -> None:
    ranges = DegradationRange(
        "mixed", (0, 2), fraction=(0.2, 0.7), voxels=(2, 9), mix=(0.1, 0.4), sigma=(0.5, 0.6), taper=(0.1, 0.5),
        slice_axis=1, slice_thickness=(1.0, 3.0), noise=(0.01, 0.05),
    )  # fmt: skip
    rng = np.random.default_rng([7, 2])
    assert ranges.sample(rng) == Degradation(
        "mixed", (0, 2), fraction=0.33898514109679045, voxels=6, mix=0.23354593719026473, sigma=0.5933738405683259,
        taper=0.4131878055821365, slice_axis=1, slice_thickness=2.0294702697915428, noise=0.019985146729465393,
        noise_seed=4852607485697595014,
    )  # fmt: skip
    assert rng.random() == 0.24977766324156925, "what a row draws next"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Degradation("blur"), ["degradation.kind", "blur", "truncate"]),
        (Degradation("box", (3,)), ["degradation.axes", "[3]", "0..2"]),
        (Degradation("box", ()), ["degradation.axes", "[]"]),
        (Degradation("box", (1, 1)), ["degradation.axes", "different"]),
        (Degradation("truncate", fraction=1.0), ["degradation.fraction", "1.0", "empty passband"]),
        (Degradation("truncate", fraction=-0.1), ["degradation.fraction", "-0.1"]),
        (Degradation("truncate", (1, 2), (0.1, 0.2, 0.3)), ["degradation.fraction", "3 values for 2 axes"]),
        (Degradation("truncate", voxels=40), ["degradation.voxels", "40", "axis 1"]),
        (Degradation("mixed", mix=1.5), ["degradation.mix", "1.5"]),
        (Degradation("mixed", mix=float("nan")), ["degradation.mix", "nan"]),
        (Degradation("gaussian", sigma=-1.0), ["degradation.sigma", "-1.0"]),
        (Degradation("gaussian", sigma=float("inf")), ["degradation.sigma", "inf", "finite"]),
        (Degradation("gaussian", sigma=float("nan")), ["degradation.sigma", "nan", "finite"]),
        (Degradation("gaussian", base="ball"), ["degradation.base", "ball"]),
        (Degradation("box", apodisation="hann"), ["degradation.apodisation", "hann", "hamming"]),
        (Degradation("box", apodisation="tukey", taper=1.2), ["degradation.taper", "1.2", "[0, 1]"]),
        (Degradation("box", apodisation="tukey", taper=float("nan")), ["degradation.taper", "nan"]),
        (Degradation("box", slice_axis=1, slice_thickness=float("inf")), ["degradation.slice_thickness", "finite"]),
        (Degradation("box", slice_thickness=3.0), ["degradation.slice_thickness", "3.0", "degradation.slice_axis"]),
        (Degradation("box", slice_axis=1, slice_thickness=-1.0), ["degradation.slice_thickness", "-1.0"]),
        (Degradation("box", slice_axis=4), ["degradation.slice_axis", "4", "0..2"]),
        (Degradation("box", noise=-0.1, noise_seed=1), ["degradation.noise", "-0.1"]),
        (Degradation("box", noise=0.1), ["degradation.noise", "0.1", "noise_seed"]),
        (Degradation("box", noise=float("nan"), noise_seed=1), ["degradation.noise", "nan"]),
        (Degradation("box", noise_seed=-1), ["degradation.noise_seed", "-1"]),
        (Degradation("report_literal", noise=0.1, noise_seed=1), ["report_literal", "noise"]),
        (Degradation("report_literal", voxels=40), ["degradation.voxels", "40"]),
    ],
)
def test_errors_name_the_key_the_value_and_the_remedy(bad: Degradation, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check(bad, (32, 40, 36))
    assert all(word in str(error.value) for word in words)
