"""A contact sheet of the degradations that a configuration trains on (`mrisr preview`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import fft

from mrisr.config import ConfigError, Experiment
from mrisr.degradation import KINDS, PROTOCOLS, Degradation, degrade, describe
from mrisr.metrics.psnr import peak_signal_to_noise
from voxelstore import VolumeStore, read_volume

Entry = tuple[str, Degradation]

# Effects of an acquisition, each strong enough to be visible.
_ACQUISITIONS: tuple[Entry, ...] = (
    ("+ Tukey taper", Degradation("truncate", (1, 2), 0.5, apodisation="tukey", taper=0.5)),
    ("+ Hamming taper", Degradation("truncate", (1, 2), 0.5, apodisation="hamming")),
    ("+ thick slices", Degradation("truncate", (1,), 0.5, slice_axis=2, slice_thickness=5.0)),
    ("+ Rician noise", Degradation("truncate", (1, 2), 0.5, noise=0.1, noise_seed=0)),
    ("all together", Degradation("truncate", (1,), 0.5, None, 0, 0, "box", "tukey", 0.5, 2, 4.0, 0.05, 0)),
)


def gallery_entries() -> list[Entry]:
    kinds = [(name, Degradation(name, **kind.example)) for name, kind in KINDS.items() if kind.example is not None]
    kinds.insert(1, ("truncate, stronger", Degradation("truncate", fraction=0.8)))
    return [*kinds, *_ACQUISITIONS]


def planned_degradations(experiment: Experiment, samples: int) -> list[Entry]:
    """The training degradations of an experiment (both ends, seeded draws between them), then its protocol."""
    ranges = experiment.degradation
    low, high = ranges.end(0), ranges.end(1)
    # Descriptions hold only what the kind reads: two truncations with another `mix` are equal.
    varies = describe(low) != describe(high)
    entries = [("lower end", low), ("upper end", high)] if varies else [("training", low)]
    if varies:
        rng = np.random.default_rng([experiment.seed, 3])
        entries[1:1] = [(f"drawn {i + 1}", ranges.sample(rng)) for i in range(samples)]
    return [*entries, (f"validation: {experiment.validation.protocol}", PROTOCOLS[experiment.validation.protocol])]


def load_volume(experiment: Experiment, volume: Path | None) -> tuple[str, np.ndarray, float]:
    """Name, normalised voxels (D, H, W) float32 and the intensity of no signal. The volume is the file, or the store's
    first training subject (else its first subject). Raises ConfigError for an empty store.
    """
    if volume is not None:
        read = read_volume(volume)
        intensity = read.intensity()
        return volume.name, intensity.normalise(read.physical()), intensity.no_signal
    store = VolumeStore.open(experiment.data.store)
    subjects = store.subjects("train") or store.subjects()
    if not subjects:
        raise ConfigError(f"data.store: {store.path} holds no subjects; convert some, or give --volume FILE")
    return subjects[0], store.read_normalised(subjects[0]), store.record(subjects[0]).intensity.no_signal


def shown_axis(degradation: Degradation) -> int:
    """The axis perpendicular to the shown plane: the first one that is not degraded, else left-right."""
    free = [axis for axis in range(3) if axis not in degradation.transform_axes]
    return free[0] if free else 0


def central_plane(volume: np.ndarray, axis: int) -> np.ndarray:
    """The central plane of (D, H, W) perpendicular to `axis`, its second axis pointing up."""
    return volume.take(volume.shape[axis] // 2, axis=axis).T[::-1]


def log_spectrum(volume: np.ndarray, axis: int) -> np.ndarray:
    """log10 of the spectrum's magnitude in the plane perpendicular to `axis`, DC in the middle.

    volume: (D, H, W), normalised. The root mean square over the volume's planes (equal, by Parseval, to that over the
    frequencies of the axis), per voxel of a plane, at least 1e-6.
    """
    plane = tuple(a for a in range(3) if a != axis)
    power = np.square(np.abs(fft.fft2(volume, axes=plane))).mean(axis=axis)
    magnitude = np.sqrt(power) / power.size
    return np.log10(np.maximum(np.fft.fftshift(magnitude), 1e-6)).T[::-1]


def contact_sheet(
    hr: np.ndarray, entries: Sequence[Entry], title: str = "", blocks: int = 1, no_signal: float = 0.0
) -> Figure:
    """One row per degradation: low resolution | difference to the original | log-spectrum; the original comes first.

    hr: (D, H, W) float32, normalised; no_signal: as in `degrade`. blocks: rows side by side. Images share the grey
    scale of the original. A difference has its own symmetric scale, written beside it. The PSNR is that of the slice.
    """
    cells: list[Entry | None] = [None, *entries]
    rows = -(-len(cells) // blocks)
    planes = [central_plane(hr, 0 if entry is None else shown_axis(entry[1])).shape for entry in cells]
    panel, caption, head = 1.75, 0.42, 0.3 if title else 0.05  # inches
    width = (panel + 0.06) * 3 * blocks
    tall = panel * max(h / w for h, w in planes) + caption
    height = tall * rows + head
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, 3 * blocks, squeeze=False)
    edge = 0.04 / width
    figure.subplots_adjust(
        left=edge, right=1 - edge, wspace=0.03, bottom=caption / 2 / height, top=1 - (head + caption / 2) / height,
        hspace=caption / (tall - caption),
    )  # fmt: skip
    for axes in grid.flat:
        axes.set_axis_off()
    for i, entry in enumerate(cells):
        block, row = divmod(i, rows)
        _row(grid[row, 3 * block : 3 * block + 3], hr, entry, no_signal)
    if title:
        figure.suptitle(title, fontsize=10, y=1 - 0.05 / height, va="top")
    return figure


def write_sheet(figure: Figure, path: Path, dpi: int) -> None:
    """Save as PNG with a palette of 128 colours: a third of the size at the same look."""
    from PIL import Image

    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    figure.set_dpi(dpi)
    canvas.draw()
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    image.quantize(128, dither=Image.Dither.NONE).save(path, format="PNG", optimize=True)


def _row(panels: np.ndarray, hr: np.ndarray, entry: Entry | None, no_signal: float) -> None:
    axis = 0 if entry is None else shown_axis(entry[1])
    lr = hr if entry is None else degrade(hr, entry[1], no_signal=no_signal)
    high, low = central_plane(hr, axis), central_plane(lr, axis)
    image, difference, spectrum = panels
    bottom, top = (float(q) for q in np.percentile(high, [0.5, 99.8]))
    image.imshow(low, cmap="gray", vmin=bottom, vmax=max(top, bottom + 1e-6))
    spectrum.imshow(log_spectrum(lr, axis), cmap="magma", vmin=-5.5, vmax=-2.0)
    spectrum.set_title("log-spectrum", fontsize=7, pad=2)
    if entry is None:
        image.set_title("original", fontsize=8, fontweight="bold", loc="left", pad=2)
        return
    name, degradation = entry
    error = low - high
    limit = max(float(np.percentile(np.abs(error), 99.5)), 1e-6)
    difference.imshow(error, cmap="RdBu_r", vmin=-limit, vmax=limit)
    difference.set_title(f"difference, ±{limit:.2g}", fontsize=7, pad=2)
    image.set_title(
        f"{name}: {peak_signal_to_noise(high, low):.1f} dB", fontsize=8, fontweight="bold", loc="left", pad=2
    )
    image.text(0.0, -0.02, describe(degradation), fontsize=6.5, transform=image.transAxes, va="top")
