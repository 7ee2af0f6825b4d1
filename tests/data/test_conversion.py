"""Conversion as Ray tasks: real files, a real store, a real kill -9."""

from __future__ import annotations

import gzip
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import ray
from rich.console import Console

from mrisr.config.schema import Data
from mrisr.data.conversion import ConversionSummary, convert_folder
from voxelstore import VolumeStore, convert_volume, read_volume

SPLITS = {"train": 0.5, "validation": 0.25, "test": 0.25}


@pytest.fixture(scope="module")
def ray_local(local_ray: None) -> str:
    """The address of the tests' local Ray, for processes of their own."""
    return str(ray.get_runtime_context().gcs_address)


def volume(seed: int, shape: tuple[int, ...] = (40, 36, 44)) -> np.ndarray:
    """A noisy block in a dark background, int16."""
    rng = np.random.default_rng(seed)
    voxels = np.abs(3 * rng.standard_normal(shape))
    voxels[8:-8, 8:-8, 8:-8] += 500 + 60 * rng.standard_normal(voxels[8:-8, 8:-8, 8:-8].shape)
    return voxels.astype(np.int16)


def save(path: Path, voxels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save((nib.MGHImage if path.suffix == ".mgz" else nib.Nifti1Image)(voxels, np.diag([-1.0, 1, 1, 1])), path)
    return path


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Four good volumes, in two folders and three formats."""
    folder = tmp_path / "in"
    for seed, name in enumerate(["s1/sub-1.nii.gz", "s1/sub-2.nii", "s2/sub-1.nii.gz", "s2/sub-3.mgz"]):
        save(folder / name, volume(seed))
    return folder


def convert(folder: Path, tmp_path: Path, min_size: int = 32, verify: bool = False) -> ConversionSummary:
    data = Data(store=tmp_path / "store", splits=SPLITS, min_size=min_size)
    return convert_folder(folder, data, verify=verify)


def reasons(summary: ConversionSummary) -> dict[str, str]:
    return {Path(item.path).name: item.reason for item in summary.left_out}


NAMES = ["s1__sub-1", "s1__sub-2", "s2__sub-1", "s2__sub-3"]


def test_a_second_run_converts_nothing_and_reads_nothing(ray_local: str, cohort: Path, tmp_path: Path) -> None:
    first = convert(cohort, tmp_path)
    assert (first.converted, first.unchanged, first.left_out, first.exit_code) == (NAMES, [], [], 0)
    assert sorted(first.splits) == ["test", "train", "validation"]
    assert "4 volumes of 3 people; all volumes of a person share a split" in first.lines()
    store = VolumeStore.open(tmp_path / "store")
    assert store.record("s1__sub-1").split == store.record("s2__sub-1").split
    path = cohort / "s1" / "sub-2.nii"
    status, before = path.stat(), path.read_bytes()
    path.write_bytes(bytes(len(before)))  # would be an error, were it read
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = convert(cohort, tmp_path)
    assert (second.converted, second.unchanged, second.exit_code) == ([], NAMES, 0)
    assert reasons(convert(cohort, tmp_path, verify=True)) == {"sub-2.nii": "unreadable"}
    path.write_bytes(before)  # a new time and the old content: hashed, not decoded
    assert convert(cohort, tmp_path).unchanged == NAMES
    recorded = VolumeStore.open(tmp_path / "store").record("s1__sub-2")
    assert recorded.mtime_ns == path.stat().st_mtime_ns != status.st_mtime_ns


def test_a_changed_source_is_converted_again_and_nobody_moves(ray_local: str, cohort: Path, tmp_path: Path) -> None:
    convert(cohort, tmp_path)
    before = VolumeStore.open(tmp_path / "store")
    save(cohort / "s1" / "sub-2.nii", volume(77))
    save(cohort / "s0" / "new.nii.gz", volume(78))
    summary = convert(cohort, tmp_path)
    assert summary.converted == ["s0__new", "s1__sub-2"]
    after = VolumeStore.open(tmp_path / "store")
    np.testing.assert_array_equal(after.read("s1__sub-2"), read_volume(cohort / "s1" / "sub-2.nii").physical())
    assert {s: after.record(s).split for s in NAMES} == {s: before.record(s).split for s in NAMES}
    assert before.fingerprint() != after.fingerprint()


def test_each_bad_volume_is_left_out_with_its_reason_and_the_rest_converted(
    ray_local: str, cohort: Path, tmp_path: Path
) -> None:
    with_nan = volume(20).astype(np.float32)
    with_nan[9, 9, 9] = np.nan
    bad = cohort / "bad"
    save(bad / "constant.nii.gz", np.full((40, 40, 40), 7, np.int16))
    save(bad / "nan.nii.gz", with_nan)
    save(bad / "4d.nii.gz", np.stack([volume(21)] * 2, axis=-1))
    save(bad / "small.nii.gz", volume(22, (40, 40, 30)))
    cut = save(bad / "cut.nii.gz", volume(23))
    cut.write_bytes(cut.read_bytes()[:20_000])
    (bad / "text.nii").write_text("no volume at all")
    (bad / "link.nii").symlink_to(bad / "nowhere.nii")
    save(bad / "z_copy.mgz", np.asarray(nib.load(cohort / "s1/sub-1.nii.gz").dataobj))  # another container
    save(bad / "clash.nii", volume(24))
    save(bad / "clash.mgz", volume(25))
    save(cohort / "single.nii.gz", volume(26)[..., None])
    expected = {
        "constant.nii.gz": "constant",
        "nan.nii.gz": "not-finite",
        "4d.nii.gz": "not-3d",
        "small.nii.gz": "too-small",
        "cut.nii.gz": "truncated",
        "text.nii": "unreadable",
        "link.nii": "unreadable",
        "sub-1.nii.gz": "duplicate",  # bad/z_copy sorts first
        "clash.nii": "name-clash",
    }
    console = Console(file=io.StringIO(), force_terminal=True)
    summary = convert_folder(cohort, Data(store=tmp_path / "store", splits=SPLITS, min_size=32), console=console)
    assert reasons(summary) == expected
    assert summary.converted == ["bad__clash", "bad__z_copy", "s1__sub-2", "s2__sub-1", "s2__sub-3", "single"]
    assert summary.exit_code == 3
    assert "15/15" in console.file.getvalue()  # type: ignore[attr-defined]
    assert all(any(name in line for line in summary.lines()) for name in expected)
    assert "6 converted, 0 unchanged, 9 left out" in summary.lines()[0]
    again = convert(cohort, tmp_path)
    assert (again.converted, len(again.unchanged), reasons(again), again.exit_code) == ([], 6, expected, 3)
    lower = convert(cohort, tmp_path, min_size=30)
    assert lower.converted == ["bad__small"]
    (bad / "z_copy.mgz").unlink()
    save(cohort / "s1" / "sub-1.nii.gz", volume(0))
    assert reasons(convert(cohort, tmp_path, min_size=30))["sub-1.nii.gz"] == "duplicate"


def test_a_duplicate_of_a_stored_subject_is_left_out_whatever_its_name(
    ray_local: str, cohort: Path, tmp_path: Path
) -> None:
    convert(cohort, tmp_path)
    save(cohort / "a_first.nii", volume(1))
    summary = convert(cohort, tmp_path)
    assert reasons(summary) == {"a_first.nii": "duplicate"}
    assert summary.unchanged == NAMES
    assert "s1__sub-2" in summary.left_out[0].message


def test_another_folder_cannot_overwrite_a_subject(ray_local: str, cohort: Path, tmp_path: Path) -> None:
    convert(cohort, tmp_path)
    save(tmp_path / "other" / "s1" / "sub-2.nii", volume(50))
    save(tmp_path / "other" / "s9.nii", volume(51))
    summary = convert(tmp_path / "other", tmp_path)
    assert reasons(summary) == {"sub-2.nii": "name-clash"}
    assert summary.converted == ["s9"]
    store = VolumeStore.open(tmp_path / "store")
    assert len(store.subjects()) == 5
    np.testing.assert_array_equal(store.read("s1__sub-2"), read_volume(cohort / "s1" / "sub-2.nii").physical())


def test_subjects_beyond_the_counts_are_named_in_the_summary(ray_local: str, cohort: Path, tmp_path: Path) -> None:
    data = Data(store=tmp_path / "store", splits={"train": 1, "test": 1}, min_size=32)
    summary = convert_folder(cohort, data)
    store = VolumeStore.open(tmp_path / "store")
    assert len({store.record(subject).group for subject in summary.unassigned}) == 1  # of three people
    assert any("in no split" in line and summary.unassigned[0] in line for line in summary.lines())
    assert summary.exit_code == 0


def test_what_cannot_start_says_why(ray_local: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no"):
        convert(tmp_path, tmp_path)
    with pytest.raises(ValueError, match=r"splits\.train"):
        convert_folder(tmp_path, Data(store=tmp_path / "store", splits={"train": 0.9, "test": 0.3}))
    assert not (tmp_path / "store").exists()


DRIVER = """
import sys, ray
from mrisr.config.schema import Data
from mrisr.data.conversion import convert_folder
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
data = Data(store=sys.argv[3], splits={"train": 0.8, "test": 0.2}, min_size=32)
convert_folder(sys.argv[2], data)
"""


def test_a_conversion_killed_by_kill_9_goes_on_where_it_was(ray_local: str, tmp_path: Path) -> None:
    folder, target = tmp_path / "in", tmp_path / "store"
    for seed in range(40):
        save(folder / f"sub-{seed:02d}.nii.gz", volume(seed))
    paths = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-c", DRIVER, ray_local, str(folder), str(target)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}) as driver:
        deadline = time.monotonic() + 60
        while len(list(target.glob("subjects/sub-*"))) < 3:
            assert driver.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        driver.send_signal(signal.SIGKILL)
    # Its workers die with it, some time later: until then they may finish what they hold.
    settled = time.monotonic() + 3
    done = -1
    while time.monotonic() < settled or len(list(target.glob("subjects/sub-*"))) != done:
        done = len(list(target.glob("subjects/sub-*")))
        time.sleep(0.2)
    assert 3 <= done < 40
    assert VolumeStore.open(target).subjects() == []  # readers see nothing that is not whole and listed
    whole = VolumeStore.open(target).stored_records()
    summary = convert_folder(folder, Data(store=target, splits={"train": 0.8, "test": 0.2}, min_size=32))
    assert len(summary.unchanged) == len(whole) == done
    assert len(summary.converted) == 40 - done
    assert summary.splits == {"test": 8, "train": 32}
    # The result is that of a conversion that nobody killed.
    reference = VolumeStore.create(tmp_path / "reference")
    for path in sorted(folder.iterdir()):
        convert_volume(path, reference.path, path.name.split(".")[0], 32)
    reference.update_manifest({"train": 0.8, "test": 0.2}, 0)
    store = VolumeStore.open(target)
    assert store.fingerprint() == reference.fingerprint()
    for subject in store.subjects():
        np.testing.assert_array_equal(store.read(subject), reference.read(subject))
    assert [p.name for p in (target / "subjects").iterdir() if p.name[0] == "."] == []


def test_the_real_volumes_are_converted(ray_local: str, real_volumes: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save(folder / "synthetic.nii.gz", volume(0, (64, 70, 66)))
    for path in real_volumes:
        (folder / path.name).symlink_to(path)
    summary = convert(folder, tmp_path, min_size=64)
    assert summary.exit_code == 0
    assert len(summary.converted) == 1 + len(real_volumes)
    store = VolumeStore.open(tmp_path / "store")
    for path in real_volumes:
        expected = nib.as_closest_canonical(nib.load(path)).get_fdata(dtype=np.float32)
        np.testing.assert_allclose(store.read(path.name.split(".")[0]), expected, rtol=1e-6)
        raw = gzip.decompress(path.read_bytes())
        assert store.source(path.name.split(".")[0]).layout.prefix == raw[:352]
