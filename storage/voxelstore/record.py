from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from voxelstore.errors import StoreError
from voxelstore.intensity import IntensityMap
from voxelstore.volume import to_physical

Triple = tuple[int, int, int]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class SubjectRecord:
    """One subject of a store; arrays are in canonical orientation (RAS+).

    group: the person; volumes of one group share a split. shape: (D, H, W). spacing: mm per voxel. dtype: of the stored
    voxels, such as "int16". Physical intensity = voxel * slope + intercept. affine: 4 rows of 4, canonical indices to
    mm. foreground_box: half-open, in voxels. mask_block: edge of a block of the coarse foreground mask, in voxels.
    source, size, mtime_ns, sha256: of the converted file. content: SHA-256 of the voxels as stored. image: SHA-256 of
    the image, independent of type and scale; "" in records of earlier versions until the next conversion.
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
    image: str = ""

    @property
    def content_hash(self) -> str:
        """Equal if two subjects, of any stores, are one image: `image`, or `content` in an old record."""
        return self.image or self.content

    def normalised(self, voxels: np.ndarray) -> np.ndarray:
        """Stored voxels, or any part of them, to float32 in about [0, 1] (see `IntensityMap`)."""
        plain = (self.slope, self.intercept) == (1.0, 0.0)
        return self.intensity.normalise(voxels if plain else to_physical(voxels, self.slope, self.intercept))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any, where: str) -> SubjectRecord:
        """The inverse of `to_json`. Raises StoreError that names `where` for a damaged record."""
        try:
            lists = {key: _tuples(value[key]) for key in ("shape", "spacing", "affine", "foreground_box")}
            return cls(**{**value, **lists, "intensity": IntensityMap(**value["intensity"])})
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{where}: damaged record ({type(error).__name__}: {error}); delete that subject's folder and convert "
                "again"
            ) from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
