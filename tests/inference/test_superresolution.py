"""Files in, files out, in the space and type of the input."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import fft
from tests.conftest import unprivileged
from torch import nn

from mrisr.degradation import PROTOCOLS, Degradation, describe
from mrisr.inference.superresolution import SuperResolver, superresolve_files
from mrisr.inference.whole_volume import InferenceOptions
from voxelstore import VolumeError, find_volumes, intensity_map, read_volume

OPTIONS = InferenceOptions()
# Left-posterior-superior, oblique, anisotropic.
AFFINE = np.array([[-0.7, 0.02, 0, 90], [0.01, -0.8, 0.1, 120], [0, 0.09, 1.1, -70], [0, 0, 0, 1.0]])


class Affine(nn.Module):
    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale + self.shift


def _write(path: Path, shape: tuple[int, int, int] = (33, 41, 35), dtype: type = np.int16) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(0).integers(0, 255, shape).astype(dtype)
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    return data


@pytest.mark.parametrize("name", ["a.nii.gz", "b.nii"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_an_identity_gives_the_file_back(tmp_path: Path, name: str, dtype: type) -> None:
    data = _write(tmp_path / name, dtype=dtype)
    summary = superresolve_files(tmp_path / name, tmp_path / "out", SuperResolver(nn.Identity(), OPTIONS))
    image = nib.load(tmp_path / "out" / name)
    assert summary.written[0].target == tmp_path / "out" / name
    assert image.get_data_dtype() == dtype
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    np.testing.assert_allclose(np.asanyarray(image.dataobj), data, atol=1e-2 if dtype is np.float32 else 0)


def test_integers_are_clipped_to_their_range(tmp_path: Path) -> None:
    data = _write(tmp_path / "a.nii.gz", dtype=np.uint8)
    superresolve_files(tmp_path / "a.nii.gz", tmp_path / "out.nii.gz", SuperResolver(Affine(3.0, -0.5), OPTIONS))
    found = np.asanyarray(nib.load(tmp_path / "out.nii.gz").dataobj)
    assert (found.min(), found.max()) == (0, 255)
    assert (found[data == 255] == 255).all()


def test_nothing_is_overwritten_unless_told(tmp_path: Path) -> None:
    _write(tmp_path / "a.nii.gz")
    target = tmp_path / "out.nii.gz"
    superresolve_files(tmp_path / "a.nii.gz", target, SuperResolver(nn.Identity(), OPTIONS))
    before = target.read_bytes()
    with pytest.raises(FileExistsError, match="--overwrite"):
        superresolve_files(tmp_path / "a.nii.gz", target, SuperResolver(Affine(0.5, 0.0), OPTIONS))
    assert target.read_bytes() == before
    superresolve_files(tmp_path / "a.nii.gz", target, SuperResolver(Affine(0.5, 0.0), OPTIONS), overwrite=True)
    assert target.read_bytes() != before
    with pytest.raises(FileExistsError, match="the input itself"):
        superresolve_files(tmp_path / "a.nii.gz", tmp_path, SuperResolver(nn.Identity(), OPTIONS), overwrite=True)


def test_a_folder_goes_on_past_a_bad_file(tmp_path: Path) -> None:
    source = tmp_path / "in"
    _write(source / "a.nii.gz")
    _write(source / "deep" / "c.nii.gz")
    (source / "b.nii.gz").write_bytes(b"no nifti")
    said: list[str] = []
    for _ in range(2):
        summary = superresolve_files(
            source,
            source / "out",
            SuperResolver(nn.Identity(), OPTIONS),
            on_file=lambda file: said.append(file.describe()),
            overwrite=True,
        )
        assert [file.target.relative_to(source) for file in summary.written] == [
            Path("out/a.nii.gz"),
            Path("out/deep/c.nii.gz"),
        ]
        assert [file.source.name for file in summary.left_out] == ["b.nii.gz"]
    assert "left out: VolumeError" in said[1]
    assert sorted(path.name for path in find_volumes(source / "out")) == ["a.nii.gz", "c.nii.gz"]
    assert len(superresolve_files(source, source / "out", SuperResolver(nn.Identity(), OPTIONS)).left_out) == 3


def test_a_single_bad_file_raises(tmp_path: Path) -> None:
    (tmp_path / "b.nii.gz").write_bytes(b"no nifti")
    with pytest.raises(VolumeError):
        superresolve_files(tmp_path / "b.nii.gz", tmp_path / "out.nii.gz", SuperResolver(nn.Identity(), OPTIONS))
    with pytest.raises(FileNotFoundError, match="no volume found"):
        superresolve_files(tmp_path / "absent.nii.gz", tmp_path / "out.nii.gz", SuperResolver(nn.Identity(), OPTIONS))
    _write(tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match="not finite"):
        superresolve_files(
            tmp_path / "a.nii.gz", tmp_path / "out.nii.gz", SuperResolver(Affine(float("nan"), 0.0), OPTIONS)
        )
    assert not (tmp_path / "out.nii.gz").exists()


def test_data_consistency_keeps_the_inputs_band(tmp_path: Path) -> None:
    _write(tmp_path / "a.nii.gz", (32, 32, 32), np.float32)
    band = Degradation("truncate", axes=(0, 1), fraction=0.5)
    spectra = {}
    for name, chosen in (("plain", None), ("consistent", band)):
        summary = superresolve_files(
            tmp_path / "a.nii.gz",
            tmp_path / f"{name}.nii.gz",
            SuperResolver(Affine(0.5, 0.1), OPTIONS, chosen, keep_background=False),
        )
        assert summary.files[0].consistency == (None if chosen is None else describe(band))
        spectra[name] = fft.fftn(nib.load(tmp_path / f"{name}.nii.gz").get_fdata())
    given = fft.fftn(nib.load(tmp_path / "a.nii.gz").get_fdata())
    k = np.abs(np.fft.fftfreq(32) * 32)
    kept = (k[:, None, None] < 8) & (k[None, :, None] < 8) & (k[None, None, :] >= 0)
    scale = np.abs(given[kept]).max()
    assert np.abs(spectra["consistent"] - given)[kept].max() < 1e-5 * scale
    assert np.abs(spectra["plain"] - given)[kept].max() > 1e-2 * scale
    np.testing.assert_allclose(spectra["consistent"][~kept], spectra["plain"][~kept], atol=1e-5 * scale)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_magnitude_image_stays_non_negative_and_its_background_zero(tmp_path: Path, dtype: type) -> None:
    data = _write(tmp_path / "a.nii.gz", dtype=dtype)
    data[:9] = 0
    for name, values in (("brain", data), ("ct", data - 100)):
        nib.save(nib.Nifti1Image(values.astype(dtype), AFFINE), tmp_path / f"{name}.nii.gz")
    lower = Affine(1.0, -0.5)

    def output(name: str, keep: bool = True) -> np.ndarray:
        target = tmp_path / f"{name}-{keep}.nii"
        superresolve_files(tmp_path / f"{name}.nii.gz", target, SuperResolver(lower, OPTIONS, keep_background=keep))
        return np.asanyarray(nib.load(target).dataobj)

    kept = output("brain")
    assert kept.min() == 0
    assert (kept[data == 0] == 0).all()
    assert output("brain", keep=False).min() < -50
    assert output("ct").min() < -150
    superresolve_files(tmp_path / "brain.nii.gz", tmp_path / "bright.nii", SuperResolver(Affine(1.0, 0.5), OPTIONS))
    assert (np.asanyarray(nib.load(tmp_path / "bright.nii").dataobj)[:9] == 0).all()


def test_a_network_gets_its_input_as_bright_as_in_training(tmp_path: Path) -> None:
    """`report160` halves the mean intensity, and the file's own intensity map would undo that."""
    _write(tmp_path / "a.nii.gz", (32, 32, 32), np.float32)
    physical = read_volume(tmp_path / "a.nii.gz").physical()
    scale = intensity_map(physical)
    report = PROTOCOLS["report160"]
    low = scale.normalise(physical)
    for resolver in (
        SuperResolver(nn.Identity(), OPTIONS, protocol=report),
        SuperResolver(nn.Identity(), OPTIONS, report),
    ):
        superresolve_files(tmp_path / "a.nii.gz", tmp_path / "o.nii", resolver, overwrite=True)
        found = scale.normalise(read_volume(tmp_path / "o.nii").physical())
        np.testing.assert_allclose(found[low > 0], 0.5 * low[low > 0], atol=1e-5)
    # Full brightness where the band of another protocol is put back.
    resolver = SuperResolver(nn.Identity(), OPTIONS, Degradation("truncate", fraction=0.0), protocol=report)
    superresolve_files(tmp_path / "a.nii.gz", tmp_path / "o.nii", resolver, overwrite=True)
    np.testing.assert_allclose(read_volume(tmp_path / "o.nii").physical(), physical, atol=1e-3)


