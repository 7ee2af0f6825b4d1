"""The largest batch that a given amount of memory holds, found by estimates alone: `mrisr train --fit-memory 8GiB`."""

from __future__ import annotations

import re
from collections.abc import Callable

# Estimates count live tensors; kernels' workspace, the allocator's rounding and the CUDA context come on top.
USABLE = 0.85
_UNITS = {"": 1, "B": 1, **{f"{p}iB": 2 ** (10 * i) for i, p in enumerate("KMGT", 1)},
          **{f"{p}B": 10 ** (3 * i) for i, p in enumerate("KMGT", 1)}}  # fmt: skip


def parse_bytes(text: str) -> int:
    """Bytes of `8GiB`, `7.5 GB`, `900MiB` or a plain number. Raises ValueError that says what the option takes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B)?\s*", text)
    if match is None or (match[2] or "") not in _UNITS or float(match[1]) <= 0:
        raise ValueError(f"--fit-memory {text!r} is no amount of memory; write 8GiB, 7.5GB or 900MiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def largest_batch(peak: Callable[[int], int], budget: int) -> int:
    """The largest n >= 1 with peak(n) <= budget; peak must not fall with n, and must grow in the end.

    It may be level at first, where something other than the batch needs most. Raises ValueError if not even 1 fits.
    """
    first = peak(1)
    if first > budget:
        raise ValueError(
            f"--fit-memory: a single patch needs {first / 2**30:.2f} GiB and {budget / 2**30:.2f} GiB are usable; set "
            "generator.recompute=true, training.precision=bf16, critic.kind=separable or a smaller stream.patch_size "
            "and validation.patch_size"
        )
    fits, too_many = 1, 2
    while peak(too_many) <= budget:
        fits, too_many = too_many, 2 * too_many
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if peak(middle) <= budget else (fits, middle)
    return fits
