"""The bootstrap interval against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mrisr.metrics.bootstrap import bootstrap_interval


def test_bootstrap_agrees_with_scipy_and_leaves_global_state_alone() -> None:
    values = np.random.default_rng(1).normal(30, 2, 25)
    before = np.random.get_state(legacy=True)[1].copy()
    found = bootstrap_interval(values, seed=7)
    assert (np.random.get_state(legacy=True)[1] == before).all()
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.05)
    assert found == bootstrap_interval(values, seed=7)
    assert bootstrap_interval([1.5], seed=0) == (1.5, 1.5, 1.5)
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval([1.0, np.inf], seed=0)
