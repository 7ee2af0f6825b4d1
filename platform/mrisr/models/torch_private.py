"""The private names of torch that have no public counterpart, and what happens without them.

Nothing else in mrisr uses a private name of torch.

- Fake tensors, to count the memory of a step without computing it, have no public name yet
  (https://github.com/pytorch/pytorch/issues/113456). `torch.utils._python_dispatch` is the name in torch's own guide to
  extensions. Without them memory is not estimated: MemoryUnknownError.
- The backward of a torch.autograd.Function is not told which gradients are wanted
  (https://github.com/pytorch/pytorch/issues/174017). Without the private call it computes every gradient that may be
  needed: the same numbers, more time.
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
    """Inside it tensors have shapes and devices, but no data. Raises MemoryUnknownError."""
    if FakeTensorMode is None:
        raise MemoryUnknownError(f"torch {torch.__version__} has its fake tensors elsewhere; memory is not estimated")
    return FakeTensorMode()


def wanted_gradients(ctx: Any, *inputs: int) -> list[bool]:
    """For the backward of a torch.autograd.Function: whether the running differentiation needs these inputs' gradients.

    ctx.needs_input_grad only says what could be differentiated. A gradient penalty first differentiates with respect
    to the patch alone, which needs no gradient of a weight.
    """
    asked = getattr(torch._C, "_will_engine_execute_node", None)

    def wanted(index: int) -> bool:
        if not ctx.needs_input_grad[index] or asked is None:
            return bool(ctx.needs_input_grad[index])
        try:
            return bool(asked(ctx.next_functions[index][0]))
        except RuntimeError:
            return True  # a leaf that autograd.grad was asked about

    return [wanted(index) for index in inputs]
