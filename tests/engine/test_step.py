"""One step in one process: accumulation, determinism, precision, and stopping before a bad update."""

import math
import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mrisr.engine.networks import Networks, build_networks, clipped_weights, evaluated_state
from mrisr.engine.schedule import Phase
from mrisr.engine.sharding import device_for_worker, float32_convolutions
from mrisr.engine.step import NonFiniteError, interpolation_coefficients, train_step
from mrisr.engine.step_settings import StepConfig
from mrisr.models import CRITICS, MDCSRN, build_critic
from mrisr.models.batchnorm import batchnorms
from mrisr.models.mdcsrn import MDCSRNConfig

CPU = torch.device("cpu")
RATES = {"pretrain_lr": 1e-3, "generator_lr": 1e-3, "critic_lr": 1e-3}


def build(critic: bool = True, **settings: object) -> tuple[Networks, StepConfig]:
    config = StepConfig(**{"batch_size": 2, **RATES, **settings})
    score = build_critic("pointwise", 16, seed=2) if critic else None
    return build_networks(MDCSRN(MDCSRNConfig(2, 2, 2), seed=1), score, config, CPU, "single"), config


def batch(count: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    hr = torch.rand(count, 1, 16, 16, 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool3d(hr, 3, stride=1, padding=1), hr


def weights(networks: Networks, part: str) -> dict[str, Tensor]:
    module = getattr(networks, part)
    return {name: value.detach().clone() for name, value in module.named_parameters()}


@pytest.mark.parametrize(
    ("phase", "part", "keys"),
    [
        (Phase.PRETRAIN, "generator", {"l1"}),
        (Phase.CRITIC, "critic", {"wasserstein", "penalty", "interpolate_gradient_norm"}),
        (Phase.GENERATOR, "generator", {"l1", "adversarial"}),
    ],
)
def test_a_phase_updates_its_network_alone(phase: Phase, part: str, keys: set[str]) -> None:
    networks, config = build()
    other = {"generator": "critic", "critic": "generator"}[part]
    before, untouched = weights(networks, part), weights(networks, other)
    statistics = [norm.running_mean.clone() for norm in batchnorms(networks.generator)]
    metrics = train_step(networks, config, phase, 0, *batch())
    assert metrics.keys() == keys | {"loss", "gradient_norm"}
    assert metrics["gradient_norm"] > 0
    assert any(not torch.equal(before[name], value) for name, value in weights(networks, part).items())
    assert all(torch.equal(untouched[name], value) for name, value in weights(networks, other).items())
    # BatchNorm's statistics follow the generator's updates, not the critic's.
    same = all(torch.equal(a, b.running_mean) for a, b in zip(statistics, batchnorms(networks.generator), strict=True))
    assert same == (phase is Phase.CRITIC)
    for network in (networks.generator, networks.critic):
        assert network is not None
        assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_the_gradient_norm_is_that_of_the_mean_over_the_batch() -> None:
    """Micro-batches add up to the gradient that autograd gives for the whole, computed here without train_step."""
    networks, config = build(critic=False, batch_size=4, micro_batch=2)
    lr, hr = batch(4)
    reference = MDCSRN(MDCSRNConfig(2, 2, 2), seed=1).train()
    loss = torch.stack([(reference(lr[i : i + 2]) - hr[i : i + 2]).abs().mean() for i in (0, 2)]).mean()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in reference.parameters()]).norm().item()
    metrics = train_step(networks, config, Phase.PRETRAIN, 0, lr, hr)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-3)
    optimizer.step()
    for name, value in reference.named_parameters():
        assert torch.allclose(networks.generator.get_parameter(name), value, atol=1e-6), name


def test_accumulation_leaves_the_critics_numbers_alone() -> None:
    """The critic couples no samples: with a generator of frozen outputs any micro-batch gives the same step."""
    results = []
    for micro in (1, 2, 4):
        # Adam's first step is next to the gradient's sign, which rounding may turn; with this epsilon, the gradient.
        networks, config = build(batch_size=4, micro_batch=micro, adam_eps=1.0, critic_lr=1.0)
        start = weights(networks, "critic")
        for norm in batchnorms(networks.generator):
            norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
            torch.nn.init.zeros_(norm.weight)  # BatchNorm is the only thing that sees the micro-batch
        metrics = train_step(networks, config, Phase.CRITIC, 5, *batch(4))
        results.append((metrics, weights(networks, "critic")))
    expected, updated = results[0]
    assert max(float((value - start[name]).abs().max()) for name, value in updated.items()) > 0.1
    for metrics, found in results[1:]:
        assert metrics == pytest.approx(expected, rel=1e-5, abs=1e-6)
        for name, value in updated.items():
            torch.testing.assert_close(found[name] - start[name], value - start[name], rtol=1e-3, atol=1e-6)


