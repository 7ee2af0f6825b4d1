"""The contact sheet shows what is trained on, and the verb writes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrisr.cli.app import main
from mrisr.config import load_experiment
from mrisr.degradation import PROTOCOLS, degrade
from mrisr.tools.preview import (
    central_plane,
    contact_sheet,
    gallery_entries,
    log_spectrum,
    planned_degradations,
    shown_axis,
)


def test_rows_are_the_ends_the_draws_and_the_protocol() -> None:
    experiment = load_experiment(None, ["degradation.fraction=[0.3,0.7]", "degradation.noise=[0.0,0.02]"])
    entries = planned_degradations(experiment, samples=2)
    assert [name for name, _ in entries] == ["lower end", "drawn 1", "drawn 2", "upper end", "validation: chen2018"]
    assert entries[0][1].fraction == 0.3
    assert entries[3][1].fraction == 0.7
    assert entries[1][1] != entries[2][1]
    assert entries == planned_degradations(experiment, samples=2)
    assert entries[-1][1] == PROTOCOLS["chen2018"]
    fixed = planned_degradations(load_experiment(None), samples=3)
    assert [name for name, _ in fixed] == ["training", "validation: chen2018"]


def test_a_sheet_shows_the_degraded_plane_its_difference_and_its_spectrum() -> None:
    hr = np.random.default_rng(0).random((12, 20, 16)).astype(np.float32)
    entries = gallery_entries()
    figure = contact_sheet(hr, entries, blocks=2)
    grid = np.array(figure.axes).reshape(7, 6)
    for i, (name, degradation) in enumerate(entries, start=1):
        block, row = divmod(i, 7)
        image, difference, spectrum = grid[row, 3 * block : 3 * block + 3]
        axis = shown_axis(degradation)
        plane = central_plane(degrade(hr, degradation), axis)
        assert name in image.get_title(loc="left")
        np.testing.assert_array_equal(image.images[0].get_array(), plane)
        np.testing.assert_array_equal(difference.images[0].get_array(), plane - central_plane(hr, axis))
        assert spectrum.images[0].get_array().shape == plane.shape


def test_the_spectrum_is_dark_where_nothing_was_acquired() -> None:
    hr = np.random.default_rng(0).random((8, 32, 24)).astype(np.float32)
    image = log_spectrum(degrade(hr, PROTOCOLS["chen2018"]), 0)
    assert image.shape == (24, 32)
    assert (image[8:17, 10:23] > -5).all(), "DC in the middle, the kept band about it"
    assert max(image[0].max(), image[:, 0].max()) < -5.9


def test_the_verb_writes_the_picture(small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "preview.png"
    with pytest.raises(SystemExit) as stopped:
        main(["preview", f"data.store={small_store}", "data.min_size=32", "stream.patch_size=32",
              "validation.patch_size=32", "--output", str(target)])  # fmt: skip
    assert stopped.value.code == 0
    assert str(target) in capsys.readouterr().out
    with Image.open(target) as picture:
        assert picture.format == "PNG"
        assert picture.width > 300