def test_a_pattern_chooses_the_files_of_a_bids_dataset(tmp_path: Path) -> None:
    for name in ("sub-1/anat/sub-1_T1w", "sub-1/anat/sub-1_T2w", "derivatives/m/sub-1/anat/sub-1_desc-brain_mask"):
        _write(tmp_path / "bids" / f"{name}.nii.gz", (16, 16, 16))
    resolver = SuperResolver(nn.Identity(), OPTIONS)
    found = superresolve_files(tmp_path / "bids", tmp_path / "out", resolver, pattern="bids:T1w")
    assert [file.target for file in found.files] == [tmp_path / "out/sub-1/anat/sub-1_T1w.nii.gz"]
    with pytest.raises(FileNotFoundError, match="no volume found that fits the pattern 'bids:PDw'"):
        superresolve_files(tmp_path / "bids", tmp_path / "out", resolver, pattern="bids:PDw")


def test_a_name_acts_on_no_terminal(tmp_path: Path) -> None:
    for name in ("a\n\x1b[2J.nii", "b\u202e.nii"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"no volume")
    _write(tmp_path / "in" / "c\r.nii")
    summary = superresolve_files(tmp_path / "in", tmp_path / "out", SuperResolver(nn.Identity(), OPTIONS))
    lines = [file.describe() for file in summary.files]
    assert all(line.isprintable() for line in lines)
    assert [line.split(".nii")[0] for line in lines] == [r"a\n\x1b[2J", r"b\u202e", r"c\r"]
    with pytest.raises(FileNotFoundError, match=r"d\\n\.nii: no volume found"):
        superresolve_files(tmp_path / "d\n.nii", tmp_path / "out", SuperResolver(nn.Identity(), OPTIONS))


