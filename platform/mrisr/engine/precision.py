"""The precision of a generator: bfloat16 if the device computes it natively, else float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


COMPUTED = ("fp32", "bf16")
# The values of training.precision; `chosen` converts them to one of COMPUTED.
PRECISIONS = ("auto", *COMPUTED)


def native_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 natively: a GPU since Ampere, or a CPU with AVX512-BF16.

    With AVX2 only, bfloat16 took 32 times as long as float32. torch 2.11 cannot query CPUs, so it returns False.
    """
    import torch  # imported here to keep --help fast

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16", False))


def precision_on(precision: str, device: torch.device) -> str:
    """`auto` becomes bf16 if that is native to the device, else fp32. Other values are unchanged."""
    return "bf16" if precision == "bf16" or (precision == "auto" and native_bf16(device)) else "fp32"
