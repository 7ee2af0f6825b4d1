"""Image quality of one volume against its reference: SSIM, PSNR, NRMSE, Fourier shell correlation.

Every figure is computed on normalised intensities with `data_range` given explicitly (1.0 by default):
scikit-image's own default for floats is 2.0 (the dtype's range, -1 to 1), which inflates SSIM and adds 6 dB
to PSNR.

Cost on 256x320x320 float32, one core: about 3 s, nearly all of it SSIM. The SSIM map is made in slabs, so
that it needs about 110 MB beside its result (105 MB) instead of some ten copies of the volume (1 GB).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import fft
from skimage.metrics import normalized_root_mse, peak_signal_noise_ratio, structural_similarity

METRICS = ("ssim", "psnr", "nrmse")
HIGHER_IS_BETTER = {"ssim": True, "psnr": True, "nrmse": False}
SLAB_PLANES = 16


class Interval(NamedTuple):
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float


class ShellCorrelation(NamedTuple):
    """Correlation of two spectra per shell; `frequency` is in cycles per unit of the spacing (cycles/mm for
    mm)."""

    frequency: np.ndarray
    correlation: np.ndarray


def _check(reference: np.ndarray, estimate: np.ndarray) -> None:
    if reference.ndim != 3 or reference.shape != estimate.shape:
        raise ValueError(
            "reference and estimate must be volumes (D, H, W) of one shape, "
            f"found {reference.shape} and {estimate.shape}"
        )
    bad = estimate.size - int(np.count_nonzero(np.isfinite(estimate)))
    if bad:
        raise ValueError(f"estimate holds {bad} voxels that are not finite: the network that made it has diverged")


def ssim_map(
    reference: np.ndarray,
    estimate: np.ndarray,
    data_range: float = 1.0,
    window: int = 7,
    slab: int = SLAB_PLANES,
) -> np.ndarray:
    """Local structural similarity, scikit-image's, with a uniform window of `window`^3 voxels.

    reference, estimate: (D, H, W) float32 (float64 is computed in float64). float32 differs from float64 by
    less than 1e-4 in a voxel and 1e-6 in the mean. Made in slabs of `slab` planes with the window's reach on
    either side, which gives the same map as the whole volume at once.
    Returns (D, H, W) of the same dtype. Raises ValueError if an axis is shorter than the window.
    """
    if min(reference.shape) < window:
        raise ValueError(f"SSIM's window of {window} voxels does not fit into a volume of shape {reference.shape}")
    # A slab at an end holds at least a window, and reflection at the volume's own borders is left to
    # scikit-image.
    result = np.empty(reference.shape, np.result_type(reference.dtype, np.float32))
    planes, reach = reference.shape[0], window // 2
    for start in range(0, planes, slab):
        stop = min(start + slab, planes)
        low = max(0, min(start - reach, planes - window))
        high = min(planes, max(stop + reach, low + window))
        _, part = structural_similarity(
            reference[low:high], estimate[low:high], win_size=window, data_range=data_range, full=True
        )
        result[start:stop] = part[start - low : stop - low]
    return result


def psnr(reference: np.ndarray, estimate: np.ndarray, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB, arrays of any one shape; inf for identical ones."""
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(reference, estimate, data_range=data_range))


def _errors(reference: np.ndarray, estimate: np.ndarray, data_range: float) -> dict[str, float]:
    if not np.any(reference):
        raise ValueError("NRMSE is not defined: the reference is zero in every voxel of the region")
    nrmse = float(normalized_root_mse(reference, estimate, normalization="euclidean"))
    return {"psnr": psnr(reference, estimate, data_range), "nrmse": nrmse}


def region_metrics(
    reference: np.ndarray,
    estimate: np.ndarray,
    masks: Mapping[str, np.ndarray | None],
    data_range: float = 1.0,
    window: int = 7,
) -> dict[str, dict[str, float]]:
    """SSIM, PSNR and NRMSE of several regions, with the costly SSIM map made once.

    masks: name -> bool (D, H, W), or None for the whole volume. See `image_metrics` for the definitions.
    Returns name -> {"ssim", "psnr", "nrmse"}. Raises ValueError for shapes that differ, estimates that are
    not finite, an empty mask.
    """
    _check(reference, estimate)
    similarity = ssim_map(reference, estimate, data_range, window)
    pad = window // 2
    inner = (slice(pad, -pad or None),) * 3
    result = {}
    for name, mask in masks.items():
        if mask is None:
            ssim = similarity[inner].mean(dtype=np.float64)
            errors = _errors(reference, estimate, data_range)
        else:
            if mask.shape != reference.shape or mask.dtype != np.bool_:
                raise ValueError(f"mask {name!r} must be bool {reference.shape}, found {mask.dtype} {mask.shape}")
            if not mask.any():
                raise ValueError(f"mask {name!r} is empty: there is no voxel to measure")
            ssim = similarity[mask].mean(dtype=np.float64)
            errors = _errors(reference[mask], estimate[mask], data_range)
        result[name] = {"ssim": float(ssim), **errors}
    return result