class Unused(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the output was not tried before the work")


def test_outputs_are_tried_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "a.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "file").touch()
    os.link(tmp_path / "a.nii.gz", tmp_path / "link.nii.gz")
    (tmp_path / "self.nii").symlink_to(tmp_path / "self.nii")
    resolver = SuperResolver(Unused(), OPTIONS)
    with pytest.raises(FileExistsError, match="exists already"):
        superresolve_files(tmp_path / "a.nii.gz", tmp_path / "self.nii", resolver)
    for target, error in [
        (tmp_path / "o.txt", "extension '.txt'"),
        (tmp_path / "folder.nii.gz", "Is a directory"),
        (tmp_path / "file" / "o.nii", "Not a directory"),
        (tmp_path / "link.nii.gz", "the input itself"),
        (Path("/proc/self/o.nii"), "/proc/self"),  # where not even root makes a file
    ]:
        with pytest.raises((OSError, ValueError), match=error):
            superresolve_files(tmp_path / "a.nii.gz", target, resolver, overwrite=True)
    with unprivileged() as folder:
        (folder / "locked").mkdir(0o500)
        _write(folder / "a.nii.gz")
        with pytest.raises(PermissionError, match=r"denied.*locked"):
            superresolve_files(folder / "a.nii.gz", folder / "locked" / "new" / "o.nii", resolver)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**10))
    with pytest.raises(OSError, match=r"0 MiB of free space"):
        superresolve_files(tmp_path / "a.nii.gz", tmp_path / "o.nii", resolver)


def test_a_folder_goes_on_past_what_cannot_be_read_or_written(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    _write(source / "a.nii.gz")
    os.mkfifo(source / "b.nii.gz")
    _write(source / "c.nii.gz")
    (source / "d.nii").symlink_to(source / "d.nii")
    (target / "c.nii.gz").mkdir(parents=True)
    summary = superresolve_files(source, target, SuperResolver(nn.Identity(), OPTIONS), overwrite=True)
    assert [file.source.name for file in summary.written] == ["a.nii.gz"]
    said = {file.source.name: file.describe() for file in summary.left_out}
    assert "no regular file" in said["b.nii.gz"]
    assert "Is a directory; give the name of a file in it" in said["c.nii.gz"]
    assert "symbolic links" in said["d.nii"]


def test_a_write_that_fails_leaves_the_old_output_and_names_the_file(tmp_path: Path) -> None:
    _write(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.nii.gz").write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        resolver = SuperResolver(nn.Identity(), OPTIONS)
        summary = superresolve_files(tmp_path / "in", tmp_path / "out", resolver, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{tmp_path / 'out' / 'a.nii.gz'}: File too large; raise the limit" in str(summary.left_out[0].error)
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "out").iterdir()] == [("a.nii.gz", b"old")]


def test_progress_names_the_file(tmp_path: Path) -> None:
    _write(tmp_path / "a.nii.gz")
    seen: list[tuple[Path, int, int]] = []
    superresolve_files(
        tmp_path / "a.nii.gz",
        tmp_path / "o.nii.gz",
        SuperResolver(nn.Identity(), OPTIONS),
        progress=lambda *a: seen.append(a),
    )
    assert seen[-1][0] == tmp_path / "a.nii.gz"
    assert seen[-1][1] == seen[-1][2]
