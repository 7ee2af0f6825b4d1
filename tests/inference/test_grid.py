"""A finer grid: anatomy keeps its place in the world, the field of view, its intensities and its k-space."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from torch import Tensor, nn

from mrisr.degradation import PROTOCOLS
from mrisr.inference.grid import FinerGrid, in_plane
from mrisr.inference.superresolution import SuperResolver, superresolve_files
from voxelstore import read_volume

SHAPE = (30, 34, 32)
SIGMA = 2.4  # mm


def oblique(spacing: tuple[float, float, float] = (1.0, 1.1, 1.2), degrees: float = 17) -> np.ndarray:
    a, b = np.radians(degrees), np.radians(-11)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = (-12.3, 41.7, 5.1)
    return affine


AFFINES = {
    "straight": np.diag([1.0, 1.1, 1.2, 1.0]),
    "oblique": oblique(),
    "left-handed": oblique() @ np.diag([-1.0, 1, 1, 1]),
    "permuted": oblique()[:, [2, 0, 1, 3]],
    "permuted, left-handed": oblique()[:, [1, 0, 2, 3]] @ np.diag([1.0, -1, 1, 1]),
}


def world(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """The places of all voxels in mm, (D, H, W, 3)."""
    return np.stack(np.indices(shape), -1) @ affine[:3, :3].T + affine[:3, 3]


def centres(affine: np.ndarray) -> np.ndarray:
    """Two places well inside the volume, in mm."""
    inside = np.array([[14.3, 15.8, 13.6], [16.1, 18.4, 17.2]])
    return inside @ affine[:3, :3].T + affine[:3, 3]


def phantom(places: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Two Gaussians of 1000 and 700 at their centres."""
    values = np.zeros(places.shape[:-1])
    for height, centre in zip((1000, 700), centres(affine), strict=True):
        values += height * np.exp(-np.square(places - centre).sum(-1) / (2 * SIGMA**2))
    return values


def scan(path: Path, affine: np.ndarray, dtype: type = np.float32) -> Path:
    data = phantom(world(SHAPE, affine), affine)
    image = nib.Nifti1Image((np.rint(data) if dtype is np.int16 else data).astype(dtype), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)
    return path


def finer(
    source: Path, target: Path, network: nn.Module, keep_background: bool = False, **grid: tuple[float, ...]
) -> nib.Nifti1Image:
    resolver = SuperResolver(network, keep_background=keep_background, grid=FinerGrid(**grid))
    superresolve_files(source, target, resolver)
    return nib.load(target)


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize(
    ("grid", "file"),
    [({"factor": (2.0,)}, "o.nii.gz"), ({"spacing": (0.7, 0.6, 0.45)}, "o.nii"), ({"factor": (2.0,)}, "o.mgz")],
)
def test_anatomy_keeps_its_place(tmp_path: Path, name: str, grid: dict[str, tuple[float, ...]], file: str) -> None:
    affine = AFFINES[name]
    out = finer(scan(tmp_path / "in.nii.gz", affine), tmp_path / file, nn.Identity(), **grid)
    assert out.shape != SHAPE
    data, places = out.get_fdata(), world(out.shape, out.affine)
    expected = phantom(places, affine)
    np.testing.assert_allclose(data, expected, atol=0.05)
    # A shift of a Gaussian by d changes it by its slope times d.
    for height, centre in zip((1000, 700), centres(affine), strict=True):
        away = places - centre
        slope = height * away * np.exp(-np.square(away).sum(-1) / (2 * SIGMA**2))[..., None] / SIGMA**2
        shift = np.linalg.lstsq(slope.reshape(-1, 3), (data - expected).ravel(), rcond=None)[0]
        assert np.abs(shift).max() < 1e-3
    for corner in np.ndindex(2, 2, 2):
        before, after = (
            np.array([*(n * c - 0.5 for n, c in zip(shape, corner, strict=True)), 1]) for shape in (SHAPE, out.shape)
        )
        np.testing.assert_allclose(out.affine @ after, affine @ before, atol=1e-3)


@pytest.mark.parametrize("name", AFFINES)
def test_the_headers_agree(tmp_path: Path, name: str) -> None:
    out = finer(scan(tmp_path / "in.nii.gz", AFFINES[name]), tmp_path / "o.nii.gz", nn.Identity(), factor=(2.0,))
    header = out.header
    assert (header["sform_code"], header["qform_code"]) == (1, 1)
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-4)
    np.testing.assert_allclose(header.get_zooms(), np.linalg.norm(out.affine[:3, :3], axis=0), atol=1e-5)
    written = read_volume(tmp_path / "o.nii.gz")
    np.testing.assert_allclose(written.layout.affine, out.affine, atol=1e-5)


def test_a_file_without_codes_gets_an_sform(tmp_path: Path) -> None:
    image = nib.load(scan(tmp_path / "coded.nii", np.diag([1.0, 1.1, 1.2, 1.0])))
    for code in ("sform_code", "qform_code"):
        image.header[code] = 0
    bare = tmp_path / "in.nii"
    bare.write_bytes(image.header.binaryblock + bytes(4) + np.asarray(image.dataobj, "<f4").tobytes(order="F"))
    before = nib.load(bare)
    out = finer(bare, tmp_path / "o.nii", nn.Identity(), factor=(2.0,))
    assert out.header["sform_code"] == 1
    centre = [np.array([*((n - 1) / 2 for n in one.shape), 1]) for one in (before, out)]
    np.testing.assert_allclose(out.affine @ centre[1], before.affine @ centre[0], atol=1e-4)


