"""Reading into canonical orientation and writing back, against nibabel and byte by byte."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

from voxelstore import VolumeError, read_volume, write_volume

ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
INTEGERS = ["uint8", "int8", "int16", "uint16", "int32"]


def affine_of(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """Disk axis i runs along world axis order[i] in the direction of signs[i]; slightly oblique, as scanners are."""
    affine = np.eye(4)
    affine[:3, :3] = 0.0
    for disk, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, disk] = sign * (0.7 + 0.1 * disk)
    tilt = from_matvec(euler2mat(0.05, -0.04, 0.03), [5, -6, 7])
    return tilt @ affine


def plain(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_orientation_is_canonical_inside_and_identical_outside(
    order: tuple[int, ...], signs: tuple[int, ...], head: np.ndarray, nifti: Callable[..., Path], tmp_path: Path
) -> None:
    source = nifti(head, affine_of(order, signs), slope=0.5, intercept=-3.0)
    canonical = nib.as_closest_canonical(nib.load(source))
    volume = read_volume(source)
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.physical(), canonical.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(volume.affine, canonical.affine, atol=1e-6)
    write_volume(tmp_path / "back.nii", volume.physical(), like=volume)
    assert plain(tmp_path / "back.nii") == plain(source)


@settings(max_examples=25)
@given(data=st.data())
def test_integers_come_back_identical_for_any_scale(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dtype: np.dtype = np.dtype(data.draw(st.sampled_from(INTEGERS)))
    shape = data.draw(st.tuples(*[st.integers(2, 9)] * 3))
    slope = data.draw(st.floats(1e-4, 1e4)) * data.draw(st.sampled_from([1, -1]))
    steps = data.draw(st.integers(-1000, 1000))
    limits = np.iinfo(dtype)
    low, high = max(int(limits.min), -(2**22)), min(int(limits.max), 2**22)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    voxels = rng.integers(low, high, size=shape, endpoint=True).astype(dtype)
    voxels.flat[0], voxels.flat[1] = low, high
    folder = tmp_path_factory.mktemp("scales")
    image = nib.Nifti1Image(voxels, np.diag([-1.0, 2, 3, 1]))
    image.header.set_slope_inter(slope, np.float32(slope) * steps)
    nib.save(image, folder / "in.nii.gz")
    volume = read_volume(folder / "in.nii.gz")
    write_volume(folder / "out.nii.gz", volume.physical(), like=volume)
    assert plain(folder / "out.nii.gz") == plain(folder / "in.nii.gz")


@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("header_class", [nib.Nifti1Header, nib.Nifti2Header])
def test_codes_extensions_and_byte_order_are_kept(
    endianness: str, header_class: type, head: np.ndarray, tmp_path: Path
) -> None:
    header = header_class(endianness=endianness)
    header.set_data_dtype(np.dtype(np.int16))
    header.set_qform(np.diag([1.0, 1, 1.2, 1]), code=1)
    header.set_sform(affine_of((1, 0, 2), (1, -1, 1)), code=3)
    header["descrip"], header["intent_name"] = b"scanner 7", b"mine"
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept to the letter"))
    image_class = nib.Nifti1Image if header_class is nib.Nifti1Header else nib.Nifti2Image
    nib.save(image_class(head, None, header), tmp_path / "in.nii")
    volume = read_volume(tmp_path / "in.nii")
    write_volume(tmp_path / "out.nii.gz", volume.physical(), like=volume)
    assert plain(tmp_path / "out.nii.gz") == plain(tmp_path / "in.nii")
    back = nib.load(tmp_path / "out.nii.gz").header
    assert (int(back["qform_code"]), int(back["sform_code"])) == (1, 3)
    assert back.extensions[0].get_content() == b"kept to the letter"


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
def test_mgz_comes_back_identical_with_its_tags(dtype: str, head: np.ndarray, tmp_path: Path) -> None:
    image = nib.MGHImage((head // 4).astype(dtype), affine_of((0, 2, 1), (-1, -1, 1)))
    image.header["tr"] = 2400.0
    (tmp_path / "in.mgz").write_bytes(gzip.compress(image.to_bytes() + b"\x00\x00\x00\x03history"))
    volume = read_volume(tmp_path / "in.mgz")
    np.testing.assert_array_equal(volume.physical(), nib.as_closest_canonical(image).get_fdata(dtype=np.float32))
    write_volume(tmp_path / "out.mgz", volume.physical(), like=volume)
    assert plain(tmp_path / "out.mgz") == plain(tmp_path / "in.mgz")


@pytest.mark.parametrize(("name", "target"), [("in.nii.gz", "out.mgz"), ("in.mgz", "out.nii.gz")])
def test_the_other_format_keeps_space_and_values(name: str, target: str, head: np.ndarray, tmp_path: Path) -> None:
    image = (nib.MGHImage if name.endswith("mgz") else nib.Nifti1Image)(head, affine_of((2, 0, 1), (1, -1, -1)))
    nib.save(image, tmp_path / name)
    volume = read_volume(tmp_path / name)
    write_volume(tmp_path / target, volume.physical(), like=volume)
    back = nib.load(tmp_path / target)
    assert back.get_data_dtype().newbyteorder("=") == np.int16
    np.testing.assert_array_equal(back.get_fdata(), head)
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-4)


def test_a_scaled_volume_becomes_float_in_mgz(head: np.ndarray, nifti: Callable[..., Path], tmp_path: Path) -> None:
    volume = read_volume(nifti(head, slope=0.25, intercept=10.0))
    write_volume(tmp_path / "out.mgz", volume.physical(), like=volume)
    back = nib.as_closest_canonical(nib.load(tmp_path / "out.mgz"))
    np.testing.assert_array_equal(back.get_fdata(dtype=np.float32), volume.physical())


def test_trailing_singleton_dimensions_are_3d_and_come_back(
    head: np.ndarray, nifti: Callable[..., Path], tmp_path: Path
) -> None:
    source = nifti(head[..., None, None])
    volume = read_volume(source)
    assert volume.voxels.shape == head.shape
    write_volume(tmp_path / "out.nii.gz", volume.physical(), like=volume)
    assert plain(tmp_path / "out.nii.gz") == plain(source)


def test_values_are_rounded_and_clipped_to_the_type(
    head: np.ndarray, nifti: Callable[..., Path], tmp_path: Path
) -> None:
    volume = read_volume(nifti((head // 4).astype(np.uint8), slope=2.0))
    data = volume.physical()
    data[0, 0, :4] = [-5.0, 2.9, 3.1, 10_000.0]
    write_volume(tmp_path / "out.nii.gz", data, like=volume)
    raw = np.asanyarray(nib.load(tmp_path / "out.nii.gz").dataobj.get_unscaled())
    assert raw[0, 0, :4].tolist() == [0, 1, 2, 255]


@pytest.mark.parametrize("name", ["out.nii.gz", "out.txt"])
def test_nothing_is_written_that_cannot_be_right(
    name: str, head: np.ndarray, nifti: Callable[..., Path], tmp_path: Path
) -> None:
    volume = read_volume(nifti(head))
    data = volume.physical()
    with pytest.raises(ValueError, match="shape"):
        write_volume(tmp_path / name, data[1:], like=volume)
    if name == "out.nii.gz":
        data[3, 3, 3] = np.nan
    with pytest.raises(ValueError, match=r"NaN|extension"):
        write_volume(tmp_path / name, data, like=volume)
    assert [p.name for p in tmp_path.iterdir()] == ["sub-01_T1w.nii.gz"]


def damaged(kind: str, head: np.ndarray, nifti: Callable[..., Path]) -> Path:
    path = nifti(head)
    content, raw = path.read_bytes(), plain(path)
    if kind == "gone":
        path.unlink()
    elif kind in ("empty", "pointer", "cut gzip", "flipped", "cut", "pair"):
        path.write_bytes(
            {
                "empty": b"",
                "pointer": b"version https://git-lfs.github.com/spec/v1\n",
                "cut gzip": content[: len(content) // 2],
                "flipped": content[:2000] + bytes([content[2000] ^ 255]) + content[2001:],
                "cut": gzip.compress(raw[:-1000]),
                "pair": gzip.compress(raw[:344] + b"ni1\0" + raw[348:]),
            }[kind]
        )
    elif kind == "no affine":
        header = nib.load(path).header
        header["sform_code"], header["qform_code"], header["srow_x"] = 1, 0, 0
        path.write_bytes(header.binaryblock + b"\0\0\0\0" + raw[352:])
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("gone", "unreadable"),
        ("empty", "unreadable"),
        ("pointer", "unreadable"),
        ("pair", "unreadable"),
        ("no affine", "unreadable"),
        ("flipped", "unreadable"),
        ("cut gzip", "truncated"),
        ("cut", "truncated"),
    ],
)
def test_damaged_files_are_named_with_a_reason(
    kind: str, reason: str, head: np.ndarray, nifti: Callable[..., Path]
) -> None:
    path = damaged(kind, head, nifti)
    with pytest.raises(VolumeError, match=path.name) as caught:
        read_volume(path)
    assert caught.value.reason == reason


@pytest.mark.parametrize("reason", ["not-3d", "not-finite", "constant", "unsupported"])
def test_volumes_of_no_use_are_named_with_a_reason(reason: str, head: np.ndarray, nifti: Callable[..., Path]) -> None:
    with_nan = head.astype(np.float32)
    with_nan[5, 5, 5] = np.nan
    voxels = {
        "not-3d": np.stack([head, head], axis=-1),
        "not-finite": with_nan,
        "constant": np.full_like(head, 3),
        "unsupported": head.astype(np.complex64),
    }[reason]
    with pytest.raises(VolumeError) as caught:
        read_volume(nifti(voxels))
    assert caught.value.reason == reason


@pytest.mark.parametrize(("slope", "intercept", "base"), [(1.0, 0.0, 2**30), (1e-6, 1000.0, 0)])
def test_a_volume_that_float32_makes_constant_is_constant(
    slope: float, intercept: float, base: int, nifti: Callable[..., Path]
) -> None:
    voxels = base + np.indices((8, 8, 8)).sum(axis=0) % 2
    with pytest.raises(VolumeError, match="in float32") as caught:
        read_volume(nifti(voxels.astype(np.int32), slope=slope, intercept=intercept))
    assert caught.value.reason == "constant"


def test_a_gzipped_file_that_is_called_nii_is_read(
    head: np.ndarray, nifti: Callable[..., Path], tmp_path: Path
) -> None:
    misnamed = nifti(head).rename(tmp_path / "x.nii")
    np.testing.assert_array_equal(read_volume(misnamed).voxels, head)


REAL = sorted((Path(__file__).parents[2].parent / "shared" / "data").glob("*.nii.gz"))


@pytest.mark.parametrize("path", REAL, ids=lambda p: p.name)
def test_real_volumes_come_back_identical(path: Path, tmp_path: Path) -> None:
    volume = read_volume(path)
    write_volume(tmp_path / "out.nii", volume.physical(), like=volume)
    assert plain(tmp_path / "out.nii") == plain(path)
