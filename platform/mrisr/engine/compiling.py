"""torch.compile for the generator, kept only where it gives eager's gradients.

The critic is never compiled: its penalty differentiates twice, and what torch.compile makes can be differentiated once
(torch 2.13 raises "does not currently support double backward"). The generator is differentiated once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mrisr.engine.objectives import PretrainObjective, widened
from mrisr.engine.sharding import on_every_rank
from mrisr.models import MDCSRN
from mrisr.models.batchnorm import frozen_statistics
from mrisr.models.mdcsrn import DenseUnit

# Largest relative distance of the gradients. Compiled kernels round at other places than eager ones: in bfloat16 the
# inner results of a unit stay in float32 where eager rounds each to 8 bits.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
# All units share one piece of code, compiled anew for what `variants` counts. Beyond the limit, 8 by default,
# torch.compile goes on in eager mode without a word; each variant takes seconds.
VARIANTS = 128


def variants(units: int, micro_batches: int) -> int:
    """How often a unit's code is compiled at most. Each of a block's `units` has its width, and is compiled for every
    micro-batch of a step (each has its own momentum of BatchNorm), for the usual momentum, in the comparison and in
    recomputation (twice if the layout changed in between), and without gradients.
    """
    return units * (micro_batches + 3)


def why_eager(units: int, micro_batches: int, synchronised: bool) -> str | None:
    """Why a generator of so many units per block is not to be compiled at all, with the remedy; None if it may be.

    micro_batches: per step and rank. synchronised: whether BatchNorm is (StepConfig.batchnorm_over).
    """
    if synchronised:
        return (
            "BatchNorm is synchronised over the workers, in the middle of what would be compiled; give "
            "training.micro_batch a number to have it per worker"
        )
    if (count := variants(units, micro_batches)) > VARIANTS:
        return (
            f"{micro_batches} micro-batches of {units} widths are {count} variants to compile, more than {VARIANTS}; "
            "use a larger training.micro_batch"
        )
    return None


def gradients(generator: nn.Module, lr: Tensor, hr: Tensor, precision: str) -> dict[str, Tensor]:
    """The L1 loss' gradients by parameter, float64 copies. Running statistics and `.grad` are left as they were.

    lr, hr: (B, 1, P, P, P) on the generator's device; precision: fp32 or bf16 (autocast).
    """
    parameters = dict(generator.named_parameters())
    with frozen_statistics(generator), torch.autocast(lr.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = PretrainObjective()(widened(generator(lr)), hr)
    found = torch.autograd.grad(loss, list(parameters.values()))
    return {name: value.detach().double() for name, value in zip(parameters, found, strict=True)}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """norm(found - expected) / norm(expected) of all gradients together; NaN or inf where they are not finite."""
    difference = sum(float((found[name] - value).square().sum()) for name, value in expected.items())
    return (difference / sum(float(value.square().sum()) for value in expected.values())) ** 0.5


def compile_generator(
    generator: MDCSRN, count: int, patch_size: int, precision: str, backend: str | Callable[..., Any] = "inductor"
) -> float | None:
    """Compile every dense unit of a generator in place, unless that changes its gradients.

    count, patch_size: of the patches that it will see; the comparison on seeded noise of that size compiles for them.
    The generator must be on its device, in the layout and with the recomputation that it will train with; whole units
    are compiled, so that recomputation, which works between them, stays as it is. Every rank must call it.
    Returns this rank's distance of the gradients from eager's, or None if any rank's was beyond TOLERANCE or compiling
    failed there, for want of a C compiler, say: then nothing is compiled on any, since ranks of different numbers and
    speeds help nobody.
    """
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    device = generator.conv0.weight.device
    noise = torch.Generator().manual_seed(0)
    shape = (count, 1, patch_size, patch_size, patch_size)
    lr, hr = (torch.rand(shape, generator=noise).to(device) for _ in range(2))
    units = [part for part in generator.modules() if isinstance(part, DenseUnit)]
    mode, last = generator.training, generator.recon.weight
    kept = last.detach().clone()
    generator.train()
    try:
        with torch.no_grad():  # a residual generator's last layer starts at zero, which would hide every other gradient
            last.copy_(torch.randn(last.shape, generator=noise))
        expected = gradients(generator, lr, hr, precision)
        for unit in units:
            unit.compile(backend=backend, dynamic=False)
        try:
            found = distance(gradients(generator, lr, hr, precision), expected)
        except Exception as error:  # whatever a compiler, its back ends or the machine's own tools raise
            print(f"training.compile: compiling failed: {_reason(error)}", flush=True)
            found = math.inf
    finally:
        with torch.no_grad():
            last.copy_(kept)
        generator.train(mode)
    if on_every_rank(found <= TOLERANCE[precision], device):
        return found
    for unit in units:
        unit._compiled_call_impl = None
    return None


def _reason(error: Exception) -> str:
    """The first line of what went wrong; that of torch's wrapper names its back end only."""
    cause = getattr(error, "inner_exception", error)
    return f"{type(cause).__name__}: {cause}".splitlines()[0][:200]
