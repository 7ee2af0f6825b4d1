"""In which precision a generator runs: bfloat16 where a device is made for it, float32 elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "fp32", "bf16"]
Computed = Literal["fp32", "bf16"]


def native_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 itself: a GPU since Ampere, a CPU with AVX512-BF16.

    Other CPUs take torch's reference convolution: an L1 step of a small generator took 32 times as long in bfloat16 as
    in float32 on one with AVX2. Older GPUs emulate. A CPU that torch cannot ask (torch 2.11, not x86-64) counts as one
    without.
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
