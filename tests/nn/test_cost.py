"""Counted, planned and expected cost."""

from __future__ import annotations

import itertools

import pytest
import torch
import torchvision.models as zoo
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pgnas.architecture import Architecture
from pgnas.nn import Counts, Supernet, extract, measure, supernet
from pgnas.nn.channels import ChannelGraph, ChannelOp, channel_rule, temporary_rules
from pgnas.nn.cost import CostName
from pgnas.nn.expected_cost import expected_cost
from pgnas.nn.macs import watch_macs

from .networks import NETWORKS, Network, Residual, Separable, architectures, generator, images, randomise
from .test_extract import ZOO

X = images(dtype=torch.float32)
KINDS: tuple[CostName, ...] = ("macs", "params")


def counted(gated: Supernet, architecture: Architecture, kind: CostName) -> float:
    cost = expected_cost(gated.graph, gated.space.sites, gated.gates.sizes, gated.prices(kind))
    return cost.count(gated.gates.mask(architecture))


def exact(gated: Supernet, architecture: Architecture, kind: CostName) -> int:
    return int(getattr(gated.count(architecture), kind))


def test_measure_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, groups=2),
        nn.ConvTranspose2d(8, 2, 3, stride=2), nn.Flatten(), nn.Linear(50, 6),
    )  # fmt: skip
    macs = 3 * 4 * 9 * 4 * 4 + (4 // 2) * 8 * 9 * 2 * 2 + 8 * 2 * 9 * 2 * 2 + 50 * 6
    params = 3 * 4 * 9 + 8 + (2 * 8 * 9 + 8) + (8 * 2 * 9 + 2) + (50 * 6 + 6)
    assert measure(net, (X,)) == Counts(params, macs)


class Multiplied(nn.Linear):
    """A linear layer that calls no linear function."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t()


def by_functions(net: Network, x: Tensor) -> Tensor:
    y = F.conv2d(net.a(x), net.kernel * 2, groups=2)  # a weight that is computed
    y = F.conv_transpose2d(input=y.relu(), weight=net.up, stride=2)
    return net.last(F.linear(y.flatten(1), net.line).relu())


def test_functions_count_as_layers_do() -> None:
    torch.manual_seed(0)
    net = Network(
        by_functions, a=nn.Conv2d(3, 4, 1), kernel=nn.Parameter(torch.randn(6, 2, 3, 3)),
        up=nn.Parameter(torch.randn(6, 2, 2, 2)), line=nn.Parameter(torch.randn(5, 288)), last=Multiplied(5, 2),
    )  # fmt: skip
    macs = 3 * 4 * 64 + (4 // 2) * 6 * 9 * 36 + 6 * 2 * 4 * 36 + 288 * 5 + 5 * 2
    gated = supernet(net, X)
    assert measure(net, X).macs == measure(net, (X,)).macs == macs
    assert gated.count(gated.open()).macs == macs
    for kind in KINDS:
        assert counted(gated, gated.open(), kind) == exact(gated, gated.open(), kind)


class Attention(nn.Module):
    """Attention over pixels, written out, by one function, or as a layer, among convolutions."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b, self.c = kind, nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 2, 1)
        self.layer = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.b(F.relu(self.a(x))).flatten(2).transpose(1, 2)
        if self.kind == "layer":
            out = self.layer(tokens, tokens, tokens)[0]
        elif self.kind == "function":
            out = F.scaled_dot_product_attention(tokens, tokens, tokens)
        elif self.kind == "einsum":
            out = torch.einsum("bij,bjc->bic", torch.einsum("bic,bjc->bij", tokens, tokens).softmax(-1), tokens)
        else:
            out = torch.bmm((tokens @ tokens.mT).softmax(-1), tokens)
        return self.c(out.mT.reshape(x.size(0), 8, 8, 8))


@pytest.mark.parametrize("kind", ["layer", "function", "einsum", "written out"])
def test_attention_costs_its_projections_and_products(kind: str) -> None:
    net = randomise(Attention(kind))
    macs = 64 * (3 * 6 + 6 * 8 + 8 * 2) + 2 * 64 * 64 * 8 + (4 * 64 * 8 * 8 if kind == "layer" else 0)
    gated = supernet(net, X)
    assert measure(net, X).macs == gated.count(gated.open()).macs == macs
    assert counted(gated, gated.open(), "macs") == macs
    for architecture in architectures(gated):
        count = gated.count(architecture)
        assert measure(extract(gated, architecture), X) == count


def test_products_with_a_vector_count() -> None:
    vector = torch.randn(192)
    net = Network(
        lambda net, x: (y := x.flatten(1)) @ vector + torch.matmul(y[0], vector), a=nn.Parameter(torch.ones(1)),
    )  # fmt: skip
    assert measure(net, X).macs == 2 * 192


def test_a_weight_made_of_parameters_costs_nothing() -> None:
    net = Network(
        lambda net, x: F.linear(x.flatten(1), net.left @ net.right), left=nn.Parameter(torch.randn(5, 2)),
        right=nn.Parameter(torch.randn(2, 192)),
    )  # fmt: skip
    assert measure(net, X).macs == 5 * 192


def blur(x: Tensor) -> Tensor:
    return F.conv2d(x, torch.ones(x.shape[1], 1, 3, 3), groups=x.shape[1])


def test_a_function_that_follows_channels_costs_what_is_left_of_them() -> None:
    with temporary_rules():

        @channel_rule(blur)
        def follow(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
            return graph.follow(node)

        net = Network(lambda net, x: net.b(blur(net.a(x))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 2, 1))
        gated = supernet(randomise(net), X)
        assert gated.report.barriers == {}
        for kept in range(1, 9):
            architecture = Architecture(gated.gates.sizes, {"b": tuple(range(kept))})
            macs = kept * (3 * 64 + 9 * 36 + 2 * 36)
            assert gated.count(architecture).macs == measure(extract(gated, architecture), X).macs == macs
            assert counted(gated, architecture, "macs") == macs


def test_measure_leaves_the_network_as_it_was() -> None:
    net = Residual().train()
    net.bn0.eval()
    x = X.clone()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    measure(net, (x,))
    assert net.training
    assert not net.bn0.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())
    assert torch.equal(x, X)


def test_known_sizes() -> None:
    x = torch.zeros(1, 3, 224, 224)
    assert measure(zoo.resnet18(), (x,)) == Counts(11_689_512, 1_814_073_344)
    for name, weights in (("vit_b_16", zoo.ViT_B_16_Weights), ("swin_t", zoo.Swin_T_Weights)):
        published = weights.DEFAULT.meta
        with torch.device("meta"):
            found = measure(zoo.get_model(name, weights=None), torch.zeros(1, 3, 224, 224))
        assert found.params == published["num_params"]
        assert found.macs / 1e9 == pytest.approx(published["_ops"], abs=6e-4)


STEPS, FEW, MANY = 5, 3, 4
RECURRENT = {
    "LSTM": (nn.LSTM(FEW, MANY, batch_first=True), 4 * MANY * (FEW + MANY)),
    "GRU": (nn.GRU(FEW, MANY), 3 * MANY * (FEW + MANY)),
    "RNN": (nn.RNN(FEW, MANY, bias=False), MANY * (FEW + MANY)),
    "two layers": (nn.LSTM(FEW, MANY, 2), 4 * MANY * (FEW + MANY + 2 * MANY)),
    "both ways": (nn.GRU(FEW, MANY, bidirectional=True), 2 * 3 * MANY * (FEW + MANY)),
    "projected": (nn.LSTM(FEW, MANY, proj_size=2), 4 * MANY * (FEW + 2) + 2 * MANY),
}


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_recurrent_layers_cost_their_matrices_in_every_step(name: str) -> None:
    layer, a_step = RECURRENT[name]
    assert measure(layer, torch.zeros(1, STEPS, FEW)).macs == STEPS * a_step
    packed = nn.utils.rnn.pack_padded_sequence(torch.zeros(1, STEPS, FEW), [2], batch_first=True)
    heard: list[int] = []
    with watch_macs(layer, heard.append):
        layer(packed)
    assert sum(heard) == 2 * a_step


def test_cells_and_bilinear_layers_cost_their_matrices() -> None:
    x, y = torch.zeros(1, FEW), torch.zeros(1, MANY)
    assert measure(nn.LSTMCell(FEW, MANY), x).macs == 4 * MANY * (FEW + MANY)
    assert measure(nn.GRUCell(FEW, MANY), x).macs == 3 * MANY * (FEW + MANY)
    assert measure(nn.Bilinear(FEW, MANY, 2), (x, y)).macs == 2 * FEW * MANY


def test_a_recurrent_head_is_a_part_of_the_networks_cost() -> None:
    net = Network(
        lambda net, x: net.head(net.read(net.b(net.a(x)).flatten(2).transpose(1, 2))[0][:, -1]),
        a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, FEW, 1), read=nn.LSTM(FEW, MANY, batch_first=True),
        head=nn.Linear(MANY, 2),
    )  # fmt: skip
    gated = supernet(net, X)
    whole = 64 * (3 * 6 + 6 * FEW) + 64 * 4 * MANY * (FEW + MANY) + MANY * 2
    assert measure(net, X).macs == gated.count(gated.open()).macs == counted(gated, gated.open(), "macs") == whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*NETWORKS, *ZOO])
