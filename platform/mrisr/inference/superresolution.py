"""NIfTI in, NIfTI out: super-resolve a file, or every volume of a folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from mrisr.degradation import Degradation, enforce_consistency
from mrisr.inference.sliding_window import InferenceOptions, Progress
from voxelstore import SourceVolume, find_volumes, intensity_map, read_volume, write_volume
from voxelstore.volume import EXTENSIONS


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


def superresolve_volume(
    volume: SourceVolume,
    generator: nn.Module,
    options: InferenceOptions | None = None,
    band: Degradation | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Super-resolve what a file holds. Returns (D, H, W) float32, physical intensities, canonical
    orientation.

    The intensity map is the input's own (there is no high-resolution volume to take it from). band: what
    k-space the input was acquired or truncated to; if given, the output's kept band is taken from the input
    (data consistency).
    Raises ValueError if the network's output is not finite.
    """
    physical = volume.physical()
    scale = intensity_map(physical)
    options = options or InferenceOptions()
    low = scale.normalise(physical)
    high = options.run(generator, low, progress)
    if band is not None:
        high = enforce_consistency(high, low, band)
    bad = int(np.count_nonzero(~np.isfinite(high)))
    if bad:
        raise ValueError(f"{volume.path}: the network gave {bad} voxels that are not finite; nothing was written")
    return scale.restore(high)


def superresolve_files(
    source: str | Path,
    target: str | Path,
    generator: nn.Module,
    options: InferenceOptions | None = None,
    band: Degradation | None = None,
    overwrite: bool = False,
    progress: Callable[[Path, int, int], None] | None = None,
    on_file: Callable[[FileResult], None] | None = None,
) -> Summary:
    """Super-resolve one volume, or every volume below a folder, onto the same grid.

    source: a .nii, .nii.gz or .mgz file, or a folder. target: for a file a file name with one of these
    extensions, or a folder; for a folder a folder, in which the files keep their relative paths. Outputs have
    the input's orientation, affine, header, data type and range, and appear whole or not at all.
    generator: a network whose input is the zero-filled (or interpolated) volume on the grid of its output.
    overwrite: replace outputs that exist; an input is never replaced. progress: (file, windows done, windows
    in total). on_file: called after each file.
    A bad file of a folder is reported in the summary and the others go on. For a single file, raises:
    FileExistsError for an output that exists, VolumeError (a ValueError) for an unusable input.
    FileNotFoundError for no volumes.
    """
    source, target = Path(source), Path(target)
    if source.is_dir():
        if target.is_file() or target.name.lower().endswith(EXTENSIONS):
            raise ValueError(f"{target}: the source {source} is a folder, so the target must be one as well")
        # Outputs of an earlier call, if the target lies within the source, are no inputs.
        files = [file for file in find_volumes(source) if target.resolve() not in file.resolve().parents]
        pairs = [(file, target / file.relative_to(source)) for file in files]
    else:
        pairs = [(source, target if target.name.lower().endswith(EXTENSIONS) else target / source.name)]
    if not pairs or not (source.is_dir() or source.is_file()):
        raise FileNotFoundError(
            f"{source}: no volume found; expected a {', '.join(EXTENSIONS)} file or a folder of them"
        )
    results = []
    for file, output in pairs:
        started = time.perf_counter()
        error = None
        try:
            _superresolve_file(file, output, generator, options, band, overwrite, progress)
        except (ValueError, OSError, RuntimeError) as problem:
            if not source.is_dir():
                raise
            error = f"{type(problem).__name__}: {problem}"
        seconds = time.perf_counter() - started
        consistency = band.describe() if band is not None and error is None else None
        results.append(FileResult(file, output, seconds, consistency, error))
        if on_file is not None:
            on_file(results[-1])
    return Summary(tuple(results))


def _superresolve_file(
    source: Path,
    target: Path,
    generator: nn.Module,
    options: InferenceOptions | None,
    band: Degradation | None,
    overwrite: bool,
    progress: Callable[[Path, int, int], None] | None,
) -> None:
    # Before the work, which takes minutes.
    if target.resolve() == source.resolve():
        raise FileExistsError(f"{target}: this is the input itself, which is never replaced; choose another target")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target}: exists already; pass overwrite (--overwrite) to replace it")
    volume = read_volume(source)

    def windows(done: int, total: int) -> None:
        if progress is not None:
            progress(source, done, total)

    high = superresolve_volume(volume, generator, options, band, windows)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_volume(target, high, volume)
