"""Files that other tools write and read, and that are no textbook NIfTI."""

from __future__ import annotations

import gzip
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from voxelstore import VolumeError, read_volume, write_volume

KINDS = [(nib.Nifti1Image, 108, "f", 352), (nib.Nifti2Image, 168, "q", 544)]


def written(path: Path, image: Any, change: Callable[[bytearray], None]) -> Path:
    content = bytearray(image.to_bytes())
    change(content)
    path.write_bytes(content if path.suffix == ".nii" else gzip.compress(bytes(content)))
    return path


@pytest.mark.parametrize("field", KINDS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_voxels_begin_after_the_header(
    field: tuple[type, int, str, int], order: str, head: np.ndarray, tmp_path: Path
) -> None:
    kind, at, code, first = field
    image = kind(head, np.eye(4), kind.header_class(endianness=order))
    path = written(tmp_path / "x.nii.gz", image, lambda content: struct.pack_into(order + code, content, at, 0))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.voxels, head)
    write_volume(tmp_path / "out.nii", volume.physical(), volume)
    assert struct.unpack_from(order + code, (tmp_path / "out.nii").read_bytes(), at) == (first,)
    np.testing.assert_array_equal(np.asanyarray(nib.load(tmp_path / "out.nii").dataobj), head)
    for inside in (1, 348, -16):
        written(path, image, lambda content, v=inside: struct.pack_into(order + code, content, at, v))
        with pytest.raises(VolumeError, match=path.name) as caught:
            read_volume(path)
        assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("offset", [float("nan"), float("inf"), 1e30])
def test_an_offset_that_is_no_number_is_named(offset: float, head: np.ndarray, tmp_path: Path) -> None:
    path = written(
        tmp_path / "x.nii",
        nib.Nifti1Image(head, np.eye(4)),
        lambda content: struct.pack_into("<f", content, 108, offset),
    )
    with pytest.raises(VolumeError, match=r"x\.nii"):
        read_volume(path)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_quaternion_slightly_above_1_is_normalised_in_and_out(kind: type, head: np.ndarray, tmp_path: Path) -> None:
    image = kind(head, None)
    image.header.set_qform(np.diag([-0.7, -0.7, 0.7, 1]), code=1)
    image.header["sform_code"] = 0
    expected = image.header.get_best_affine()

    def longer(by: float) -> Callable[[bytearray], None]:
        def change(content: bytearray) -> None:
            header = image.header.copy()
            header["quatern_d"] = by
            header["vox_offset"] = image.header.single_vox_offset
            content[: len(header.binaryblock)] = header.binaryblock

        return change

    volume = read_volume(written(tmp_path / "x.nii.gz", image, longer(1.000_000_4)))
    np.testing.assert_allclose(volume.layout.affine, expected, atol=1e-6)
    write_volume(tmp_path / "out.nii.gz", volume.physical(), volume)
    np.testing.assert_allclose(nib.load(tmp_path / "out.nii.gz").affine, expected, atol=1e-6)
    with pytest.raises(VolumeError, match=r"y\.nii: the quaternion of its qform has the length 1\.2.*sform"):
        read_volume(written(tmp_path / "y.nii", image, longer(1.2)))


def test_an_offset_that_float32_cannot_carry_is_named(head: np.ndarray, nifti: Callable[..., Path]) -> None:
    with pytest.raises(VolumeError, match=r"sub-01_T1w\.nii\.gz: .*steps in float32; subtract their offset") as caught:
        read_volume(nifti(head + 1e9))
    assert caught.value.reason == "unusable"
    hot = head + 1e9
    hot[3, 3, 3] = 1e15
    with pytest.raises(VolumeError, match=r"sub-01_T1w\.nii\.gz: .*no robust range"):
        read_volume(nifti(hot)).intensity()


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e-3), ("micron", 1e3), ("mm", 1.0), ("unknown", 1.0)])
def test_units_are_applied(
    unit: str, factor: float, head: np.ndarray, nifti: Callable[..., Path], tmp_path: Path
) -> None:
    image = nib.Nifti1Image(head, np.diag([0.7 * factor, 0.7 * factor, 0.7 * factor, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "x.nii")
    volume = read_volume(tmp_path / "x.nii")
    np.testing.assert_allclose(volume.spacing, 0.7, rtol=1e-6)
    for name in ("out.nii", "out.mgz"):
        write_volume(tmp_path / name, volume.physical(), volume)
        np.testing.assert_allclose(read_volume(tmp_path / name).spacing, 0.7, rtol=1e-6)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mgz"])
def test_bytes_after_the_gzip_container_are_ignored_with_a_note(
    suffix: str, head: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = (nib.MGHImage if suffix == ".mgz" else nib.Nifti1Image)(head, np.eye(4))
    whole = image.to_bytes()
    path = tmp_path / f"x{suffix}"
    path.write_bytes(
        gzip.compress(whole[:1000]) + gzip.compress(whole[1000:]) + bytes(512)
    )  # members, and a tape block
    np.testing.assert_array_equal(read_volume(path).voxels, head)
    assert not caplog.records
    path.write_bytes(gzip.compress(whole) + b"signature")
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(read_volume(path).voxels, head)
    assert caplog.messages == [f"{path}: 9 bytes after the gzip stream are ignored"]


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "self.nii").symlink_to(tmp_path / "self.nii")
    (tmp_path / "folder.mgz").mkdir()
    for name, reason in (("pipe.nii.gz", "no regular file"), ("self.nii", "symbolic links"), ("folder.mgz", "regular")):
        with pytest.raises(VolumeError, match=rf"{name}: .*{reason}"):
            read_volume(tmp_path / name)


def test_nibabel_says_nothing_on_its_own(head: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It logs what it corrects in a header, and what it then raises, without the name of the file."""
    image = nib.Nifti1Image(head, np.eye(4))
    for at, code, value in ((76, "<f", 5.0), (252, "<h", -7), (254, "<h", 99)):  # qfac, qform_code, sform_code
        read_volume(written(tmp_path / "x.nii", image, lambda c, a=at, k=code, v=value: struct.pack_into(k, c, a, v)))
    with pytest.raises(VolumeError, match=r"x\.nii: its header is damaged \(data code 999 not recognized"):
        read_volume(written(tmp_path / "x.nii", image, lambda content: struct.pack_into("<h", content, 70, 999)))
    assert not caplog.records
