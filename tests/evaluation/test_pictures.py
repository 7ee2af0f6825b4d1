"""The validation figure is one of its own, and shows the slice it says."""

from __future__ import annotations

import numpy as np
import pytest

from mrisr.evaluation.pictures import central_slice, critic_figure, validation_figure


def test_panels_titles_and_scales() -> None:
    hr = np.random.default_rng(0).random((20, 24, 18)).astype(np.float32)
    lr, sr = hr + np.float32(0.1), hr - np.float32(0.05)
    figure = validation_figure(lr, sr, hr, title="sub-01", figures={"low": {"psnr": 20.0}})
    panels = [axes for axes in figure.axes if axes.images and axes.get_title()]
    assert [axes.get_title().partition("\n")[0] for axes in panels] == ["low", "super-resolved", "high", "error"]
    assert "psnr 20" in panels[0].get_title()
    assert len({axes.images[0].get_clim() for axes in panels[:3]}) == 1
    np.testing.assert_allclose(panels[3].images[0].get_array(), np.full((24, 20), -0.05), atol=1e-6)
    assert panels[3].images[0].get_clim() == pytest.approx((-0.1, 0.1), abs=1e-5)
    defaults = validation_figure(lr, sr, hr)
    assert "slice PSNR 20" in defaults.axes[0].get_title()


def test_pyplot_knows_nothing_of_it() -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    validation_figure(*[np.ones((8, 8, 8), np.float32)] * 3)
    assert plt.get_fignums() == before


def test_orientation_anterior_up_right_on_the_right() -> None:
    volume = np.zeros((6, 8, 5))
    volume[5, 7, 2] = 1.0  # right, anterior, centre
    image = central_slice(volume)
    assert image.shape == (8, 6)
    assert image[0, 5] == 1.0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        validation_figure(np.ones((8, 8, 8)), np.ones((8, 9, 8)), np.ones((8, 8, 8)))


def test_the_critics_histograms_and_the_spread_of_its_weights() -> None:
    weights = {"a": np.array([[0.01, -0.01], [0.005, 0.0]]), "b": np.array([0.00995])}
    figure, spread = critic_figure(weights, [0.9, 1.1, 1.0], clip=0.01)
    assert [axes.get_title() for axes in figure.axes] == [
        "5 critic weights, clipped to +-0.01", "norm of the critic's gradient at interpolates, 3 steps",
    ]  # fmt: skip
    assert spread["at_bound"] == pytest.approx(3 / 5)
    assert spread["max_abs"] == pytest.approx(0.01)
    assert critic_figure(weights, [], clip=None)[1]["at_bound"] == pytest.approx(3 / 5)
