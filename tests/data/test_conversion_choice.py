"""Which files a conversion takes, and what it makes of those that are odd."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from mrisr.config import ConfigError
from mrisr.config.schema import Data
from mrisr.data.conversion import ConversionSummary, LeftOut, SourceFile, convert_file, convert_folder
from voxelstore import StoreError, VolumeStore


def save(path: Path, voxels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save((nib.MGHImage if path.suffix == ".mgz" else nib.Nifti1Image)(voxels, np.diag([-1.0, 1, 1, 1])), path)
    return path


def volume(seed: int) -> np.ndarray:
    """A noisy block in nothing, (34, 36, 38) int16."""
    voxels = np.zeros((34, 36, 38), np.int16)
    voxels[8:-8, 8:-8, 8:-8] = np.random.default_rng(seed).integers(300, 900, (18, 20, 22))
    return voxels


NAMES = ["s1__sub-1", "s2__sub-1", "s2__sub-3"]


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Three volumes of two people."""
    for seed, name in enumerate(["s1/sub-1.nii.gz", "s2/sub-1.nii.gz", "s2/sub-3.mgz"]):
        save(tmp_path / "in" / name, volume(seed))
    return tmp_path / "in"


def convert(folder: Path, tmp_path: Path, pattern: str = "*") -> ConversionSummary:
    data = Data(store=tmp_path / "store", splits={"train": 1.0}, min_size=32, pattern=pattern)
    return convert_folder(folder, data)


def reasons(summary: ConversionSummary) -> dict[str, str]:
    return {Path(item.path).name: item.reason for item in summary.left_out}


@pytest.mark.usefixtures("local_ray")
def test_of_files_with_one_subject_name_the_first_usable_one_is_stored(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name, seed in {"same.mgz": 0, "same.nii": 0, "other.nii": 1, "other.nii.gz": 2, "good.nii": 3}.items():
        save(folder / name, volume(seed))
    (folder / "good.mgz").write_bytes(b"no volume")  # sorts first
    expected = {"same.nii": "duplicate", "other.nii.gz": "name-clash", "good.mgz": "unreadable"}
    first = convert(folder, tmp_path)
    assert (sorted(first.converted), reasons(first)) == (["good", "other", "same"], expected)
    assert f"the same image as {folder}/same.mgz" in "".join(first.lines())
    again = convert(folder, tmp_path)
    assert (again.converted, sorted(again.unchanged), reasons(again)) == ([], ["good", "other", "same"], expected)
    save(folder / "good.mgz", volume(3))  # mended, but the stored subject keeps its file
    assert reasons(convert(folder, tmp_path)) == {**expected, "good.mgz": "duplicate"}


@pytest.mark.usefixtures("local_ray")
def test_a_name_acts_on_no_terminal(tmp_path: Path) -> None:
    save(tmp_path / "in" / "good.nii", volume(0))
    (tmp_path / "in" / "a\n\x1b[2Jb\x07.nii").write_bytes(b"no volume")
    summary = convert(tmp_path / "in", tmp_path)
    [line] = [line for line in summary.lines() if "left out (" in line]
    assert r"a\n\x1b[2Jb\x07.nii" in line
    assert all(text.isprintable() for text in summary.lines())


@pytest.mark.usefixtures("local_ray")
def test_a_file_that_nothing_can_be_made_of_does_not_stop_the_others(cohort: Path, tmp_path: Path) -> None:
    """Three neighbours among float32's values: not constant, but no histogram has room between them."""
    steps = 2**30 + 128 * (np.indices((40, 40, 40)).sum(axis=0) % 3)
    save(cohort / "flat.nii", steps.astype(np.int32))
    summary = convert(cohort, tmp_path)
    assert reasons(summary) == {"flat.nii": "unusable"}
    assert summary.converted == NAMES
    assert reasons(convert(cohort, tmp_path)) == {"flat.nii": "unusable"}


def test_a_file_beyond_the_memory_is_left_out_and_a_damaged_store_stops_the_task(tmp_path: Path) -> None:
    store = VolumeStore.create(tmp_path / "store")
    huge = tmp_path / "sub-1.nii"
    with huge.open("wb") as file:
        file.truncate(2**41)  # no block of it is on the disk
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**40, limits[1]))
    try:
        outcome = convert_file(SourceFile(huge, "sub-1", "sub-1", None), store.path, 32)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert isinstance(outcome, LeftOut)
    assert outcome.reason == "too-large"
    good = save(tmp_path / "sub-2.nii", volume(0))
    (store.path / "manifest.json").unlink()
    with pytest.raises(StoreError, match="manifest"):
        convert_file(SourceFile(good, "sub-2", "sub-2", None), store.path, 32)