def test_surrogate_is_exact_with_all_gates_open(name: str, kind: CostName) -> None:
    make = NETWORKS.get(name) or ZOO[name]
    x = X if name in NETWORKS else images(size=32, dtype=torch.float32)
    gated = supernet(make(), x)
    assert counted(gated, gated.open(), kind) == exact(gated, gated.open(), kind)


def stream() -> nn.Module:
    """A residual stream whose channels several layers read."""
    return Network(
        lambda net, x: net.head((z := (y := net.stem(x)) + net.a(y.relu())) + net.b(z).relu()),
        stem=nn.Conv2d(3, 6, 3, padding=1),
        a=nn.Conv2d(6, 6, 3, padding=1),
        b=nn.Conv2d(6, 6, 1),
        head=nn.Conv2d(6, 2, 1),
    )


def resnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, padding=1, groups=4), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 6, 1), nn.Conv2d(6, 2, 3),
    )  # fmt: skip


CHAINS = {"stream": stream, "resnext": resnext} | {
    name: NETWORKS[name] for name in ("chain", "transposed", "nested cats", "flat", "split", "spatial attention")
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CHAINS)
def test_surrogate_counts_the_small_network(name: str, kind: CostName) -> None:
    """While every gated layer has an open input and a reader, nothing is approximated."""
    gated = supernet(randomise(CHAINS[name]()), X)
    rng = generator(0)
    for _ in range(20):
        kept = torch.rand(gated.gates.units, generator=rng) < 0.7
        for part in gated.gates.split(kept).values():
            part[::3] = True  # the groups of the grouped convolution have three outputs each
        architecture = gated.gates.architecture(kept)
        assert counted(gated, architecture, kind) == exact(gated, architecture, kind)


