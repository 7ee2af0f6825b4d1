"""NIfTI in, NIfTI out: super-resolve a file, or every volume of a folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from mrisr.degradation import Degradation, describe, enforce_consistency
from mrisr.inference.sliding_window import InferenceOptions, Progress, superresolve_array
from voxelstore import SourceVolume, find_volumes, intensity_map, read_volume, write_volume
from voxelstore.volume import EXTENSIONS

FileProgress = Callable[[Path, int, int], None]  # (file, windows done, windows in total)


@dataclass(frozen=True)
class SuperResolver:
    """How files are super-resolved.

    generator: its input is the zero-filled (or interpolated) volume on the grid of its output. band: what part of
    k-space was acquired; if given, the output takes that band from the input (data consistency).
    """

    generator: nn.Module
    options: InferenceOptions = field(default_factory=InferenceOptions)
    band: Degradation | None = None


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
    for file, output in _files(source, target):
        started = time.perf_counter()
        error = None
        try:
            _superresolve_file(file, output, resolver, overwrite, progress)
        except (ValueError, OSError, RuntimeError) as problem:
            if not source.is_dir():
                raise
            error = f"{type(problem).__name__}: {problem}"
        seconds = time.perf_counter() - started
        consistency = describe(resolver.band) if resolver.band is not None and error is None else None
        results.append(FileResult(file, output, seconds, consistency, error))
        if on_file is not None:
            on_file(results[-1])
    return Summary(tuple(results))


def superresolve_volume(volume: SourceVolume, resolver: SuperResolver, progress: Progress | None = None) -> np.ndarray:
    """Super-resolve what a file holds. Returns (D, H, W) float32, physical intensities, canonical orientation.

    Intensities are normalised by the input's own map, since there is no high-resolution volume to take one from.
    Raises ValueError if the network's output is not finite.
    """
    physical = volume.physical()
    scale = intensity_map(physical)
    low = scale.normalise(physical)
    high = superresolve_array(resolver.generator, low, resolver.options, progress)
    if resolver.band is not None:
        high = enforce_consistency(high, low, resolver.band)
    bad = int(np.count_nonzero(~np.isfinite(high)))
    if bad:
        raise ValueError(f"{volume.path}: the network gave {bad} voxels that are not finite; nothing was written")
    return scale.restore(high)


def _files(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Every input with its output."""
    if source.is_file():
        return [(source, target if target.name.lower().endswith(EXTENSIONS) else target / source.name)]
    if source.is_dir() and (target.is_file() or target.name.lower().endswith(EXTENSIONS)):
        raise ValueError(f"{target}: the source {source} is a folder, so the target must be one as well")
    # A target inside the source may hold outputs of an earlier call.
    found = find_volumes(source) if source.is_dir() else []
    inputs = [file for file in found if target.resolve() not in file.resolve().parents]
    if not inputs:
        raise FileNotFoundError(
            f"{source}: no volume found; expected a {', '.join(EXTENSIONS)} file or a folder of them"
        )
    return [(file, target / file.relative_to(source)) for file in inputs]


def _superresolve_file(
    source: Path, target: Path, resolver: SuperResolver, overwrite: bool, progress: FileProgress | None
) -> None:
    # These checks come before the work, which takes minutes.
    if target.resolve() == source.resolve():
        raise FileExistsError(f"{target}: this is the input itself, which is never replaced; choose another target")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target}: exists already; pass overwrite (--overwrite) to replace it")
    volume = read_volume(source)
    windows = None if progress is None else lambda done, total: progress(source, done, total)
    high = superresolve_volume(volume, resolver, windows)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_volume(target, high, volume)
