"""The best single factor for an estimate, so that a network is not rewarded for multiplying."""

from __future__ import annotations

import numpy as np

STEPS = 2**16


def least_squares_gain(reference: np.ndarray, estimate: np.ndarray) -> float:
    """The factor that brings the estimate closest to the reference, over arrays of one shape; 1 for an estimate of
    zeros.

    A degradation with W(0) < 1 dims its output, so a network that only multiplies would beat the plain input. Rounding
    to steps of 2^-16 makes the gain equal on every machine, and exactly 1 for a truncation.
    """
    power = np.sum(np.square(estimate, dtype=np.float64))
    product = np.sum(np.multiply(reference, estimate, dtype=np.float64))
    return round(float(product / power) * STEPS) / STEPS if power > 0 else 1.0
