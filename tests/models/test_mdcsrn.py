"""The generator against an independent forward, its published size, and what recomputation must leave alone."""

from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mrisr.models import MDCSRN
from mrisr.models.batchnorm import batchnorms, shared_update
from mrisr.models.mdcsrn import MDCSRNConfig, PointwiseSums


def random_patch(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def reference_forward(weights: dict[str, Tensor], x: Tensor, blocks: int, units: int, training: bool) -> Tensor:
    """mDCSRN as the paper draws it, with every concatenation made."""
    features = F.conv3d(x, weights["conv0.weight"], padding=1)
    everything = features
    for block in range(blocks):
        if block:
            features = F.conv3d(everything, weights[f"comp{block - 1}.weight"])
        for unit in range(1, units + 1):
            name = f"block{block}.denselayer{unit}"
            normal = F.batch_norm(
                features,
                weights[f"{name}.norm.running_mean"].clone(),
                weights[f"{name}.norm.running_var"].clone(),
                weights[f"{name}.norm.weight"],
                weights[f"{name}.norm.bias"],
                training,
            )
            features = torch.cat([features, F.conv3d(F.elu(normal), weights[f"{name}.conv.weight"], padding=1)], 1)
        everything = torch.cat([everything, features], 1)
    return F.conv3d(everything, weights["recon.weight"])


def reference_weights(seed: int, growth: int, blocks: int, units: int) -> dict[str, Tensor]:
    """Weights under the names and shapes of hz2538's port, written down independently of MDCSRN."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    width = 2 * growth
    weights = {"conv0.weight": draw(width, 1, 3, 3, 3)}
    features = width
    for block in range(blocks):
        for unit in range(units):
            channels, name = width + unit * growth, f"block{block}.denselayer{unit + 1}"
            weights[f"{name}.norm.weight"] = 1 + draw(channels)
            weights[f"{name}.norm.bias"] = draw(channels)
            weights[f"{name}.norm.running_mean"] = draw(channels)
            weights[f"{name}.norm.running_var"] = 1 + draw(channels).abs()
            weights[f"{name}.norm.num_batches_tracked"] = torch.tensor(7)
            weights[f"{name}.conv.weight"] = draw(growth, channels, 3, 3, 3)
        features += width + units * growth
        if block < blocks - 1:
            weights[f"comp{block}.weight"] = draw(width, features, 1, 1, 1)
    weights["recon.weight"] = draw(1, features, 1, 1, 1)
    return weights


@pytest.mark.parametrize(
    ("growth", "blocks", "units", "count"),
    [(16, 4, 4, 411_648), (2, 1, 1, 4 * 27 + 2 * 4 + 2 * 4 * 27 + 10)],  # conv0, norm, conv, recon by hand
)
def test_parameter_count_is_exact(growth: int, blocks: int, units: int, count: int) -> None:
    assert sum(p.numel() for p in MDCSRN(MDCSRNConfig(growth, blocks, units)).parameters()) == count


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_reference_weights_give_the_reference_numbers(prefix: str, training: bool, channels_last: bool) -> None:
    weights = reference_weights(3, 4, 3, 2)
    network = MDCSRN(MDCSRNConfig(4, 3, 2)).train(training)
    network.channels_last = channels_last
    network.load_reference_state_dict({prefix + name: value for name, value in weights.items()})
    x = random_patch(4, 2, 1, 7, 8, 9)
    expected = reference_forward(weights, x, 3, 2, training)
    with torch.no_grad():
        assert torch.allclose(network(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_reference_weights_of_the_published_size_load() -> None:
    network = MDCSRN()
    weights = reference_weights(1, 16, 4, 4)
    network.load_reference_state_dict({k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")})
    assert torch.equal(network.recon.weight, weights["recon.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("comp0.weight"), r"missing: comp0\.weight"),
        (lambda w: w.update({"main.weight": torch.zeros(1)}), r"unexpected: main\.weight"),
        (lambda w: w.update({"recon.weight": torch.zeros(1, 3, 1, 1, 1)}), r"recon\.weight is \(1, 3, 1, 1, 1\)"),
    ],
)
def test_reference_weights_that_do_not_fit_are_named(change, message: str) -> None:
    weights = reference_weights(1, 2, 2, 2)
    change(weights)
    network = MDCSRN(MDCSRNConfig(2, 2, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        network.load_reference_state_dict(weights)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_reference_weights_are_refused_by_a_residual_network() -> None:
    with pytest.raises(ValueError, match="residual: false"):
        MDCSRN(MDCSRNConfig(2, 2, 2, residual=True)).load_reference_state_dict(reference_weights(1, 2, 2, 2))


def test_parts_need_no_concatenation() -> None:
    parts = [random_patch(i, 2, channels, 4, 5, 6) for i, channels in enumerate((3, 5, 1))]
    weights = [random_patch(8, 4, 8, 1, 1, 1), random_patch(9, 2, 9, 1, 1, 1)]
    sums = PointwiseSums(weights)
    sums.add(parts[0])
    sums.add(parts[1])
    assert torch.allclose(sums.take(0), F.conv3d(torch.cat(parts[:2], 1), weights[0]), atol=1e-5)
    sums.add(parts[2])
    assert torch.allclose(sums.take(1), F.conv3d(torch.cat(parts, 1), weights[1]), atol=1e-5)


def test_residual_network_starts_as_the_identity_and_learns() -> None:
    network = MDCSRN(MDCSRNConfig(2, 2, 2, residual=True))
    x = random_patch(1, 1, 1, 8, 8, 8)
    assert torch.equal(network(x), x)
    (network(x) - 0.5 * x).square().sum().backward()
    assert network.recon.weight.grad is not None
    assert network.recon.weight.grad.abs().sum() > 0


def test_recomputation_changes_nothing_but_memory() -> None:
    kept, again = (MDCSRN(MDCSRNConfig(2, 3, 2), seed=5) for _ in range(2))
    again.recompute = True
    x = random_patch(2, 2, 1, 8, 8, 8)
    saved = [0, 0]

    def run(network: MDCSRN, index: int) -> Tensor:
        def pack(tensor: Tensor) -> Tensor:
            saved[index] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = network(x)
        out.square().mean().backward()
        return out

    assert torch.equal(run(kept, 0), run(again, 1))
    for first, second in zip(kept.parameters(), again.parameters(), strict=True):
        assert torch.equal(first.grad, second.grad)
    # Equal after forward AND backward: the repeated forward left mean, variance and counter alone.
    for name, buffer in kept.named_buffers():
        assert torch.equal(buffer, again.get_buffer(name)), name
    assert all(norm.num_batches_tracked == 1 for norm in batchnorms(again))
    assert not torch.equal(again.block0.denselayer1.norm.running_mean, torch.zeros(4))
    assert saved[1] < 0.7 * saved[0]


def test_micro_batches_make_one_update_of_the_statistics() -> None:
    network = MDCSRN(MDCSRNConfig(2, 1, 1), seed=1)
    norm = network.block0.denselayer1.norm
    parts = [random_patch(i, 1, 1, 6, 6, 6) for i in range(3)]
    with torch.no_grad():
        features = [network.conv0(part) for part in parts]
        means = torch.stack([f.mean((0, 2, 3, 4)) for f in features])
        variances = torch.stack([f.transpose(0, 1).flatten(1).var(1) for f in features])
        for index, part in enumerate(parts):
            with shared_update(network, index, 3):
                network(part)
    assert torch.allclose(norm.running_mean, 0.1 * means.mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, 0.9 + 0.1 * variances.mean(0), atol=1e-6)
    assert norm.num_batches_tracked == 1
    assert norm.momentum == 0.1


def test_the_image_has_more_grey_levels_than_bfloat16() -> None:
    network = MDCSRN(MDCSRNConfig(4, 2, 2)).eval()
    network.channels_last = True
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        image = network(torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert image.dtype == torch.float32
    assert (image.bfloat16().float() != image).float().mean() > 0.9


def test_construction_is_seeded_and_leaves_the_global_state() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (
        MDCSRN(MDCSRNConfig(2, 2, 2), seed=1),
        MDCSRN(MDCSRNConfig(2, 2, 2), seed=1),
        MDCSRN(MDCSRNConfig(2, 2, 2), seed=2),
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.comp0.weight, second.comp0.weight)
    assert not torch.equal(first.comp0.weight, other.comp0.weight)


def test_config_rebuilds_the_network() -> None:
    network = MDCSRN(MDCSRNConfig(3, 2, 1, residual=True))
    assert asdict(network.config) == {"growth_rate": 3, "blocks": 2, "units": 1, "residual": True}
    assert MDCSRN(network.config).state_dict().keys() == network.state_dict().keys()


def test_a_width_below_one_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"generator\.units is 0"):
        MDCSRN(MDCSRNConfig(units=0))
