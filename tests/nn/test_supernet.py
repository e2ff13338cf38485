"""The supernet's forward passes, its posterior, and what it leaves untouched."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import Tensor, nn

from pgnas.bayes import paper_kl, product_logits
from pgnas.nn import Supernet, extract, supernet
from pgnas.nn.gate import CLOSED, Granularity

from .networks import NETWORKS, Frames, Network, Residual, architectures, generator, images, randomise, tensors


@pytest.fixture
def x() -> Tensor:
    return images(dtype=torch.float32)


@pytest.fixture
def gated(x: Tensor) -> Supernet:
    return supernet(randomise(Residual()), x)


@pytest.mark.parametrize("granularity", ["channel", "group", "product"])
def test_open_gates_compute_the_network(granularity: str) -> None:
    for make in NETWORKS.values():
        model = randomise(make()).double().eval()
        made = supernet(model, images(), granularity=granularity)  # type: ignore[arg-type]
        with made.eval().fixed(made.open()):
            for found, expected in zip(tensors(made(images())), tensors(model(images())), strict=True):
                torch.testing.assert_close(found, expected)


def test_the_model_handed_in_is_not_changed(x: Tensor) -> None:
    model = randomise(Residual()).train()
    model.stem.weight.requires_grad_(False)
    calls: list[int] = []
    model.stem.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    data = x.clone()

    made = supernet(model, x)
    made.gates.fill_(0.5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(1)
    made(x)

    assert torch.equal(x, data)
    assert [module.training for module in model.modules()] == modes
    assert not model.stem.weight.requires_grad
    assert model.left[2].inplace
    assert len(model.stem._forward_hooks) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not made.body.get_parameter("stem.weight").requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_the_copy_starts_from_the_models_state(training: bool, x: Tensor) -> None:
    """Also where to read a weight changes what it is computed from, as spectral norm does in training."""
    normed = nn.utils.parametrizations.spectral_norm
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), normed(nn.Conv2d(6, 5, 3)),
        normed(nn.ConvTranspose2d(5, 4, 1)), nn.Conv2d(4, 4, 1), nn.Flatten(), normed(nn.Linear(64, 2)),
    ).train(training)  # fmt: skip
    before = copy.deepcopy(model.state_dict())
    made = supernet(model, x)
    made.count(made.open())
    for state in (made.body.state_dict(), model.state_dict()):
        assert {name for name in before if not torch.equal(state[name], before[name])} == set()
    with torch.no_grad(), made.eval().fixed(made.open()):
        assert torch.equal(made(x), model.eval()(x))


def test_making_a_supernet_draws_no_random_numbers(x: Tensor) -> None:
    model = Network(lambda net, x: net.b(net.a(x)) + 0 * torch.rand(()), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1))
    state = torch.get_rng_state()
    supernet(model, x)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_input_changed_in_place_stays_the_users(x: Tensor) -> None:
    model = Network(lambda net, x: net.b(net.a(x.relu_())), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1))
    before = x.clone()
    made = supernet(model, x)
    made(x)
    assert torch.equal(x, before)
    torch.testing.assert_close(made.eval().body(x, [torch.ones(1, 4)]), model(x.clone()))


def test_state_dict_and_copies(gated: Supernet, x: Tensor) -> None:
    gated.gates.fill_(0.3)
    other = supernet(Residual(), x)
    other.load_state_dict(gated.state_dict())
    twin = copy.deepcopy(gated)
    architecture = gated.sample(generator=generator(0))
    with gated.eval().fixed(architecture), other.eval().fixed(architecture), twin.eval().fixed(architecture):
        assert torch.equal(gated(x), other(x))
        assert torch.equal(gated(x), twin(x))
        with torch.no_grad():
            twin.body.get_parameter("stem.weight").zero_()
        assert torch.equal(gated(x), other(x))
    assert twin.count(architecture) == gated.count(architecture)
    torch.testing.assert_close(other.expected_cost("macs"), gated.expected_cost("macs"))


def test_evaluation_is_the_mean_network(gated: Supernet, x: Tensor) -> None:
    gated.gates.fill_(0.25)
    model = gated.eval().body
    masks = [torch.full((1, len(site.unit_of_channel)), 0.25) for site in gated.space.sites]
    torch.testing.assert_close(gated(x), model(x, masks))


def test_each_example_and_channel_has_its_own_noise(x: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=1, bias=False))
    made = supernet(model, x)
    made.gates.fill_(0.5)
    made.temperature = 1e-4
    with torch.no_grad():
        made.body.get_parameter("1.weight").copy_(torch.eye(4)[:, :, None, None])  # outputs are the gated channels
    torch.manual_seed(0)
    big = torch.cat([x[:1]] * 400)
    out = made(big)[:, :, 0, 0]
    full = made.eval().body(x[:1], [torch.ones(1, 4)])[0, :, 0, 0]
    kept = out / full
    assert ((kept.abs() < 1e-3) | ((kept - 1).abs() < 1e-3)).all()
    share, together = kept.mean(0), torch.corrcoef(kept.T)
    assert (share - 0.5).abs().max() < 0.1  # sd 0.025
    assert (together - torch.eye(4)).abs().max() < 0.2  # sd 0.05
    noise = torch.rand(2, 4, generator=generator(0))
    made.train()
    assert torch.equal(made(x, noise=noise), made(x, noise=noise))


@pytest.mark.parametrize("granularity", ["channel", "group", "product"])
def test_gradient_reaches_weights_and_logits(granularity: str, x: Tensor) -> None:
    made = supernet(randomise(Residual()), x, granularity=granularity, initial_drop=0.3)  # type: ignore[arg-type]
    made(x).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_frames_of_one_video_see_one_mask() -> None:
    x = torch.randn(2, 9, 6, 6, generator=generator(0))
    made = supernet(randomise(Frames()), x)
    assert set(made.report.gated) == {"b", "head"}
    twice = x[:, :3].repeat(1, 3, 1, 1)
    with torch.no_grad():
        noise = torch.rand(2, made.gates.units, generator=generator(0))
        one = made(torch.cat([twice, twice]), noise=torch.cat([noise, noise]))
        torch.testing.assert_close(one[:2], made(twice, noise=noise))


def test_granularities() -> None:
    x = images(dtype=torch.float32)
    made = {g: supernet(Residual(), x, granularity=g, initial_drop=0.19) for g in ("channel", "group", "product")}  # type: ignore[arg-type]
    sizes = made["channel"].gates.sizes
    assert sizes == made["group"].gates.sizes == made["product"].gates.sizes
    for gates in (net.gates for net in made.values()):
        torch.testing.assert_close(torch.sigmoid(gates.logits()), torch.full((gates.units,), 0.81))
    group = made["group"].gates
    sources = [(spec.name, g.source, g.stop - g.start) for spec in group.specs for g in spec.groups]
    expected_sources = [("left.0", "stem"), ("right.0", "stem"), ("mix", "stem"), ("mix", "add_1"), ("head", "mix")]
    assert sources == [(layer, source, 6) for layer, source in expected_sources]
    assert group.group_logits is not None
    with torch.no_grad():
        group.group_logits[2] = -3.0
    assert group.split(group.logits())["mix"][:6].eq(-3).all()
    assert not group.split(group.logits())["mix"][6:].eq(-3).any()
    product = made["product"].gates
    assert product.unit_logits is not None
    assert product.group_logits is not None
    expected = product_logits(product.unit_logits, product.group_logits[product.group_of_unit])
    torch.testing.assert_close(product.logits(), expected)


def test_samples_follow_the_posterior_and_the_generator(gated: Supernet) -> None:
    gated.gates.fill_(0.25)
    rng = generator(0)
    drawn = torch.stack([gated.gates.mask(gated.sample(generator=rng)) for _ in range(400)]).float()
    assert abs(float(drawn.mean()) - 0.25) < 0.02  # sd 0.004
    assert gated.sample(generator=generator(5)) == gated.sample(generator=generator(5))
    assert gated.mode().kept == {name: () for name in gated.gates.sizes}
    gated.gates.fill_(0.75)
    assert gated.mode() == gated.open()
    assert all(p.eq(p[0]).all() and abs(float(p[0]) - 0.75) < 1e-6 for p in gated.keep_probabilities().values())


def test_masks_and_architectures_are_inverse(gated: Supernet) -> None:
    for architecture in architectures(gated):
        assert gated.gates.architecture(gated.gates.mask(architecture)) == architecture


def test_logits_are_clamped(gated: Supernet) -> None:
    with torch.no_grad():
        assert gated.gates.unit_logits is not None
        gated.gates.unit_logits[0], gated.gates.unit_logits[1] = 50.0, -50.0
    gated.gates.clamp_(4.0)
    assert gated.gates.logits()[:2].tolist() == [4.0, -4.0]


def test_fixed_is_left_in_any_case(gated: Supernet, x: Tensor) -> None:
    gated.eval()
    before = gated(x)
    with pytest.raises(RuntimeError), gated.fixed(gated.open()), gated.fixed(gated.mode()):
        gated(x[:, :1])
    torch.testing.assert_close(gated(x), before)


@pytest.mark.parametrize("name", ["residual", "separable", "grouped", "transposed", "flat", "chain", "cat of blocks"])
@torch.no_grad()
def test_weight_sq_is_what_closing_a_unit_removes(name: str) -> None:
    """Against a naive loop: the squared weights that no longer matter when the unit is closed."""
    made = supernet(randomise(NETWORKS[name]()).double(), images())
    found = made.gates.split(made.weight_sq().double())
    for site in made.space.sites:
        layer = made.body.get_submodule(site.layer)
        for unit in range(made.gates.sizes[site.gate]):
            channels = (site.unit_of_channel == unit).nonzero()[:, 0].tolist()
            groups = getattr(layer, "groups", 1)
            total = 0.0
            for channel in channels:
                if groups > 1:
                    width = layer.in_channels // groups
                    rows = layer.weight.chunk(groups)[channel // width]
                    total += float(rows[:, channel % width].square().sum())
                elif isinstance(layer, nn.ConvTranspose2d):
                    total += float(layer.weight[channel].square().sum())
                else:
                    total += float(layer.weight[:, channel].square().sum())
            assert float(found[site.gate][unit]) == pytest.approx(total, rel=1e-5)


def test_weight_sq_of_tied_layers_adds_up(x: Tensor) -> None:
    made = supernet(randomise(Residual()), x, tie=[["left.0", "right.0"]])
    weights = [made.body.get_parameter(f"{side}.0.weight") for side in ("left", "right")]
    expected = sum(weight.square().sum((0, 2, 3)) for weight in weights)
    torch.testing.assert_close(made.gates.split(made.weight_sq())["left.0"], expected)
    made.weight_sq().sum().backward()
    assert weights[0].grad is not None


def test_a_thousand_architectures_of_three_thousand_units_take_seconds() -> None:
    layers = [nn.Conv2d(3, 500, 1), *(nn.Conv2d(500, 500, 1) for _ in range(6))]
    made = supernet(nn.Sequential(*layers), torch.randn(2, 3, 2, 2))
    assert made.gates.units == 3000
    rng, start = generator(0), time.perf_counter()
    drawn = [made.sample(generator=rng) for _ in range(1000)]
    assert len({architecture.digest for architecture in drawn}) > 900
    for architecture in drawn[:200]:
        made.count(architecture)
        made.gates.mask(architecture)
    assert time.perf_counter() - start < 10


def test_paper_prior_adds_up_over_groups(x: Tensor) -> None:
    """Eq. 15: sum over groups of pi_g * l^2 * |m_g|^2 - K_g * H(pi_g)."""
    made = supernet(randomise(Residual()), x, granularity="group")
    assert made.gates.group_logits is not None
    with torch.no_grad():
        made.gates.group_logits.copy_(torch.tensor([-1.0, 0.5, 2.0, 0.1, -0.3]))
        found = float(paper_kl(made.gates.logits(), made.weight_sq(), length_scale_sq=3.0))
        weights = [made.body.get_parameter(f"{name}.weight") for name in ("left.0", "right.0", "mix", "head")]
        groups = [weights[0], weights[1], weights[2][:, :6], weights[2][:, 6:], weights[3]]
        keep = torch.sigmoid(made.gates.group_logits)
        entropy = -keep * keep.log() - (1 - keep) * (1 - keep).log()
        expected = sum(3.0 * keep[g] * weight.square().sum() - 6 * entropy[g] for g, weight in enumerate(groups))
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_a_second_input_with_a_default() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            return self.b(self.a(x if y is None else x + y))

    for inputs in ((images(),), (images(), images())):
        gated = supernet(Optional().double(), inputs).eval()
        with gated.fixed(gated.open()):
            torch.testing.assert_close(gated(*inputs), extract(gated, gated.open())(*inputs))


@pytest.mark.parametrize("granularity", ["channel", "group", "product"])
def test_a_posterior_is_moved_to_another_cost(granularity: Granularity) -> None:
    gated = supernet(NETWORKS["residual"](), images(dtype=torch.float32), granularity, initial_drop=0.3)
    for target in (0.3, 0.8, 0.5):
        found = gated.retarget_("macs", target)
        assert float(gated.expected_cost("macs").detach()) == pytest.approx(target, abs=1e-3)
        assert found.cost == pytest.approx(target, abs=1e-3)
    assert 0.999 <= gated.retarget_("macs", 1.0).cost < 1


def test_what_was_closed_for_good_stays_closed_at_any_cost(gated: Supernet) -> None:
    closed = torch.arange(gated.gates.units) % 4 == 0
    gated.gates.close_(closed)
    gated.gates.settle_()
    gated.retarget_("macs", 0.3)
    gated.retarget_("macs", 0.6)
    assert (gated.gates.logits()[closed] == CLOSED).all()
