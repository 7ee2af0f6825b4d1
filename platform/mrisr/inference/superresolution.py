"""NIfTI in, NIfTI out: super-resolve a file, or every volume of a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mrisr.degradation import PROTOCOLS, Degradation, brightness, describe, enforce_consistency
from mrisr.degradation.zero_padding import acquired_band, nearest, zero_padded
from mrisr.files import check_output, describe_os_error
from mrisr.inference.grid import FinerGrid
from mrisr.inference.model import Model
from mrisr.inference.whole_volume import InferenceOptions, Progress, superresolve_array
from voxelstore import SourceVolume, VolumeError, find_volumes, read_volume, write_volume
from voxelstore.errors import printable
from voxelstore.files import real_path
from voxelstore.intensity import IntensityMap
from voxelstore.volume import EXTENSIONS

FileProgress = Callable[[Path, int, int], None]  # (file, planes done, planes in total)


@dataclass(frozen=True)
class SuperResolver:
    """How files are super-resolved.

    generator: takes the zero-filled (or interpolated) volume on the output's grid. band: the acquired part of k-space;
    if given, the output takes it from the input (data consistency). keep_background: for a volume without negative
    intensities, the output has none either, and is 0 where the input is exactly 0. protocol: of the generator's
    validation if known, else `band`. grid: of the output; None: the input's. On a finer grid the band is the input's
    whole k-space. Raises ValueError for a band and a grid.
    """

    generator: nn.Module
    options: InferenceOptions = field(default_factory=InferenceOptions)
    band: Degradation | None = None
    keep_background: bool = True
    protocol: Degradation | None = None
    grid: FinerGrid | None = None

    def __post_init__(self) -> None:
        if self.grid is not None and self.band is not None:
            raise ValueError("on a finer grid the acquired band is the input's k-space; give no other band")

    def output_of(self, volume: SourceVolume) -> SourceVolume:
        """The file that the output is written like. Raises ValueError for a grid that the volume cannot have."""
        if self.grid is None:
            return volume
        validated = self.protocol.axes if self.protocol is not None else ()
        return volume.on_grid(self.grid.shape(volume, validated if len(validated) == 2 else (1, 2)))


def resolver_of(
    model: Model, band: Degradation | None, keep_background: bool, grid: FinerGrid | None = None
) -> SuperResolver:
    """The resolver of a loaded model on this machine: a GPU if there is one, in the precision that suits the device."""
    options = replace(model.options, device="cuda" if torch.cuda.is_available() else "cpu", precision="auto")
    return SuperResolver(model.generator, options, band, keep_background, PROTOCOLS.get(model.protocol or ""), grid)


@dataclass(frozen=True)
class FileResult:
    """One file: its output and how it was made, or why it was left out (`error`)."""

    source: Path
    target: Path
    seconds: float
    consistency: str | None = None
    grid: str | None = None
    error: str | None = None

    def describe(self) -> str:
        if self.error is not None:
            return printable(f"{self.source.name}: left out: {self.error}")
        extra = f", {self.grid}" if self.grid else ""
        extra += f", data consistency with {self.consistency}" if self.consistency else ""
        return printable(f"{self.source.name} -> {self.target} ({self.seconds:.1f} s{extra})")


@dataclass(frozen=True)
class Summary:
    files: tuple[FileResult, ...]

    @property
    def written(self) -> list[FileResult]:
        return [file for file in self.files if file.error is None]

    @property
    def left_out(self) -> list[FileResult]:
        return [file for file in self.files if file.error is not None]


def superresolve_files(
    source: str | Path,
    target: str | Path,
    resolver: SuperResolver,
    overwrite: bool = False,
    progress: FileProgress | None = None,
    on_file: Callable[[FileResult], None] | None = None,
    pattern: str = "*",
) -> Summary:
    """Super-resolve one volume, or the volumes below a folder, onto the resolver's grid.

    source: a .nii, .nii.gz or .mgz file, or a folder; pattern: which of its files, see `find_volumes`. target: a
    folder, in which files keep their relative paths; for a single file also a file name. Outputs have the input's
    orientation, affine, header, data type and range, and are never partial. overwrite: replace existing outputs; an
    input is never replaced. progress: called after every few planes; on_file: after every file. A bad file of a folder
    is reported in the summary and the others are processed. Raises FileNotFoundError for no volumes, and for a single
    file FileExistsError for an existing output and VolumeError (a ValueError) for an unusable input.
    """
    source, target = Path(source), Path(target)
    results = []

    def done(result: FileResult) -> None:
        results.append(result)
        if on_file is not None:
            on_file(result)

    def cannot_list(error: VolumeError) -> None:
        done(FileResult(Path(error.path), target, 0.0, error=error.message))

    for file, output in _files(source, target, pattern, cannot_list):
        started = time.perf_counter()
        consistency = grid = error = None
        try:
            _, made = _superresolve(file, output, resolver, overwrite, progress)
            if resolver.grid is not None:
                consistency, grid = "the k-space of the input", made.described()
            elif resolver.band is not None:
                consistency = describe(resolver.band)
        except (ValueError, OSError, RuntimeError) as problem:
            if not source.is_dir():
                raise
            text = describe_os_error(problem, output) if isinstance(problem, OSError) else str(problem)
            error = f"{type(problem).__name__}: {text}"
        seconds = time.perf_counter() - started
        done(FileResult(file, output, seconds, consistency, grid, error))
    return Summary(tuple(results))


def superresolve_volume(volume: SourceVolume, resolver: SuperResolver, progress: Progress | None = None) -> np.ndarray:
    """Super-resolve the volume of a file. Returns (D, H, W) float32, physical intensities, canonical orientation, on
    the grid of `resolver.output_of(volume)`.

    The input's own map normalises the intensities and so undoes the dimming of a protocol like `report160`; the input
    of the network is therefore dimmed again (`brightness`), and the output is as bright as the file. `keep_background`
    comes last: where it acts, the acquired band is no longer exact. Raises ValueError for a non-finite output of the
    network.
    """
    shape = resolver.output_of(volume).voxels.shape
    try:
        return superresolve_intensities(volume.physical(), volume.intensity(), resolver, progress, shape)
    except NonFiniteOutput as error:
        raise NonFiniteOutput(f"{volume.path}: {error}; nothing was written") from None


class NonFiniteOutput(ValueError):
    """A network's output is not finite."""


