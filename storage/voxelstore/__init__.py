"""Brain volumes in a Zarr v3 store: NIfTI and MGH in, lossless inside, written back in the source's own space.

It may import numpy, scipy, nibabel and zarr; nothing of mrisr, Ray or torch.
"""

from voxelstore.convert import convert_volume, find_volumes, person_of, subject_id
from voxelstore.errors import StoreError, VolumeError
from voxelstore.intensity import IntensityMap, intensity_map
from voxelstore.record import SubjectRecord
from voxelstore.splits import SplitRule
from voxelstore.store import VolumeStore
from voxelstore.volume import SourceVolume, read_volume, write_volume

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
