"""Distributed training, tuning and serving of 3D brain-MRI super-resolution on Ray.

`mrisr.superresolve`, `mrisr.load_model`, `mrisr.load_experiment` and `mrisr.train` are the interface for Python; see
mrisr/api.py. They are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrisr.api import load_experiment, load_model, superresolve, train

__version__ = "0.1.0"
__all__ = ["__version__", "load_experiment", "load_model", "superresolve", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("mrisr.api"), name)
    raise AttributeError(f"module 'mrisr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