def test_interpolation_coefficients_belong_to_the_global_sample() -> None:
    whole = interpolation_coefficients(3, 7, 0, 6)
    assert torch.equal(torch.cat([interpolation_coefficients(3, 7, 2 * i, 2) for i in range(3)]), whole)
    assert ((whole >= 0) & (whole < 1)).all()
    assert len({*whole.tolist(), *interpolation_coefficients(3, 8, 0, 6).tolist()}) == 12
    assert not torch.equal(whole, interpolation_coefficients(4, 7, 0, 6))


def test_steps_are_deterministic_and_leave_the_global_state() -> None:
    before = torch.random.get_rng_state()
    runs = []
    for _ in range(2):
        networks, config = build()
        runs.append([train_step(networks, config, phase, 0, *batch()) for phase in Phase])
    assert runs[0] == runs[1]
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("settings", [{"channels_last": False}, {"recompute": True}])
def test_options_of_memory_leave_the_numbers_alone(settings: dict[str, bool]) -> None:
    runs = []
    for options in ({}, settings):
        networks, config = build(**options)
        runs.append([train_step(networks, config, phase, 0, *batch()) for phase in Phase])
    for own, expected in zip(*runs, strict=True):
        assert own == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_bf16_is_the_generators_alone() -> None:
    seen: dict[str, set[torch.dtype]] = {"generator": set(), "critic": set()}
    networks, config = build(precision="bf16")
    assert networks.critic is not None
    for part, layer in (("generator", networks.generator.recon), ("critic", networks.critic.critic.features[0])):
        layer.register_forward_hook(lambda module, args, out, part=part: seen[part].add(out.dtype))
    networks.generator.block0.register_forward_hook(lambda module, args, out: seen["generator"].add(out.dtype))
    for phase in Phase:
        train_step(networks, config, phase, 0, *batch())
    assert seen["generator"] == {torch.bfloat16}
    assert seen["critic"] == {torch.float32}
    assert all(p.dtype is torch.float32 for p in networks.generator.parameters())


@pytest.mark.parametrize("phase", list(Phase))
def test_a_loss_that_is_not_finite_stops_before_the_update(phase: Phase) -> None:
    networks, config = build()
    before = {part: weights(networks, part) for part in ("generator", "critic")}
    lr, hr = batch()
    hr[1, 0, 3, 3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match=rf"step 41 \({phase}\): the loss is not finite on rank 0") as caught:
        train_step(networks, config, phase, 41, lr, hr)
    assert (caught.value.step, caught.value.value, caught.value.ranks) == (41, "loss", [0])
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert [math.isfinite(terms["loss"]) for terms in caught.value.terms] == [True, False], "one for each micro-batch"
    for part, kept in before.items():
        assert all(torch.equal(kept[name], value) for name, value in weights(networks, part).items())


def test_a_gradient_that_is_not_finite_stops_before_the_update() -> None:
    networks, config = build(critic=False)
    networks.generator.recon.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = weights(networks, "generator")
    with pytest.raises(NonFiniteError, match="the gradient norm is not finite"):
        train_step(networks, config, Phase.PRETRAIN, 0, *batch())
    assert all(torch.equal(before[name], value) for name, value in weights(networks, "generator").items())


def test_wrong_settings_and_batches_are_errors_that_name_them() -> None:
    with pytest.raises(ValueError, match=r"training\.precision is 'fp16'"):
        StepConfig(precision="fp16")
    with pytest.raises(ValueError, match=r"training\.micro_batch is 0"):
        StepConfig(micro_batch=0)
    with pytest.raises(ValueError, match="is 6; with 2 workers and micro_batch 2 it must be a multiple of 4"):
        StepConfig(batch_size=6, micro_batch=2).local_batch(2)
    with pytest.raises(ValueError, match=r"training\.strategy is 'zero'"):
        build_networks(MDCSRN(MDCSRNConfig(2, 1, 1)), None, StepConfig(), CPU, "zero")
    networks, config = build(critic=False)
    with pytest.raises(ValueError, match="both need 2 patches"):
        train_step(networks, config, Phase.PRETRAIN, 0, *batch(3))
    with pytest.raises(ValueError, match="step 9 is a critic step, but the networks were built without a critic"):
        train_step(networks, config, Phase.CRITIC, 9, *batch())


