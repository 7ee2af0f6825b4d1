"""torch.compile for the generator, used only if its gradients match those of eager mode.

The critic is never compiled: its penalty differentiates twice, and torch 2.13 raises "does not currently support double
backward" for compiled code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mrisr.engine.objectives import PretrainObjective, at_least_float32
from mrisr.engine.sharding import on_every_rank
from mrisr.models.batchnorm import frozen_statistics
from mrisr.models.generator import Generator

# Largest relative distance of the gradients. In bfloat16 a compiled unit keeps its inner results in float32; eager mode
# rounds each to 8 bits.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
# The limit of compilations (see `variants`); each takes seconds. Beyond torch's limit, 8 by default, torch.compile
# silently continues in eager mode.
VARIANTS = 128


def variants(units: int, micro_batches: int) -> int:
    """The largest number of compilations for this many different units.

    Each unit is compiled for every micro-batch of a step (each has its own momentum of BatchNorm), for the usual
    momentum in the comparison and in recomputation (twice if the layout changed in between), and without gradients.
    """
    return units * (micro_batches + 3)


def different_units(generator: Generator) -> int:
    """How many of the generator's compilable modules differ in the shapes of their parameters."""
    return len({tuple(parameter.shape for parameter in unit.parameters()) for unit in generator.compilable()})


def why_eager(units: int, micro_batches: int, synchronised: bool) -> str | None:
    """Why this generator is not compiled, with the remedy; None if it can be. micro_batches: per step and rank."""
    if units == 0:
        return "this kind of generator names no parts to compile"
    if synchronised:
        return (
            "BatchNorm is synchronised over the workers, in the middle of what would be compiled; give "
            "training.micro_batch a number to have it per worker"
        )
    if (count := variants(units, micro_batches)) > VARIANTS:
        return (
            f"{micro_batches} micro-batches of {units} different units are {count} variants to compile, more than "
            f"{VARIANTS}; use a larger training.micro_batch"
        )
    return None


def gradients(generator: nn.Module, lr: Tensor, hr: Tensor, precision: str) -> dict[str, Tensor]:
    """The gradients of the L1 loss by parameter, as float64 copies. Running statistics and `.grad` do not change.

    lr, hr: (B, 1, P, P, P) on the generator's device; precision: fp32 or bf16 (autocast).
    """
    parameters = dict(generator.named_parameters())
    with frozen_statistics(generator), torch.autocast(lr.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = PretrainObjective()(at_least_float32(generator(lr)), hr)
    found = torch.autograd.grad(loss, list(parameters.values()))
    return {name: value.detach().double() for name, value in zip(parameters, found, strict=True)}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """norm(found - expected) / norm(expected) over all gradients; NaN or inf if they are not finite."""
    difference = sum(float((found[name] - value).square().sum()) for name, value in expected.items())
    return (difference / sum(float(value.square().sum()) for value in expected.values())) ** 0.5


def compile_generator(
    generator: Generator,
    count: int,
    patch_size: int,
    precision: str,
    backend: str | Callable[..., Any] = "inductor",
    tell: Callable[[str], None] = print,
) -> float | None:
    """Compile the generator's compilable modules in place, unless that changes its gradients. Every rank must call it.

    count, patch_size: of the training patches; the comparison uses seeded noise of that size. The generator must
    already have its device, layout and recomputation. Returns the relative distance of this rank's gradients from those
    of eager mode. Returns None, with nothing compiled on any rank, if one rank's distance exceeds TOLERANCE or its
    compilation fails (for example without a C compiler); `tell` is given the reason.
    """
    torch.compiler.config.recompile_limit = max(VARIANTS, torch.compiler.config.recompile_limit)
    device = next(generator.parameters()).device
    noise = torch.Generator().manual_seed(0)
    shape = (count, 1, patch_size, patch_size, patch_size)
    lr, hr = (torch.rand(shape, generator=noise).to(device) for _ in range(2))
    units, mode = generator.compilable(), generator.training
    generator.train()
    try:
        with _random_instead_of_zeros(generator, noise):
            expected = gradients(generator, lr, hr, precision)
            for unit in units:
                unit.forward = torch.compile(unit.forward, backend=backend, dynamic=False)
            try:
                found = distance(gradients(generator, lr, hr, precision), expected)
            except Exception as error:  # whatever a compiler, its back ends or the machine's own tools raise
                tell(f"training.compile: compiling failed: {_reason(error)}")
                found = math.inf
    finally:
        generator.train(mode)
    if on_every_rank(found <= TOLERANCE[precision], device):
        return found
    for unit in units:
        del unit.forward  # back to the method of its class
    return None


@contextmanager
def _random_instead_of_zeros(generator: nn.Module, noise: torch.Generator) -> Iterator[None]:
    """In the block, all-zero weights are random. A last layer of zeros would make all other gradients zero."""
    zeros = [weight for weight in generator.parameters() if weight.ndim > 1 and not weight.any()]
    with torch.no_grad():
        for weight in zeros:
            weight.copy_(torch.randn(weight.shape, generator=noise))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight in zeros:
                weight.zero_()


def _reason(error: Exception) -> str:
    """The first line of the actual error. The error of torch's wrapper names its back end only."""
    cause = getattr(error, "inner_exception", error)
    return f"{type(cause).__name__}: {cause}".splitlines()[0][:200]
