"""torch.compile: eager's numbers or nothing, and never under a second derivative. No C++ compiler is needed here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from mrisr.engine.compiling import compile_generator, distance, gradients, variants, why_eager
from mrisr.engine.networks import build_networks
from mrisr.engine.objectives import CriticObjective
from mrisr.engine.schedule import Phase
from mrisr.engine.sharding import full_state
from mrisr.engine.step import train_step
from mrisr.engine.step_settings import StepConfig
from mrisr.models import MDCSRN, build_critic
from mrisr.models.mdcsrn import MDCSRNConfig


def noise(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    hr = torch.rand(count, 1, size, size, size, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.avg_pool3d(hr, 3, stride=1, padding=1), hr


def is_compiled(module: torch.nn.Module) -> bool:
    return any("forward" in vars(part) for part in module.modules())


def test_compiled_steps_are_eagers_steps() -> None:
    """Every phase, with recomputation and micro-batches, which move BatchNorm's momentum."""
    runs = []
    backend = CompileCounterWithBackend("aot_eager")
    for compiled in (False, True):
        generator = MDCSRN(MDCSRNConfig(2, 1, 2, residual=True), seed=1)
        if compiled:
            generator.recompute = True
            before = {name: value.clone() for name, value in generator.state_dict().items()}
            found = compile_generator(generator, 1, 16, "fp32", backend=backend)
            assert found is not None
            assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())
        config = StepConfig(batch_size=2, micro_batch=1, recompute=True, pretrain_lr=1e-3, generator_lr=1e-3)
        networks = build_networks(generator, build_critic("separable", 16), config, torch.device("cpu"), "single")
        metrics = [train_step(networks, config, phase, 0, *noise(2, 16)) for phase in Phase]
        runs.append((metrics, full_state(networks.generator)))
        assert networks.critic is not None
        assert (is_compiled(generator), is_compiled(networks.critic)) == (compiled, False)
    assert 2 < backend.frame_count <= variants(units=2, micro_batches=2), "beyond the limit torch goes eager unsaid"
    for eager, own in zip(runs[0][0], runs[1][0], strict=True):
        assert own == pytest.approx(eager, rel=1e-4, abs=1e-6)
    for name, value in runs[0][1].items():
        torch.testing.assert_close(runs[1][1][name], value, rtol=1e-4, atol=1e-6)


def test_it_is_said_why_nothing_is_compiled() -> None:
    assert why_eager(units=4, micro_batches=2, synchronised=False) is None
    assert why_eager(units=4, micro_batches=29, synchronised=False) is None
    too_many = why_eager(units=4, micro_batches=30, synchronised=False)
    assert too_many is not None
    assert "132 variants" in too_many
    assert "larger training.micro_batch" in too_many
    synchronised = why_eager(units=4, micro_batches=1, synchronised=True)
    assert synchronised is not None
    assert "training.micro_batch a number" in synchronised


def test_a_compiler_that_changes_the_gradients_is_not_used() -> None:
    def wrong(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        return lambda *values: tuple(1.01 * out for out in graph(*values))

    generator = MDCSRN(MDCSRNConfig(2, 1, 1), seed=1)
    expected = gradients(generator, *noise(2, 8), "fp32")
    assert compile_generator(generator, 2, 8, "fp32", backend=wrong) is None
    assert not is_compiled(generator)
    assert distance(gradients(generator, *noise(2, 8), "fp32"), expected) < 1e-6


def test_a_compiler_that_is_missing_leaves_the_generator_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    def missing(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        raise FileNotFoundError("No working C++ compiler found")

    generator = MDCSRN(MDCSRNConfig(2, 1, 1), seed=1)
    expected = gradients(generator, *noise(2, 8), "fp32")
    assert compile_generator(generator, 2, 8, "fp32", backend=missing) is None
    assert "compiling failed: FileNotFoundError: No working C++ compiler found" in capsys.readouterr().out
    assert not is_compiled(generator)
    assert distance(gradients(generator, *noise(2, 8), "fp32"), expected) < 1e-6


def test_the_penalty_cannot_be_compiled() -> None:
    """Should this fail one day, torch.compile has learnt the second derivative, and critics may have it too: those of
    torch's own operators, for it leaves out what it cannot follow, as the depthwise convolution's derivatives."""
    critic = build_critic("pointwise", 16)
    critic.compile(backend="aot_eager")
    lr, hr = noise(1, 16)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        CriticObjective(critic)(lr, hr, torch.tensor([0.5]))


def test_bf16_with_channels_last_keeps_the_gradients_to_its_own_precision() -> None:
    """bfloat16 rounds to 2^-8 = 0.4 %; some 20 layers of it, forward and back, may add up to a few times that."""
    generator, found = MDCSRN(MDCSRNConfig(8, 2, 3), seed=1).train(), []
    for fast in (False, True):
        generator.channels_last = fast
        found.append(gradients(generator, *noise(2, 16), "bf16" if fast else "fp32"))
    assert 0 < distance(found[1], found[0]) < 0.03