def test_a_disk_that_takes_no_more_is_a_line_that_ends_the_conversion(tmp_path: Path) -> None:
    store = VolumeStore.create(tmp_path / "store")
    good = save(tmp_path / "sub-1.nii", volume(0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StoreError, match=rf"^{tmp_path}.*: File too large; raise the limit.*$"):
            convert_file(SourceFile(good, "sub-1", "sub-1", None), store.path, 32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (store.path / "subjects").iterdir()] == ["zarr.json"]


def deep_folder(root: Path) -> None:
    """A folder of more than 4096 characters, which nobody can list by its path."""
    here = os.open(root, os.O_RDONLY)
    for _ in range(18):
        os.mkdir("d" * 240, dir_fd=here)
        below = os.open("d" * 240, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


@pytest.mark.usefixtures("local_ray")
def test_what_cannot_be_listed_or_opened_is_left_out_and_the_rest_converted(cohort: Path, tmp_path: Path) -> None:
    deep_folder(cohort)
    os.mkfifo(cohort / "pipe.nii.gz")
    (cohort / "self.nii").symlink_to(cohort / "self.nii")
    odd = save(cohort / "x.nii.gz", volume(7)).rename(Path(os.fsdecode(bytes(cohort) + b"/Jos\xe9.nii.gz")))
    summary = convert(cohort, tmp_path)
    left_out = {item.path.name[:9]: item.message for item in summary.left_out}
    assert sorted(left_out) == ["ddddddddd", "pipe.nii.", "self.nii"]
    assert "File name too long" in left_out["ddddddddd"]
    assert "no regular file" in left_out["pipe.nii."]
    assert summary.converted[0].startswith("Jos--")
    assert summary.converted[1:] == NAMES
    assert summary.exit_code == 3
    again = convert(cohort, tmp_path)
    assert (again.converted, len(again.unchanged), len(again.left_out)) == ([], 4, 3)
    assert VolumeStore.open(tmp_path / "store").record(summary.converted[0]).source == str(odd)


@pytest.mark.usefixtures("local_ray")
def test_an_older_store_gets_the_hash_of_the_image_when_it_is_converted_next(cohort: Path, tmp_path: Path) -> None:
    convert(cohort, tmp_path)
    store = VolumeStore.open(tmp_path / "store")
    expected = {subject: store.record(subject).content_hash for subject in NAMES}
    for subject in NAMES:
        file = store.path / "subjects" / subject / "zarr.json"
        described = json.loads(file.read_text())
        del described["attributes"]["record"]["image"]
        file.write_text(json.dumps(described))
    save(cohort / "copy.nii.gz", volume(0).astype(np.float64))
    summary = convert(cohort, tmp_path)
    assert (summary.unchanged, reasons(summary)) == (NAMES, {"copy.nii.gz": "duplicate"})
    store = VolumeStore.open(tmp_path / "store")
    assert {subject: store.record(subject).content_hash for subject in NAMES} == expected


@pytest.mark.usefixtures("local_ray")
def test_a_store_is_tried_before_the_work(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="the folder of the volumes"):
        convert_folder(cohort, Data(store=cohort))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**10))
    with pytest.raises(StoreError, match=r"data\.store = .*store: .*MiB of free space.*; free some space"):
        convert(cohort, tmp_path)
    assert VolumeStore.open(tmp_path / "store").stored_records() == {}


@pytest.mark.usefixtures("local_ray")
def test_a_pattern_chooses_and_what_it_leaves_out_later_is_named(cohort: Path, tmp_path: Path) -> None:
    assert convert(cohort, tmp_path, pattern="*.mgz").converted == ["s2__sub-3"]
    summary = convert(cohort, tmp_path, pattern="*sub-1*")
    assert (summary.converted, summary.orphaned) == (["s1__sub-1", "s2__sub-1"], ["s2__sub-3"])
    assert any("new data.store" in line and "s2__sub-3" in line for line in summary.lines())
    with pytest.raises(FileNotFoundError, match=r"data\.pattern = '\*T2w\*': fits none of the 3 volumes"):
        convert(cohort, tmp_path, pattern="*T2w*")


@pytest.mark.usefixtures("local_ray")
def test_a_store_is_split_by_one_rule(cohort: Path, tmp_path: Path) -> None:
    counts = {"validation": 1, "train": 1}
    data = Data(store=tmp_path / "store", min_size=32)
    convert_folder(cohort, data.model_copy(update={"splits": counts, "split_seed": 3}))
    before = VolumeStore.open(tmp_path / "store")
    assert before.rule == (counts, 3)
    save(cohort / "sub-9.nii", volume(9))
    for asked, seed in (({"train": 2}, None), (None, 4)):
        with pytest.raises(
            ConfigError, match=r"was split by data\.splits='\{validation: 1, train: 1\}' .*data\.store="
        ):
            convert_folder(cohort, data.model_copy(update={"splits": asked, "split_seed": seed}))
    summary = convert_folder(cohort, data)
    assert (summary.converted, summary.unassigned) == (["sub-9"], ["sub-9"])
    after = VolumeStore.open(tmp_path / "store")
    assert (after.rule, after.splits()) == (before.rule, before.splits())


@pytest.mark.usefixtures("local_ray")
def test_one_folder_for_everybody_is_told(tmp_path: Path) -> None:
    for seed in range(2):
        save(tmp_path / "in" / "images" / f"p{seed}.nii", volume(seed))
    assert any("taken for one person's" in line for line in convert(tmp_path / "in", tmp_path).lines())
