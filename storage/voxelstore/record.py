"""What the store knows of one subject."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from voxelstore.errors import StoreError
from voxelstore.intensity import IntensityMap

Triple = tuple[int, int, int]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class SubjectRecord:
    """One subject of a store; arrays are in canonical orientation (RAS+).

    group: who is on it, a person; volumes of one group share a split. shape: (D, H, W).
    spacing: mm per voxel. dtype: of the stored voxels, such as "int16". Physical intensity
    = voxel * slope + intercept. affine: 4 rows of 4, canonical indices to mm. foreground_box: half-open, in
    voxels. mask_block: edge of a block of the coarse foreground mask, in voxels. source, size, mtime_ns,
    sha256: the file it came from. content: SHA-256 of the voxels themselves, which tells the same image in
    another container.
    """

    subject: str
    split: str | None
    group: str
    shape: Triple
    spacing: tuple[float, float, float]
    dtype: str
    slope: float
    intercept: float
    affine: tuple[tuple[float, ...], ...]
    intensity: IntensityMap
    foreground_box: Box
    mask_block: int
    source: str
    sha256: str
    size: int
    mtime_ns: int
    content: str

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON's types."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any, where: str) -> SubjectRecord:
        """The inverse of `to_json`; raises StoreError that names `where` if it is damaged."""
        try:
            return cls(
                **{
                    **value,
                    "shape": _tuples(value["shape"]),
                    "spacing": _tuples(value["spacing"]),
                    "affine": _tuples(value["affine"]),
                    "foreground_box": _tuples(value["foreground_box"]),
                    "intensity": IntensityMap(**value["intensity"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{where}: damaged record ({type(error).__name__}: {error}); "
                "delete that subject's folder and convert again"
            ) from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
