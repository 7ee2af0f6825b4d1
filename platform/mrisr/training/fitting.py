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
    """The largest n >= 1 with peak(n) <= budget; peak must not fall with n. Raises ValueError if not even 1 fits.

    Activations grow linearly with the batch, so a line through peak(1) and peak(2) says where to look first.
    """
    first, second = peak(1), peak(2)
    if first > budget:
        raise ValueError(
            f"--fit-memory: a single patch needs {first / 2**30:.2f} GiB and {budget / 2**30:.2f} GiB are usable; set "
            "generator.recompute=true, training.precision=bf16, critic.kind=separable or a smaller stream.patch_size"
        )
    n = max(1, 1 + (budget - first) // max(1, second - first))
    while n > 1 and peak(n) > budget:
        n -= 1
    while peak(n + 1) <= budget:
        n += 1
    return n