def test_the_moving_average_follows_the_generator_and_is_what_is_evaluated() -> None:
    networks, config = build(ema_decay=0.75)
    start = weights(networks, "generator")
    expected = {name: value.clone() for name, value in start.items()}
    statistic = torch.zeros(())
    for index, phase in enumerate((Phase.PRETRAIN, Phase.CRITIC, Phase.GENERATOR)):
        train_step(networks, config, phase, index, *batch())
        if phase is not Phase.CRITIC:
            for name, value in weights(networks, "generator").items():
                expected[name] = 0.75 * expected[name] + 0.25 * value
            now = networks.generator.state_dict()["block0.denselayer1.norm.running_mean"]
            statistic = 0.75 * statistic + 0.25 * now
    state = evaluated_state(networks)
    assert state.keys() == networks.generator.state_dict().keys()
    for name, value in expected.items():
        assert torch.allclose(state[name], value, atol=1e-7), name
        assert not torch.equal(state[name], weights(networks, "generator")[name])
    assert torch.allclose(state["block0.denselayer1.norm.running_mean"], statistic, atol=1e-7)
    undecorated, _ = build()
    assert undecorated.ema == {}
    assert torch.equal(evaluated_state(undecorated)["conv0.weight"], start["conv0.weight"])


def test_weight_clipping_bounds_the_critic_and_nothing_else() -> None:
    networks, config = build(weight_clip=0.01, gp_weight=0.0)
    before = weights(networks, "generator")
    metrics = train_step(networks, config, Phase.CRITIC, 0, *batch())
    assert networks.critic is not None
    clipped = clipped_weights(networks.critic)
    assert max(value.abs().max().item() for value in clipped.values()) == pytest.approx(0.01)
    others = [value for name, value in weights(networks, "critic").items() if name not in clipped]
    assert max(value.abs().max().item() for value in others) > 0.9, "scales of normalisation layers stay"
    assert metrics["loss"] == pytest.approx(-metrics["wasserstein"])
    assert metrics["interpolate_gradient_norm"] > 0, "shown without a penalty too, for comparison"
    assert all(torch.equal(before[name], value) for name, value in weights(networks, "generator").items())


@pytest.mark.parametrize("kind", CRITICS)
def test_a_critic_with_clipped_weights_lives(kind: str) -> None:
    """With its norms' scales clipped too, the separable critic's gradient was 3e-17, and pointwise's 1e-7."""
    config = StepConfig(batch_size=2, **RATES, weight_clip=0.01, gp_weight=0.0)
    critic = build_critic(kind, 16, seed=2)
    networks = build_networks(MDCSRN(MDCSRNConfig(2, 1, 1), seed=1), critic, config, CPU, "single")
    for step in range(3):
        metrics = train_step(networks, config, Phase.CRITIC, step, *batch(seed=step))
    assert metrics["interpolate_gradient_norm"] > 1e-3
    assert metrics["gradient_norm"] > 0.1


def test_batchnorm_is_over_the_whole_batch_where_it_is_synchronised_else_over_a_micro_batch() -> None:
    synced = StepConfig(batch_size=6, micro_batch=3, sync_batchnorm=True)
    assert synced.batchnorm_over(workers=2, cuda=True) == 6
    assert synced.batchnorm_over(workers=2, cuda=False) == 3
    assert replace(synced, sync_batchnorm=False).batchnorm_over(workers=2, cuda=True) == 3
    assert StepConfig(batch_size=6, micro_batch=6, sync_batchnorm=True).batchnorm_over(workers=1, cuda=True) == 6
    with pytest.raises(ValueError, match=r"training\.micro_batch is 1: .* 2 workers .* use 3"):
        replace(synced, micro_batch=1).batchnorm_over(workers=2, cuda=True)
    networks, _ = build(batch_size=4, micro_batch=2, sync_batchnorm=True)
    assert networks.batchnorm_over == 2


def test_a_worker_without_a_reserved_gpu_stays_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray shows every GPU to a process that reserved no GPU. A reserved GPU that torch cannot use is an error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_for_worker(gpu=False) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"resources\.gpus=false"):
        device_for_worker(gpu=True)


def test_a_workers_float32_convolutions_are_what_the_configuration_says() -> None:
    """torch's own default for a GPU's convolutions is TF32. The setting can be read without a GPU."""
    try:
        for tf32, name in ((True, "tf32"), (False, "ieee")):
            device_for_worker(gpu=False, tf32=tf32)
            assert torch.backends.cudnn.conv.fp32_precision == name
            with torch.backends.cudnn.flags(allow_tf32=False):  # what inference does: raises where the switches differ
                assert torch.backends.cudnn.conv.fp32_precision != "tf32"
            assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == tf32
    finally:
        float32_convolutions(tf32=False)
