"""Which files are volumes, what they are called, and whose they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.conftest import unprivileged

from voxelstore import VolumeError, find_volumes, subject_id
from voxelstore.convert import person_of


def test_volumes_are_found_and_named_by_their_place(tmp_path: Path) -> None:
    files = [
        "s1/sub-01_T1w.nii.gz",
        "s2/sub-01_T1w.nii.gz",
        "x.MGZ",
        "y.nii",
        "my scan.nii",
        ".a.nii",
        ".h/b.nii",
        "r.txt",
    ]
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_volumes(tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in found] == [
        "my scan.nii",
        "s1/sub-01_T1w.nii.gz",
        "s2/sub-01_T1w.nii.gz",
        "x.MGZ",
        "y.nii",
    ]
    ids = [subject_id(p, tmp_path) for p in found]
    assert ids[1:] == ["s1__sub-01_T1w", "s2__sub-01_T1w", "x", "y"]
    assert ids[0].startswith("my-scan-")
    assert subject_id(tmp_path / "s1/sub-01_T1w.nii.gz") == "sub-01_T1w"
    assert subject_id("my scan.nii") != subject_id("my+scan.nii")
    with pytest.raises(NotADirectoryError, match="no such folder"):
        find_volumes(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("path", "person"),
    [
        ("sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "sub-01"),
        ("sub-01/ses-2/anat/x.nii", "sub-01"),
        ("siteA_sub-02_T1w.nii", "sub-02"),
        ("100307/T1w/T1w_acpc.nii.gz", "100307"),
        ("mysub-01.nii", "mysub-01"),
        ("alone.mgz", "alone"),
    ],
)
def test_a_person_is_known_by_the_path(path: str, person: str, tmp_path: Path) -> None:
    assert person_of(tmp_path / path, tmp_path) == person


def test_a_pattern_chooses_files_and_links_to_folders_are_followed(tmp_path: Path) -> None:
    for name in ("in/p1/T1w/T1w.nii", "in/p1/T1w/mask.nii", "in/p2/T2w.nii", "out/p3/T1w.nii", "out/p3/T2w.nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    root = tmp_path / "in"
    for link, target in (("linked", "out"), ("again", "out/p3"), ("self", "in/p1"), ("up", ".")):
        (root / link).symlink_to(tmp_path / target)
    (tmp_path / "out" / "back").symlink_to(tmp_path / "in")

    def found(pattern: str = "*") -> list[str]:
        return [p.relative_to(root).as_posix() for p in find_volumes(root, pattern)]

    assert found("*T1w*") == ["again/T1w.nii", "linked/p3/T1w.nii", "p1/T1w/T1w.nii"]
    assert found("p?/*") == ["p1/T1w/T1w.nii", "p1/T1w/mask.nii", "p2/T2w.nii"]
    assert len(found()) == 7  # 'again' comes before 'linked', which holds it
    (root / "again").unlink()
    assert found() == ["linked/p3/T1w.nii", "linked/p3/T2w.nii", "p1/T1w/T1w.nii", "p1/T1w/mask.nii", "p2/T2w.nii"]


def test_a_folder_without_permission_is_told() -> None:
    with unprivileged() as root:
        (root / "a.nii").touch()
        (root / "locked").mkdir(0o000)
        told: list[VolumeError] = []
        assert find_volumes(root, on_error=told.append) == [root / "a.nii"]
        assert [(e.path, e.reason) for e in told] == [(str(root / "locked"), "unreadable")]
        with pytest.raises(VolumeError, match=r"locked: cannot be listed \(Permission denied\); check its permissions"):
            find_volumes(root)
        (root / "locked").chmod(0o700)


def test_names_that_are_no_text_get_subjects_of_their_own(tmp_path: Path) -> None:
    for name in (b"Jos\xe9.nii.gz", "José.nii.gz".encode(), b"Jos\xe8.nii.gz"):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).touch()
    found = find_volumes(tmp_path)
    names = {subject_id(path, tmp_path) for path in found}
    assert len(names) == 3
    assert all(name.isascii() and person_of(path, tmp_path).isascii() for name, path in zip(names, found, strict=True))


def test_bids_selection_takes_images_of_one_kind_and_no_derived_ones(tmp_path: Path) -> None:
    wanted = ["sub-1/anat/sub-1_desc-preproc_T1w.nii.gz", "sub-2/ses-1/anat/sub-2_ses-1_run-2_T1w.nii"]
    others = [
        "sub-1/anat/sub-1_desc-brain_mask.nii.gz",
        "sub-1/anat/sub-1_dseg.nii.gz",
        "sub-1/anat/sub-1_space-MNI152NLin6Asym_desc-preproc_T1w.nii.gz",
        "sub-1/anat/sub-1_T2w.nii.gz",
        "sub-1/func/sub-1_task-rest_space-T1w_boldref.nii.gz",
        "derivatives/x/sub-1/anat/sub-1_T1w.nii.gz",
        "template_T1w.nii",
    ]
    for name in wanted + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def found(root: Path, pattern: str) -> list[str]:
        return [path.relative_to(root).as_posix() for path in find_volumes(root, pattern)]

    assert found(tmp_path, "bids:T1w") == wanted
    assert found(tmp_path, "bids:T?w") == sorted([*wanted, "sub-1/anat/sub-1_T2w.nii.gz"])
    assert found(tmp_path / "derivatives", "bids:T1w") == ["x/sub-1/anat/sub-1_T1w.nii.gz"]
    assert not any("mask" in n or "dseg" in n or "boldref" in n for n in found(tmp_path, "*_T1w.*"))