def image_metrics(
    reference: np.ndarray,
    estimate: np.ndarray,
    mask: np.ndarray | None = None,
    data_range: float = 1.0,
    window: int = 7,
) -> dict[str, float]:
    """SSIM, PSNR (dB) and NRMSE of one volume, or of the voxels of a mask.

    reference, estimate: (D, H, W), normalised intensity. mask: bool (D, H, W); SSIM is then the mean of the
    SSIM map over the mask, PSNR and NRMSE are over its voxels. Without a mask SSIM is scikit-image's: the
    mean over the voxels whose window lies inside the volume.
    NRMSE is the euclidean convention: norm(reference - estimate) / norm(reference). PSNR of identical images
    is inf.
    Raises ValueError as `region_metrics`.
    """
    return region_metrics(reference, estimate, {"region": mask}, data_range, window)["region"]


def _shells(shape: Sequence[int], spacing: Sequence[float], width: float, count: int) -> Iterator[np.ndarray]:
    """Per plane of the half spectrum: each sample's shell index, `count` for what lies beyond the last
    shell."""
    first, second = (fft.fftfreq(n, d) for n, d in zip(shape[:2], spacing[:2], strict=True))
    last = fft.rfftfreq(shape[2], spacing[2])
    in_plane = second[:, None] ** 2 + last[None, :] ** 2
    for frequency in first:
        yield np.minimum(np.floor(np.sqrt(frequency**2 + in_plane) / width + 0.5).astype(np.int64), count)


def fourier_shell_correlation(
    reference: np.ndarray,
    estimate: np.ndarray,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    shells: int | None = None,
) -> ShellCorrelation:
    """Normalised correlation of two volumes' spectra in shells of equal spatial frequency.

    reference, estimate: (D, H, W). spacing: voxel edge per axis (mm). shells: how many, the first centred on
    zero, the last ending at the Nyquist frequency of the coarsest axis; default half the shortest axis.
    FSC = Re(sum F conj(G)) / sqrt(sum |F|^2 sum |G|^2), Harauz and van Heel 1986; nan where there is no power.
    """
    _check(reference, estimate)
    count = shells if shells is not None else min(reference.shape) // 2
    if count < 1:
        raise ValueError(f"shells must be at least 1, found {count}")
    width = 0.5 / max(spacing) / count
    spectra = fft.rfftn(reference), fft.rfftn(estimate)
    # The half spectrum holds one of each conjugate pair, except the planes k=0 and Nyquist of the last axis.
    weight = np.full(spectra[0].shape[2], 2.0)
    weight[0] = 1.0
    if reference.shape[2] % 2 == 0:
        weight[-1] = 1.0
    sums = np.zeros((3, count + 1))
    for plane, shell in enumerate(_shells(reference.shape, spacing, width, count)):
        f, g = spectra[0][plane], spectra[1][plane]
        for row, value in enumerate(((f * g.conj()).real, np.abs(f) ** 2, np.abs(g) ** 2)):
            sums[row] += np.bincount(shell.ravel(), (value * weight).ravel(), minlength=count + 1)
    power = np.sqrt(sums[1, :count] * sums[2, :count])
    correlation = np.divide(sums[0, :count], power, out=np.full(count, np.nan), where=power > 0)
    return ShellCorrelation(np.arange(count) * width, correlation)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, seed: int, level: float = 0.95, resamples: int = 10_000
) -> Interval:
    """Percentile bootstrap interval of the mean over subjects (Efron 1979).

    values: one finite figure per subject, at least one (a single one gives an interval of no width). seed: of
    a private generator. level: coverage in (0, 1). Raises ValueError for no values, values that are not
    finite, or a bad level.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"bootstrap needs one finite value per subject, found {sample}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, found {level}")
    draws = np.random.default_rng(seed).integers(0, sample.size, (resamples, sample.size))
    low, high = np.quantile(sample[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sample.mean()), float(low), float(high))
