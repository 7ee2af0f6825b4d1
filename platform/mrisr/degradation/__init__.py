"""Low-resolution volumes made in k-space: a real, even weight on the spectrum of the whole volume.

Every degradation is `lr = irfftn(rfftn(hr) * W)`, optionally followed by receiver noise and a magnitude. Making W
(`spectral_weight`), applying it (`degrade`) and drawing its parameters (`DegradationRange.sample`) are separate, pure
steps. W is even in k, so the result is real. The intensity scale of `hr` is kept. It may import numpy and scipy only.

Notation: N is an axis' length, k its integer frequency (-N/2 < k <= N/2), f the fraction of the axis that is zeroed.

| kind            | W                                                                                                |
|-----------------|--------------------------------------------------------------------------------------------------|
| truncate        | 0 where |k| >= (1-f)N/2 on ANY chosen axis (Chen et al. 2018, arXiv:1803.01417)                  |
| box             | 0 only where that holds on ALL chosen axes: the corner of k-space about Nyquist                  |
| shift           | 0 where |k| <= fN/2 on ALL chosen axes: `box` about DC instead of Nyquist, a high-pass           |
| shift_fft_shift | an alias of `shift`: shifting the image before and after changes nothing on even axes            |
| mixed           | (1-a) W_box + a W_shift                                                                          |
| gaussian        | W_base * exp(-2 pi^2 sigma^2 |nu|^2), nu = k/N in cycles per voxel, base `box` or `truncate`     |
| slices          | not a weight: thick slices 1/(1-f) voxels apart, interpolated (`slices.py`)                      |
| report_literal  | not a weight: the project report's code as it runs, for comparison only (`report_literal.py`)    |

Effects of real acquisitions combine with any kind that is a weight; all are off by default: a taper of the acquired
band (`apodisation`), a Gaussian slice profile along one axis (`slice_axis`, `slice_thickness`), and complex Gaussian
noise before the magnitude (`noise`, which gives Rician noise).
"""

from mrisr.degradation.applying import apply_weight, degrade, degrader, enforce_consistency
from mrisr.degradation.checks import check, describe
from mrisr.degradation.kinds import BASES, KINDS, Kind
from mrisr.degradation.parameters import APODISATIONS, Degradation
from mrisr.degradation.ranges import PROTOCOLS, DegradationRange
from mrisr.degradation.spectrum import brightness, kept_band, noise_weight, spectral_weight

__all__ = [
    "APODISATIONS", "BASES", "KINDS", "PROTOCOLS", "Degradation", "DegradationRange", "Kind", "apply_weight",
    "brightness", "check", "degrade", "degrader", "describe", "enforce_consistency", "kept_band", "noise_weight",
    "spectral_weight",
]  # fmt: skip
