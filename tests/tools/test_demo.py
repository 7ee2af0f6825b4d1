"""The demo's own parts: a home per data folder, and a low-resolution file to try the model on."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mrisr.config import ConfigError
from mrisr.degradation import PROTOCOLS, degrade
from mrisr.tools.demo import home_of, run_demo, write_low_resolution
from voxelstore import VolumeStore


def test_every_data_folder_has_a_home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/data", "b/data"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "data")
    home = tmp_path / "demo"
    folders = [home_of(Path(text), home) for text in ("..", ".", "../../a/data", str(tmp_path / "b" / "data"), "/")]
    assert folders[1] == folders[2]
    assert len(set(folders)) == 4
    assert all(folder.parent == home for folder in folders)
    assert folders[1].name.startswith("data-")
    assert home_of(None, home) == home / "icbm152"


def test_data_that_hold_the_home_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--data .* holds --home"):
        run_demo(tmp_path, tmp_path / "demo", [])
    assert not (tmp_path / "demo").exists()


def test_the_low_resolution_file_is_the_protocols_input_in_the_sources_space(small_store: Path, tmp_path: Path) -> None:
    store = VolumeStore.open(small_store)
    [subject] = store.subjects("test")
    write_low_resolution(store, subject, "chen2018", tmp_path / "low.nii.gz")
    low, source = nib.load(tmp_path / "low.nii.gz"), nib.load(store.record(subject).source)
    assert (low.shape, low.get_data_dtype()) == (source.shape, source.get_data_dtype())
    np.testing.assert_array_equal(low.affine, source.affine)
    record = store.record(subject).intensity
    expected = record.restore(degrade(store.read_normalised(subject), PROTOCOLS["chen2018"]))
    assert np.abs(low.get_fdata() - expected).max() <= 0.51  # int16
    assert np.abs(low.get_fdata() - source.get_fdata()).max() > 10
