"""The base class of generators: a network with its own configuration that keeps the shape of its input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from mrisr.settings import check_bounds, check_types


@dataclass(frozen=True)
class GeneratorConfig:
    """The keys `generator.NAME` of an architecture, made by `setting`. Numbers have an upper bound, so that no weights
    file asks for more memory than a machine has. Raises ValueError for another type and for a value out of bounds.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self) -> None:
        check_types(self, "generator")
        check_bounds(self, "generator")


class Generator(nn.Module):
    """Maps low-resolution patches to high-resolution ones of the same shape.

    Input and output: (B, 1, D, H, W) float32, normalised intensities, any D, H, W. A subclass sets Config and is built
    as `Class(config, seed=0)`; its initial weights depend on the seed only (see `seeding.initialise`).
    """

    Config: ClassVar[type[GeneratorConfig]]

    #: Compute inner activations again in the backward pass instead of keeping them. A generator may ignore it.
    recompute = False
    #: Keep activations in torch.channels_last_3d: the same numbers up to rounding. A generator may ignore it.
    channels_last = False

    def __init__(self, config: Any, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config

    def compilable(self) -> list[nn.Module]:
        """The submodules that `training.compile` compiles separately; empty by default."""
        return []

    def load_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the weights of an equal network. Raises ValueError that lists missing and unexpected names and wrong
        shapes.
        """
        own = self.state_dict()
        shapes = [
            f"{name} is {tuple(state_dict[name].shape)}, expected {tuple(own[name].shape)}"
            for name in own
            if name in state_dict and state_dict[name].shape != own[name].shape
        ]
        problems = [
            f"{what}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
            for what, names in (
                ("missing", sorted(own.keys() - state_dict.keys())),
                ("unexpected", sorted(state_dict.keys() - own.keys())),
                ("shape", shapes),
            )
            if names
        ]
        if problems:
            raise ValueError(
                f"the weights do not fit {self.config}: {'; '.join(problems)}; choose the size that the weights were "
                "trained with"
            )
        self.load_state_dict(state_dict)

    def load_reference_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load weights that have no configuration, such as those of a public implementation, strictly.

        state_dict: name -> tensor. Names may have DataParallel's prefix `module.`; BatchNorm's `num_batches_tracked`
        may be missing, as in files older than PyTorch 0.4.1. A subclass whose public weights have other names overrides
        this method. Raises ValueError like `load_weights`.
        """
        optional = {name: value for name, value in self.state_dict().items() if name.endswith("num_batches_tracked")}
        self.load_weights(optional | {name.removeprefix("module."): value for name, value in state_dict.items()})
