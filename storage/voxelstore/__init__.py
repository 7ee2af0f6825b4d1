"""Brain volumes in a Zarr v3 store: NIfTI and MGH in, lossless inside, written back in the source's own space.

It may import numpy, scipy, nibabel and zarr; nothing of mrisr, Ray or torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voxelstore.convert import convert_volume, find_volumes, person_of, subject_id
    from voxelstore.errors import StoreError, VolumeError
    from voxelstore.intensity import IntensityMap, intensity_map
    from voxelstore.record import SubjectRecord
    from voxelstore.splits import SplitRule
    from voxelstore.store import VolumeStore
    from voxelstore.volume import SourceVolume, read_volume, write_volume

# Imported when they are first used, because zarr and nibabel take a second.
_MODULES = {
    "IntensityMap": "intensity",
    "SourceVolume": "volume",
    "SplitRule": "splits",
    "StoreError": "errors",
    "SubjectRecord": "record",
    "VolumeError": "errors",
    "VolumeStore": "store",
    "convert_volume": "convert",
    "find_volumes": "convert",
    "intensity_map": "intensity",
    "person_of": "convert",
    "read_volume": "volume",
    "subject_id": "convert",
    "write_volume": "volume",
}

__all__ = [
    "IntensityMap",
    "SourceVolume",
    "SplitRule",
    "StoreError",
    "SubjectRecord",
    "VolumeError",
    "VolumeStore",
    "convert_volume",
    "find_volumes",
    "intensity_map",
    "person_of",
    "read_volume",
    "subject_id",
    "write_volume",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"voxelstore.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'voxelstore' has no attribute {name!r}")
