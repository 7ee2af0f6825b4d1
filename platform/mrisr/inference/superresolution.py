"""NIfTI in, NIfTI out: super-resolve a file, or every volume of a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from mrisr.degradation import Degradation, brightness, describe, enforce_consistency
from mrisr.files import check_output, describe_os_error
from mrisr.inference.sliding_window import InferenceOptions, Progress, superresolve_array
from voxelstore import SourceVolume, VolumeError, find_volumes, read_volume, write_volume
from voxelstore.files import real_path
from voxelstore.volume import EXTENSIONS

FileProgress = Callable[[Path, int, int], None]  # (file, windows done, windows in total)


@dataclass(frozen=True)
class SuperResolver:
    """How files are super-resolved.

    generator: its input is the zero-filled (or interpolated) volume on the grid of its output. band: what part of
    k-space was acquired; if given, the output takes that band from the input (data consistency). keep_background: of a
    volume without negative intensities, the output has none either, and stays 0 where the input is exactly 0. protocol:
    that the generator was validated by, if it is known; else that of `band`.
    """

    generator: nn.Module
    options: InferenceOptions = field(default_factory=InferenceOptions)
    band: Degradation | None = None
    keep_background: bool = True
    protocol: Degradation | None = None


@dataclass(frozen=True)
class FileResult:
    """One file: where it went and what was done to it, or why it was left out (`error`)."""

    source: Path
    target: Path
    seconds: float
    consistency: str | None = None
    error: str | None = None

    def describe(self) -> str:
        """One line for a terminal."""
        if self.error is not None:
            return f"{self.source.name}: left out: {self.error}"
        extra = f", data consistency with {self.consistency}" if self.consistency else ""
        return f"{self.source.name} -> {self.target} ({self.seconds:.1f} s{extra})"


@dataclass(frozen=True)
class Summary:
    """All files, in order."""

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
) -> Summary:
    """Super-resolve one volume, or every volume below a folder, onto the same grid.

    source: a .nii, .nii.gz or .mgz file, or a folder. target: a folder, in which files keep their relative paths; for a
    single file also a file name. Outputs have the input's orientation, affine, header, data type and range, and appear
    whole or not at all. overwrite: replace outputs that exist; an input is never replaced. progress:
    called after every batch of windows; on_file: after every file.
    A bad file of a folder is reported in the summary and the others are processed. Raises FileNotFoundError for no
    volumes, and for a single file FileExistsError for an existing output and VolumeError (a ValueError) for an unusable
    input.
    """
    source, target = Path(source), Path(target)
    results = []

    def done(result: FileResult) -> None:
        results.append(result)
        if on_file is not None:
            on_file(result)

    def cannot_list(error: VolumeError) -> None:
        done(FileResult(Path(error.path), target, 0.0, error=error.message))

    for file, output in _files(source, target, cannot_list):
        started = time.perf_counter()
        error = None
        try:
            _superresolve_file(file, output, resolver, overwrite, progress)
        except (ValueError, OSError, RuntimeError) as problem:
            if not source.is_dir():
                raise
            text = describe_os_error(problem, output) if isinstance(problem, OSError) else str(problem)
            error = f"{type(problem).__name__}: {text}"
        seconds = time.perf_counter() - started
        consistency = describe(resolver.band) if resolver.band is not None and error is None else None
        done(FileResult(file, output, seconds, consistency, error))
    return Summary(tuple(results))


def superresolve_volume(volume: SourceVolume, resolver: SuperResolver, progress: Progress | None = None) -> np.ndarray:
    """Super-resolve what a file holds. Returns (D, H, W) float32, physical intensities, canonical orientation.

    Intensities are normalised by the input's own map, since there is no high-resolution volume to take one from. That
    map undoes the dimming of a protocol like `report160`, which the network's input then gets back (`brightness`); the
    output is as bright as the file. `keep_background` comes last: the acquired band is no longer exact by what data
    consistency had put below 0 or into the background. Raises ValueError if the network's output is not finite.
    """
    physical = volume.physical()
    scale = volume.intensity()
    low = scale.normalise(physical)
    expected = _dimmed(low, resolver.protocol or resolver.band)
    high = superresolve_array(resolver.generator, expected, resolver.options, progress)
    if resolver.band is not None:
        high = enforce_consistency(high, _dimmed(low, resolver.band), resolver.band)
    bad = int(np.count_nonzero(~np.isfinite(high)))
    if bad:
        raise ValueError(f"{volume.path}: the network gave {bad} voxels that are not finite; nothing was written")
    restored = scale.restore(high)
    if resolver.keep_background and physical.min() >= 0:
        np.maximum(restored, 0, out=restored)
        restored[physical == 0] = 0
    return restored


def _dimmed(volume: np.ndarray, degradation: Degradation | None) -> np.ndarray:
    gain = 1.0 if degradation is None else brightness(volume.shape, degradation)
    return volume if gain == 1 else volume * np.float32(gain)


def _files(source: Path, target: Path, on_error: Callable[[VolumeError], None]) -> list[tuple[Path, Path]]:
    """Every input with its output. on_error: see `find_volumes`."""
    if source.is_file():
        if target.name.lower().endswith(EXTENSIONS):
            return [(source, target)]
        if target.suffix and not target.is_dir():
            raise ValueError(
                f"{target}: extension {target.suffix!r} is none of {', '.join(EXTENSIONS)}; "
                "for a folder of that name, make it first"
            )
        return [(source, target / source.name)]
    if source.is_dir() and (target.is_file() or target.name.lower().endswith(EXTENSIONS)):
        raise ValueError(f"{target}: the source {source} is a folder, so the target must be one as well")
    # A target inside the source may hold outputs of an earlier call.
    found = find_volumes(source, on_error=on_error) if source.is_dir() else []
    inputs = [file for file in found if real_path(target) not in real_path(file).parents]
    if not inputs:
        raise FileNotFoundError(
            f"{source}: no volume found; expected a {', '.join(EXTENSIONS)} file or a folder of them"
        )
    return [(file, target / file.relative_to(source)) for file in inputs]


def _superresolve_file(
    source: Path, target: Path, resolver: SuperResolver, overwrite: bool, progress: FileProgress | None
) -> None:
    # These checks come before the work, which takes minutes.
    if target.exists() and target.samefile(source):
        raise FileExistsError(f"{target}: this is the input itself, which is never replaced; choose another target")
    check_output(target)
    if os.path.lexists(target) and not overwrite:
        raise FileExistsError(f"{target}: exists already; pass overwrite (--overwrite) to replace it")
    volume = read_volume(source)
    check_output(target, space=volume.voxels.nbytes if target.suffix == ".nii" else volume.size // 2)
    windows = None if progress is None else lambda done, total: progress(source, done, total)
    high = superresolve_volume(volume, resolver, windows)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_volume(target, high, volume)
