"""The store: lossless, atomic, and clear about damage."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import zarr

from voxelstore import StoreError, VolumeStore, convert_volume, read_volume, write_volume
from voxelstore.convert import drop_duplicates
from voxelstore.subject import write_array

SPLITS = {"train": 2, "validation": 1}


@pytest.fixture
def store(head: np.ndarray, nifti: Callable[..., Path], tmp_path: Path) -> VolumeStore:
    """Three subjects: int16 with a scale, uint8, float32 flipped."""
    store = VolumeStore.create(tmp_path / "store")
    sources = {
        "a": nifti(head, name="in/a.nii.gz", slope=0.5, intercept=4.0),
        "b": nifti((head // 4).astype(np.uint8), name="in/b.nii"),
        "c": nifti(head[:33].astype(np.float32) / 3, np.diag([-1.0, -1, 2, 1]), name="in/c.nii.gz"),
    }
    for subject, path in sources.items():
        convert_volume(path, store.path, subject, min_size=32)
    store.update_manifest(SPLITS, seed=0)
    return store


def test_voxels_are_lossless_in_their_own_type(store: VolumeStore) -> None:
    assert [store.record(s).dtype for s in store.subjects()] == ["int16", "uint8", "float32"]
    for subject in store.subjects():
        source = read_volume(store.record(subject).source)
        np.testing.assert_array_equal(store.read(subject), source.physical())
        assert store.read(subject).dtype == np.float32
        assert store.record(subject).shape == source.voxels.shape
        assert store.record(subject).sha256 == source.sha256
        np.testing.assert_allclose(store.record(subject).affine, source.affine)
        array = zarr.open_group(store.path, mode="r")[f"subjects/{subject}/voxels"]
        assert isinstance(array, zarr.Array)
        assert array.metadata.zarr_format == 3
        np.testing.assert_array_equal(array[...], source.voxels)


def test_regions_and_normalised_reads_are_parts_of_the_whole(store: VolumeStore) -> None:
    region = (slice(3, 19), slice(0, 36), slice(10, 44))
    for subject in store.subjects():
        np.testing.assert_array_equal(store.read(subject, region), store.read(subject)[region])
        expected = store.record(subject).intensity.normalise(store.read(subject))
        np.testing.assert_array_equal(store.read_normalised(subject, region), expected[region])
        assert store.foreground(subject).shape == tuple(-(-n // 8) for n in store.record(subject).shape)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_parts_join_to_the_region_and_no_block_is_decoded_twice(
    axis: int, store: VolumeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = (slice(3, 31), slice(0, 36), slice(10, 44))
    for subject in store.subjects():
        voxels = store.source(subject).voxels
        folder = store.path / "subjects" / subject / "voxels"
        shutil.rmtree(folder)
        write_array(folder, voxels, chunk=16)
    again, read = VolumeStore.open(store.path), []
    original = VolumeStore._voxels
    monkeypatch.setattr(
        VolumeStore, "_voxels", lambda self, s, region: read.append(region[axis]) or original(self, s, region)
    )
    for subject in again.subjects():
        for voxels_at_once in (1, 5000, None):
            read.clear()
            parts = list(again.normalised_parts(subject, region, axis, voxels_at_once))
            ends = [first + part.shape[axis] for first, part in parts]
            assert [first for first, _ in parts] == [region[axis].start, *ends[:-1]]
            assert ends[-1] == min(region[axis].stop, again.record(subject).shape[axis])
            joined = np.concatenate([part for _, part in parts], axis=axis)
            layers = [(r.start // 16, (r.stop - 1) // 16) for r in read]
            assert len(parts) == 1 if voxels_at_once is None else all(a == b for a, b in layers)
            assert len(set(layers)) == len(layers)
            np.testing.assert_array_equal(joined, again.read_normalised(subject, region))


def test_sizes_are_those_of_the_files_and_of_the_array(store: VolumeStore) -> None:
    for subject in store.subjects():
        stored, decoded = store.sizes(subject)
        assert decoded == store.source(subject).voxels.nbytes
        data = store.path / "subjects" / subject / "voxels" / "c" / "0" / "0" / "0"
        assert data.stat().st_size < stored < data.stat().st_size + 10_000


def test_output_goes_back_without_the_source_file(store: VolumeStore, tmp_path: Path) -> None:
    source = Path(store.record("b").source)
    before = source.read_bytes()
    source.unlink()
    write_volume(tmp_path / "back.nii", store.read("b"), like=store.source("b"))
    assert (tmp_path / "back.nii").read_bytes() == before


def test_a_store_travels_by_pickle_and_opens_again(store: VolumeStore) -> None:
    store.read("a")
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.read("a"), store.read("a"))
    assert len(pickle.dumps(store)) < 20_000
    again = VolumeStore.open(store.path)
    assert again.splits() == store.splits()
    assert again.rule == copy.rule == (SPLITS, 0)
    assert list(again.rule.splits) == list(SPLITS)
    assert sorted(map(len, again.splits().values())) == [1, 2]


def test_the_fingerprint_is_that_of_data_and_splits(store: VolumeStore) -> None:
    before = {split: store.fingerprint(split) for split in (None, "train", "validation")}
    assert len(set(before.values())) == 3
    assert VolumeStore.open(store.path).fingerprint() == before[None]
    store.remove_subject(store.subjects("train")[0])
    store.rebuild_manifest()
    assert store.fingerprint() != before[None]
    assert store.fingerprint("validation") == before["validation"]


def test_the_manifest_is_rebuilt_from_the_subjects_own_records(store: VolumeStore) -> None:
    splits, fingerprint = store.splits(), store.fingerprint()
    (store.path / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"manifest\.json is missing"):
        VolumeStore.open(store.path)
    rebuilt = VolumeStore.create(store.path)
    rebuilt.rebuild_manifest()
    assert (VolumeStore.open(store.path).splits(), rebuilt.fingerprint()) == (splits, fingerprint)


def test_a_replaced_subject_keeps_its_split(store: VolumeStore, head: np.ndarray, nifti: Callable[..., Path]) -> None:
    split = store.record("a").split
    convert_volume(nifti(head[:, ::-1].copy(), name="in/a.nii.gz"), store.path, "a", 32)
    store.update_manifest({"train": 0, "other": 9}, seed=5)
    assert store.record("a").split == split
    np.testing.assert_array_equal(store.read("a"), head[:, ::-1])
    assert [p.name for p in (store.path / "subjects").iterdir() if p.name[0] == "."] == []


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        ("schema", "schema version 99"),
        ("json", "damaged"),
        ("record", "damaged record"),
        ("data", "data file is missing"),
        ("array", "delete the subject's folder"),
        ("bits", "damaged data"),
    ],
)
def test_damage_is_an_error_and_never_zeros(damage: str, text: str, store: VolumeStore) -> None:
    manifest, data = store.path / "manifest.json", store.path / "subjects" / "a" / "voxels"
    value = json.loads(manifest.read_bytes())
    if damage == "schema":
        manifest.write_text(json.dumps({**value, "schema": 99}))
    elif damage == "json":
        manifest.write_bytes(manifest.read_bytes()[:-20])
    elif damage == "record":
        del value["subjects"]["a"]["affine"]
        manifest.write_text(json.dumps(value))
    elif damage == "data":
        (data / "c/0/0/0").unlink()
    elif damage == "array":
        (data / "zarr.json").unlink()
    else:
        content = bytearray((data / "c/0/0/0").read_bytes())
        content[len(content) // 2] ^= 1
        (data / "c/0/0/0").write_bytes(content)
    with pytest.raises(StoreError, match=text):
        VolumeStore.open(store.path).read("a")


@pytest.mark.parametrize("subject", ["", ".hidden", "a/b"])
def test_names_that_are_no_folders_are_refused(subject: str, store: VolumeStore) -> None:
    with pytest.raises(StoreError, match="cannot be a folder"):
        store.write_subject(subject, store.source("a"))
    with pytest.raises(StoreError, match="no subject"):
        store.record(subject)


WRITER = """
import sys, time
from pathlib import Path
from voxelstore.files import locked, whole_folder
root = Path(sys.argv[1])
with locked(root / ".writers.lock", shared=True), whole_folder(root / "subjects" / "half") as folder:
    (folder / "part").write_bytes(b"x" * 1000)
    print("half", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_left_is_invisible_and_cleaned_when_no_writer_is_at_work(store: VolumeStore) -> None:
    command = [sys.executable, "-c", WRITER, str(store.path)]
    paths = os.pathsep.join(p for p in sys.path if p)
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
        assert store.clean() == []  # it is at work, and is left alone
        os.kill(writer.pid, signal.SIGKILL)
    assert "half" not in store.stored_records()
    store.update_manifest(SPLITS, 0)
    assert store.subjects() == ["a", "b", "c"]
    [removed] = store.clean()
    assert removed.endswith("-half")
    assert sorted(p.name for p in (store.path / "subjects").iterdir()) == ["a", "b", "c", "zarr.json"]


def test_a_replacement_that_was_cut_short_brings_the_old_subject_back(store: VolumeStore) -> None:
    subjects = store.path / "subjects"
    (subjects / "a").rename(subjects / ".replaced-0123456789ab-a")
    assert store.clean() == []
    np.testing.assert_array_equal(VolumeStore.open(store.path).read("a"), store.read("a"))


def test_duplicates_leave_the_one_with_a_split(
    store: VolumeStore, head: np.ndarray, nifti: Callable[..., Path]
) -> None:
    twin = nifti(
        head, np.diag([1.0, 1, 3, 1]), name="in/0.nii", slope=0.5, intercept=4.0
    )  # another container and header
    convert_volume(twin, store.path, "0", 32)
    dropped = drop_duplicates(store)
    assert {name: kept for name, (_, kept) in dropped.items()} == {"0": "a"}
    assert sorted(store.stored_records()) == ["a", "b", "c"]


def test_an_image_is_known_again_in_another_type_container_and_orientation(
    store: VolumeStore, head: np.ndarray, nifti: Callable[..., Path], tmp_path: Path
) -> None:
    scaled = head * 0.5 + 4.0
    as_int16 = nib.Nifti1Image(scaled, np.diag([0.7, 0.8, 0.9, 1]))
    as_int16.set_data_dtype(np.int16)  # nibabel spreads the values over the type's range
    nib.save(as_int16, tmp_path / "in" / "spread.nii.gz")
    turned = nib.Nifti1Image(scaled.astype(np.float32), np.diag([0.7, 0.8, 0.9, 1]))
    turned = turned.as_reoriented(nib.orientations.axcodes2ornt(("P", "L", "S")))
    nib.save(turned, tmp_path / "in" / "turned.nii")
    nib.save(nib.MGHImage(scaled.astype(np.float32), np.diag([0.7, 0.8, 0.9, 1])), tmp_path / "in" / "x.mgz")
    twins = [
        nifti(scaled, name="in/float64.nii.gz"),
        nifti(scaled.astype(np.float32) * np.float32(1.000_000_1), name="in/float32.nii"),
        *(tmp_path / "in" / name for name in ("spread.nii.gz", "turned.nii", "x.mgz")),
    ]
    for path in twins:
        record = convert_volume(path, store.path, path.name.split(".")[0], 32)
        assert record.content_hash == store.record("a").content_hash, path.name
    assert {kept for _, kept in drop_duplicates(store).values()} == {"a"}
    other = head.copy()
    other[20, 20, 20] += 1
    assert convert_volume(nifti(other), store.path, "d", 32).content_hash != store.record("a").content_hash
    rng = np.random.default_rng(0)
    fine = rng.random(head.shape)  # more intensities than 16 bits have
    first = convert_volume(nifti(fine), store.path, "e", 32)
    second = convert_volume(nifti(fine.astype(np.float32)), store.path, "f", 32)
    assert first.content_hash == second.content_hash != store.record("a").content_hash


def test_a_record_without_the_hash_of_the_image_compares_by_its_voxels(
    store: VolumeStore, head: np.ndarray, nifti: Callable[..., Path]
) -> None:
    file = store.path / "subjects" / "a" / "zarr.json"
    described = json.loads(file.read_text())
    image = described["attributes"]["record"].pop("image")
    file.write_text(json.dumps(described))
    old = store.stored_records()["a"]
    assert old.content_hash == old.content
    convert_volume(nifti(head, name="in/0.nii", slope=0.5, intercept=4.0), store.path, "0", 32)
    assert [kept for _, kept in drop_duplicates(store).values()] == ["a"]
    store.note_source("a", old.source, old.size, old.mtime_ns)
    assert store.stored_records()["a"].content_hash == image


def test_a_file_that_vanishes_or_changes_under_an_open_array_is_an_error(
    store: VolumeStore, head: np.ndarray, nifti: Callable[..., Path]
) -> None:
    reader = VolumeStore.open(store.path)
    before = reader.read("a")
    data = store.path / "subjects" / "a" / "voxels" / "c" / "0" / "0" / "0"
    data.rename(data.with_name("away"))
    with pytest.raises(StoreError, match=r"voxels: its data file is missing .*convert again"):
        reader.read("a")
    data.with_name("away").rename(data)
    np.testing.assert_array_equal(reader.read("a"), before)
    (data.parents[4] / "foreground" / "c" / "0" / "0" / "0").unlink()
    with pytest.raises(StoreError, match="foreground: its data file is missing"):
        reader.foreground("a")
    convert_volume(nifti(head // 2, name="in/a.nii.gz"), store.path, "a", 32)
    with pytest.raises(StoreError, match="converted again while the store was open"):
        reader.read("a")
    # The manifest still describes the old volume, with its intensity map.
    with pytest.raises(StoreError, match=r"another file than manifest\.json describes"):
        VolumeStore.open(store.path).read_normalised("a")
    store.update_manifest(SPLITS, seed=0)
    np.testing.assert_array_equal(VolumeStore.open(store.path).read("a"), head // 2)


def test_a_store_moved_elsewhere_reads_the_same(store: VolumeStore, tmp_path: Path) -> None:
    expected = store.read("c")
    shutil.move(store.path, tmp_path / "moved")
    np.testing.assert_array_equal(VolumeStore.open(tmp_path / "moved").read("c"), expected)
