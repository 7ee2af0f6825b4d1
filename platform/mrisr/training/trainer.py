"""TorchTrainer with fewer processes: each of Ray Train's takes 1 to 3 s of a core and delays the first step.

These are private names of Ray, which has no public way. Without one of them, its processes start after all.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray.train.torch import TorchTrainer

try:
    from ray.train.v2._internal.execution.controller import TrainController
except ImportError:
    TrainController = None

# Datasets reach the workers without Ray Train (mrisr.data.stream). The supervisor gives back the workers' room
# (mrisr.training.placement_groups), which Ray's cleaner can do only where there is a dashboard.
UNUSED_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")


class Trainer(TorchTrainer):
    """Runs Ray Train's controller in the calling actor instead of one more, and without UNUSED_CALLBACKS."""

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if type(one).__name__ not in UNUSED_CALLBACKS]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        if TrainController is None:
            return super()._initialize_and_run_controller(**parts)
        controller = TrainController(**parts)
        asyncio.run(controller.run())
        return controller.get_result()