def superresolve_intensities(
    physical: np.ndarray,
    scale: IntensityMap,
    resolver: SuperResolver,
    progress: Progress | None = None,
    shape: tuple[int, ...] | None = None,
) -> np.ndarray:
    """`superresolve_volume` of an array (D, H, W) of physical intensities with their map. shape: of a finer grid."""
    low, band = scale.normalise(physical), resolver.band
    if shape is not None and shape != low.shape:
        band = acquired_band(low.shape, shape)
        low = zero_padded(low, shape)
    expected = _dimmed(low, resolver.protocol or band)
    high = superresolve_array(resolver.generator, expected, resolver.options, progress)
    if band is not None:
        high = enforce_consistency(high, _dimmed(low, band), band)
    bad = int(np.count_nonzero(~np.isfinite(high)))
    if bad:
        raise NonFiniteOutput(f"the network gave {bad} voxels that are not finite")
    restored = scale.restore(high)
    if resolver.keep_background and physical.min() >= 0:
        np.maximum(restored, 0, out=restored)
        restored[nearest(physical == 0, restored.shape)] = 0
    return restored


def _dimmed(volume: np.ndarray, degradation: Degradation | None) -> np.ndarray:
    gain = 1.0 if degradation is None else brightness(volume.shape, degradation)
    return volume if gain == 1 else volume * np.float32(gain)


def _files(
    source: Path, target: Path, pattern: str, on_error: Callable[[VolumeError], None]
) -> list[tuple[Path, Path]]:
    if source.is_file():
        if target.name.lower().endswith(EXTENSIONS):
            return [(source, target)]
        if target.suffix and not target.is_dir():
            raise ValueError(
                f"{printable(target)}: extension {target.suffix!r} is not one of {', '.join(EXTENSIONS)}; "
                "for a folder of that name, make it first"
            )
        return [(source, target / source.name)]
    if source.is_dir() and (target.is_file() or target.name.lower().endswith(EXTENSIONS)):
        raise ValueError(f"{target}: the source {source} is a folder, so the target must be one as well")
    # If the target is inside the source, it may hold outputs of an earlier call.
    found = find_volumes(source, pattern, on_error) if source.is_dir() else []
    inputs = [file for file in found if real_path(target) not in real_path(file).parents]
    if not inputs:
        fits = "" if pattern == "*" else f" that fits the pattern {pattern!r}"
        raise FileNotFoundError(
            f"{printable(source)}: no volume found{fits}; expected a {', '.join(EXTENSIONS)} file or a folder of them"
        )
    return [(file, target / file.relative_to(source)) for file in inputs]


def superresolve_file(
    source: Path, target: Path, resolver: SuperResolver, overwrite: bool = False, progress: FileProgress | None = None
) -> np.ndarray:
    """Super-resolve one file into another; see `superresolve_files`. Returns what `superresolve_volume` does."""
    return _superresolve(source, target, resolver, overwrite, progress)[0]


def _superresolve(
    source: Path, target: Path, resolver: SuperResolver, overwrite: bool, progress: FileProgress | None
) -> tuple[np.ndarray, SourceVolume]:
    """The result, and the file that it was written like."""
    if target.exists() and target.samefile(source):
        raise FileExistsError(f"{target}: this is the input itself, which is never replaced; choose another target")
    check_output(target)
    if os.path.lexists(target) and not overwrite:
        raise FileExistsError(f"{target}: exists already; pass overwrite (--overwrite) to replace it")
    volume = read_volume(source)
    output = resolver.output_of(volume)
    check_output(target, space=output.voxels.nbytes if target.suffix == ".nii" else volume.size // 2)
    planes = None if progress is None else lambda done, total: progress(source, done, total)
    high = superresolve_volume(volume, resolver, planes)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_volume(target, high, output)
    return high, output
