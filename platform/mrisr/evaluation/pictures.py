"""Pictures: low, super-resolved, high and the error, side by side; histograms of the critic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mrisr.metrics.psnr import peak_signal_to_noise

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def central_slice(volume: np.ndarray) -> np.ndarray:
    """The central axial slice of (D, H, W) in RAS+ as an image (H, D), anterior up, right on the right."""
    return volume[:, :, volume.shape[2] // 2].T[::-1]


def validation_figure(
    lr: np.ndarray,
    sr: np.ndarray,
    hr: np.ndarray,
    *,
    title: str = "",
    figures: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """Low | super-resolved | high | error of the super-resolved.

    lr, sr, hr: (D, H, W) normalised, RAS+ (the central axial slice is shown), or that slice as an image. The first
    three share one grey scale, percentiles 0.5 to 99.5 of hr. The error's scale ends at the 99.5th percentile of the
    input's error, so that colours compare. figures: {"low": {"psnr": ...}, "super-resolved": {...}}, shown under the
    titles; default: the PSNR of the slice.
    """
    low, estimate, high = (central_slice(volume) if volume.ndim == 3 else volume for volume in (lr, sr, hr))
    if not low.shape == estimate.shape == high.shape:
        raise ValueError(f"pictures need one shape, found {low.shape}, {estimate.shape}, {high.shape}")
    darkest, brightest = (float(q) for q in np.percentile(high, [0.5, 99.5]))
    error_range = max(float(np.percentile(np.abs(low - high), 99.5)), 1e-6)
    numbers = figures or {
        name: {"slice PSNR": peak_signal_to_noise(high, image)}
        for name, image in (("low", low), ("super-resolved", estimate))
    }
    figure = _empty_figure(16, 4.6 * max(0.6, high.shape[0] / high.shape[1]))
    panels = {"low": low, "super-resolved": estimate, "high": high, "error": estimate - high}
    for axes, (name, image) in zip(figure.subplots(1, 4), panels.items(), strict=True):
        if name == "error":
            shown = axes.imshow(image, cmap="RdBu_r", vmin=-error_range, vmax=error_range)
            figure.colorbar(shown, ax=axes, shrink=0.8)
        else:
            axes.imshow(image, cmap="gray", vmin=darkest, vmax=max(brightest, darkest + 1e-6))
        caption = "  ".join(f"{key} {value:.4g}" for key, value in numbers.get(name, {}).items())
        axes.set_title(f"{name}\n{caption}" if caption else name, fontsize=11)
        axes.set_axis_off()
    if title:
        figure.suptitle(title)
    return figure


def critic_figure(
    weights: Mapping[str, np.ndarray], norms: Sequence[float], clip: float | None
) -> tuple[Figure, dict[str, float]]:
    """Histograms of the critic's weights and of its gradient's norm at the interpolates; and statistics of the weights.

    weights: name -> array. norms: the mean of each critic step since the last picture; the gradient penalty pulls them
    to 1. clip: the bound of weight clipping, or None. The statistics are `std`, `max_abs` and `at_bound`: the share of
    weights within 1 % of the bound or, without one, of the largest absolute value.
    """
    values = np.concatenate([np.asarray(value, dtype=np.float32).ravel() for value in weights.values()])
    largest = float(np.abs(values).max())
    bound = clip if clip is not None else largest
    figure = _empty_figure(11, 4)
    left, right = figure.subplots(1, 2)
    left.hist(values, bins=101, log=True)
    left.set_title(f"{values.size:,} critic weights" + ("" if clip is None else f", clipped to +-{clip:g}"))
    right.hist(norms, bins=50)
    right.axvline(1.0, color="black", linewidth=1)
    right.set_title(f"norm of the critic's gradient at interpolates, {len(norms):,} steps")
    at_bound = float(np.mean(np.abs(values) >= 0.99 * bound)) if bound else 0.0
    return figure, {"std": float(values.std()), "max_abs": largest, "at_bound": at_bound}


def _empty_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, outside pyplot's global state."""
    # Lazy: every training worker imports this module, and matplotlib takes half a second.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
