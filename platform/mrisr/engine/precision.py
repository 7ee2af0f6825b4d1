"""In which precision a generator runs: bfloat16 where a device is made for it, float32 elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "fp32", "bf16"]
Computed = Literal["fp32", "bf16"]


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


def chosen(precision: Precision, device: torch.device) -> Computed:
    """What a precision means on a device: `auto` is bf16 where that is native, fp32 elsewhere; others are as given."""
    if precision != "auto":
        return precision
    return "bf16" if native_bf16(device) else "fp32"
