"""A part of a volume: one slice along each axis."""

from __future__ import annotations

Region = tuple[slice, slice, slice]
WHOLE: Region = (slice(None), slice(None), slice(None))


def along(axis: int, chosen: slice, region: Region = WHOLE) -> Region:
    """`region` with another slice along one axis."""
    d, h, w = (chosen if a == axis else part for a, part in enumerate(region))
    return d, h, w
