"""In which precision a generator runs: bfloat16 where a device is made for it, float32 elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


COMPUTED = ("fp32", "bf16")
# What training.precision may be; `chosen` makes one of COMPUTED of it.
PRECISIONS = ("auto", *COMPUTED)


def native_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 itself: a GPU since Ampere, a CPU with AVX512-BF16.

    On a CPU with AVX2 alone torch took its reference convolution: the gradients of a small generator took 32 times as
    long in bfloat16 as in float32. Older GPUs emulate. CPUs of other kinds, and all of them under a torch that cannot
    ask them (2.11), count as not made for it.
    """
    import torch  # not above: the configuration's --help has no need of it

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16", False))


def chosen(precision: str, device: torch.device) -> str:
    """What a precision means on a device: `auto` is bf16 where that is native, fp32 elsewhere; others are as given."""
    return "bf16" if precision == "bf16" or (precision == "auto" and native_bf16(device)) else "fp32"
