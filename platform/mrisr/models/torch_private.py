"""The private names of torch that mrisr needs, and the fallback without them. No other module uses private names of
torch.

- Fake tensors count the memory of a step without computing it. They have no public name yet
  (https://github.com/pytorch/pytorch/issues/113456). torch's own guide to extensions uses
  `torch.utils._python_dispatch`. Fallback: MemoryUnknownError.
- The backward of a torch.autograd.Function does not know which gradients are needed
  (https://github.com/pytorch/pytorch/issues/174017). Fallback: it computes every gradient that may be needed. The
  results are equal, but it takes more time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

try:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:
    FakeTensorMode, TorchDispatchMode = None, object  # type: ignore[assignment, misc]

__all__ = ["MemoryUnknownError", "TorchDispatchMode", "fake_tensors", "wanted_gradients"]


class MemoryUnknownError(RuntimeError):
    """This version of torch cannot count the memory of a step without computing it."""


def fake_tensors() -> AbstractContextManager[Any]:
    """In the block, tensors have shapes and devices, but no data. Raises MemoryUnknownError."""
    if FakeTensorMode is None:
        raise MemoryUnknownError(f"torch {torch.__version__} has its fake tensors elsewhere; memory is not estimated")
    return FakeTensorMode()


def wanted_gradients(ctx: Any, *inputs: int) -> list[bool]:
    """For the backward of a torch.autograd.Function: which of these inputs' gradients are needed.

    ctx.needs_input_grad is true for weights too, even while a gradient penalty differentiates by the patch only.
    """
    asked = getattr(torch._C, "_will_engine_execute_node", None)

    def wanted(index: int) -> bool:
        if not ctx.needs_input_grad[index] or asked is None:
            return bool(ctx.needs_input_grad[index])
        try:
            return bool(asked(ctx.next_functions[index][0]))
        except RuntimeError:
            return True  # a leaf that autograd.grad differentiates by

    return [wanted(index) for index in inputs]