def require_mean_over_all(gated: Supernet, kind: CostName) -> None:
    """The expected cost is the mean of the surrogate over all architectures, each with its probability."""
    keep, mean = torch.sigmoid(gated.gates.logits().detach().double()), 0.0
    cost = expected_cost(gated.graph, gated.space.sites, gated.gates.sizes, gated.prices(kind))
    for bits in itertools.product([False, True], repeat=gated.gates.units):
        kept = torch.tensor(bits)
        mean += float(torch.where(kept, keep, 1 - keep).prod()) * cost.count(kept)
    found = float(gated.expected_cost(kind).detach()) * cost.full
    assert found == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", ["channel", "group", "product"])
def test_expected_cost_is_the_mean_over_all_architectures(kind: CostName, granularity: str) -> None:
    net = Network(
        lambda net, x: net.c(y := net.b(net.a(x).relu())) + net.d(y),
        a=nn.Conv2d(3, 3, 3), b=nn.Conv2d(3, 2, 1), c=nn.Conv2d(2, 2, 3), d=nn.Conv2d(2, 2, 3),
    )  # fmt: skip
    gated = supernet(net, X, granularity=granularity)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in gated.gates.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(2)))
    require_mean_over_all(gated, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_expected_cost_of_a_chain_is_the_mean_of_real_networks(kind: CostName) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(),
        nn.Conv2d(16, 16, 1, groups=16), nn.Conv2d(16, 10, 1), nn.Flatten(), nn.Linear(160, 4),
    )  # fmt: skip
    gated = supernet(net, X)
    gated.gates.fill_(0.6)
    rng, samples = generator(0), 400
    counts = torch.tensor([exact(gated, gated.sample(generator=rng), kind) for _ in range(samples)], dtype=torch.double)
    expected = float(gated.expected_cost(kind).detach()) * exact(gated, gated.open(), kind)
    assert abs(float(counts.mean()) - expected) < 4 * float(counts.std()) / samples**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_expected_cost_with_gradient(kind: CostName) -> None:
    for make in (Residual, Separable, NETWORKS["grouped"]):
        gated = supernet(make(), X)
        cost = gated.expected_cost(kind)
        assert cost.shape == ()
        cost.backward()
        assert gated.gates.unit_logits is not None
        assert gated.gates.unit_logits.grad is not None
        assert (gated.gates.unit_logits.grad > 0).all()
        gated.gates.fill_(1 - 1e-7)
        assert float(gated.expected_cost(kind).detach()) == pytest.approx(1, rel=1e-5)


def test_a_unit_less_never_costs_more() -> None:
    for make in (Residual, Separable, NETWORKS["grouped"], NETWORKS["closed borders"]):
        gated = supernet(randomise(make()), X)
        for architecture in architectures(gated):
            full = gated.count(architecture)
            mask = gated.gates.mask(architecture)
            for unit in mask.nonzero()[:, 0].tolist()[::3]:
                fewer = mask.clone()
                fewer[unit] = False
                less = gated.count(gated.gates.architecture(fewer))
                assert less.macs <= full.macs
                assert less.params <= full.params
