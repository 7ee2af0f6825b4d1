"""Peak memory of a step, found without running it: every tensor is fake, only its bytes are counted."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from mrisr.engine.objectives import CriticObjective, GeneratorObjective, PretrainObjective
from mrisr.models import MDCSRN, build_critic


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and their peak, while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return out

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage from now until it is freed; views of a counted storage cost nothing."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def peak_bytes(
    generator_config: dict[str, Any],
    critic_kind: str | None,
    patch_size: int,
    micro_batch: int,
    precision: str = "bf16",
    recompute: bool = False,
    critic_samples: int | None = 1,
    device: str = "cpu",
    validation_patch: int | None = None,
    ema: bool = False,
    accumulates: bool = False,
) -> dict[str, int]:
    """Peak bytes per step kind (`pretrain`, `inference`, and with a critic `critic` and `generator`), parameters,
    gradients and Adam's moments of both networks included; kernels' workspace and allocator slack are not.

    micro_batch: patches of patch_size^3 per forward pass. critic_samples: as StepConfig's. Inference is a forward pass
    of the generator alone in evaluation mode, with what training keeps beside it: the copy that is evaluated and, with
    ema, the moving average. validation_patch: also `validation`, one cube of that edge through the copy in one piece.
    accumulates: a step has several micro-batches, so that the gradients of the first are there during the others.
    """
    generator = MDCSRN(**generator_config, recompute=recompute)
    evaluated = MDCSRN(**generator_config).eval()
    kept: list[nn.Module] = [evaluated, *([MDCSRN(**generator_config)] if ema else [])]
    critic = None
    if critic_kind is not None:
        critic = CriticObjective(build_critic(critic_kind, patch_size), samples_at_once=critic_samples)

    def generate(lr: Tensor, module: nn.Module = generator) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            return module(lr).float()

    def pretrain(lr: Tensor, hr: Tensor) -> None:
        PretrainObjective()(generate(lr), hr).backward()

    def adversarial(lr: Tensor, hr: Tensor) -> None:
        assert critic is not None
        fake = generate(lr)
        GeneratorObjective()(fake, hr, critic(fake)).loss.backward()

    def train_critic(lr: Tensor, hr: Tensor) -> None:
        assert critic is not None
        with torch.no_grad():
            fake = generate(lr)
        critic(fake, hr, torch.rand(lr.shape[0], device=device)).loss.backward()

    def infer(lr: Tensor, hr: Tensor) -> None:
        with torch.no_grad():
            generate(lr, evaluated)

    steps: dict[str, Callable[..., None]] = {"pretrain": pretrain, "inference": infer}
    if critic_kind is not None:
        steps |= {"critic": train_critic, "generator": adversarial}
    # The generator has Adam's moments twice once there is a critic: its pretraining optimizer has its own.
    twice: list[nn.Module] = [generator] if critic is None else [generator, generator, critic]
    peaks = {
        name: live_peak(step, twice, patch_size, micro_batch, device, kept, passes=2 if accumulates else 1)
        for name, step in steps.items()
    }
    if validation_patch is not None:
        peaks["validation"] = live_peak(infer, twice, validation_patch, 1, device, kept)
    return peaks


def live_peak(
    step: Callable[[Tensor, Tensor], None],
    optimized: list[nn.Module],
    patch_size: int,
    micro_batch: int,
    device: str,
    kept: Sequence[nn.Module] = (),
    passes: int = 1,
) -> int:
    """Peak bytes of step(lr, hr) on fake patches (micro_batch, 1, P, P, P), from the parameters on.

    optimized: the modules that `step` trains; their parameters are counted once, Adam's two moments for every mention.
    kept: others that are there, without moments. passes: how often it is called, its gradients kept in between.
    """
    modules = list(dict.fromkeys([*optimized, *kept]))
    for module in modules:
        module.zero_grad(set_to_none=True)
    with FakeTensorMode(), LiveBytes() as bytes_:
        for module in modules:
            _make_fake(module, device)
        for module in modules:
            for parameter in module.parameters():
                bytes_.count(parameter)
        moments = [torch.empty_like(p) for module in optimized for p in module.parameters() for _ in range(2)]
        lr, hr = (torch.empty(micro_batch, 1, *[patch_size] * 3, device=device) for _ in range(2))
        for _ in range(passes):
            step(lr, hr)
        del moments
    return bytes_.peak


def _make_fake(module: nn.Module, device: str) -> None:
    """Replace all parameters and buffers by fake ones of the same shapes on `device`."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(torch.empty(parameter.shape, device=device))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