class Sharper(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1.4 * x - 0.2 * x * x


def test_the_output_has_the_inputs_k_space(tmp_path: Path) -> None:
    affine = AFFINES["straight"]
    rng = np.random.default_rng(0)
    data = rng.random((20, 22, 21)).astype(np.float32) * 500 + 1
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "in.nii.gz")
    out = finer(tmp_path / "in.nii.gz", tmp_path / "o.nii", Sharper(), factor=(2.0,)).get_fdata()
    assert out.shape == (20, 44, 42)
    before, after = np.fft.fftn(data), np.fft.fftn(out)
    frequencies = [np.arange(-9, 10), np.arange(-10, 11), np.arange(-10, 11)]  # below Nyquist of 20, 22 and 21
    grid = np.ix_(*frequencies)
    # Voxel 0 moves by a quarter of a voxel along the finer axes.
    phase = np.exp(-2j * np.pi * (frequencies[1][:, None] * 0.25 / 22 + frequencies[2] * 0.25 / 21))
    np.testing.assert_allclose(after[grid] / 4, before[grid] * phase, atol=2e-5 * np.abs(before).max())
    plain = np.fft.fftn(finer(tmp_path / "in.nii.gz", tmp_path / "i.nii", nn.Identity(), factor=(2.0,)).get_fdata())
    assert np.abs(after - plain).max() > 1e-3 * np.abs(before).max(), "beyond it is the network's"


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_type_scale_and_background_are_kept(tmp_path: Path, dtype: type) -> None:
    affine = AFFINES["oblique"]
    source = scan(tmp_path / "in.nii.gz", affine, dtype)
    image = nib.load(source)
    data = np.asanyarray(image.dataobj).copy()
    data[data < 20] = 0
    nib.save(nib.Nifti1Image(data, affine, image.header), source)
    out = finer(source, tmp_path / "o.nii.gz", Sharper(), keep_background=True, factor=(1, 2, 2))
    found = np.asanyarray(out.dataobj)
    assert found.dtype == dtype
    assert found.min() == 0
    assert (found[(data == 0).repeat(2, 1).repeat(2, 2)] == 0).all()
    assert found.max() == pytest.approx(1000, rel=0.3)


def test_the_grid_that_is_asked_for(tmp_path: Path) -> None:
    # In the file the axes are superior, right and anterior, of 3, 1 and 0.9 mm.
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 3, 1, 0.9, 1
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).random((10, 20, 30), dtype=np.float32), affine), tmp_path / "in.nii"
    )
    volume = read_volume(tmp_path / "in.nii")
    assert volume.voxels.shape == (20, 30, 10)
    assert FinerGrid(factor=(2,)).shape(volume) == (40, 60, 10), "not along thick slices"
    assert FinerGrid(spacing=(0.5,)).shape(volume) == (40, 54, 10)
    assert FinerGrid(spacing=(1, 1, 0.45)).shape(volume) == (20, 60, 30)
    assert FinerGrid.parse(None, "3,0.5,0.9").shape(volume) == (40, 30, 10)
    assert FinerGrid.parse().shape(volume) == (40, 60, 10)
    assert in_plane((1, 1, 1.1)) == (1, 2), "of alike voxels the axes of training"
    assert in_plane((1, 1, 1.1), PROTOCOLS["report160"].axes) == (0, 1, 2)
    np.testing.assert_allclose(volume.on_grid((40, 60, 10)).spacing, (0.5, 0.45, 3))
    for given, words in [
        ({"spacing": "2"}, "--spacing 2 is coarser than its voxels of 1 mm"),
        ({"factor": "0.5"}, "coarser"),
        ({"factor": "1"}, "--same-grid"),
        ({"factor": "1e30"}, "--factor 1e[+]30 makes more than the 32,767 voxels that a NIfTI file has"),
        ({"spacing": "1e-5,1,0.9"}, "from 10; give a coarser one"),
        ({"spacing": "3,1,0.9"}, "--same-grid"),
        ({"factor": "1,2"}, "one number above 0, or three"),
        ({"spacing": "-1"}, "above 0"),
        ({"spacing": "fine"}, "--spacing fine: is no number"),
        ({"factor": "2", "spacing": "1"}, "either --factor or --spacing"),
    ]:
        with pytest.raises(ValueError, match=words):
            FinerGrid.parse(**given).shape(volume)


def test_a_line_says_the_grid_and_the_band(tmp_path: Path) -> None:
    source = scan(tmp_path / "in.nii.gz", AFFINES["straight"])
    resolver = SuperResolver(nn.Identity(), grid=FinerGrid(factor=(2.0,)))
    (file,) = superresolve_files(source, tmp_path / "o.nii.gz", resolver).files
    assert "30x68x64 voxels of 1x0.55x0.6 mm, data consistency with the k-space of the input" in file.describe()
    with pytest.raises(ValueError, match="no other band"):
        SuperResolver(nn.Identity(), band=PROTOCOLS["chen2018"], grid=FinerGrid(factor=(2.0,)))
