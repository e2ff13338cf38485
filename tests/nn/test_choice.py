"""Operations to choose from: gates at their outputs, samples, extraction, cost, ties."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pgnas
from pgnas.architecture import Architecture
from pgnas.bayes import PaperPrior
from pgnas.errors import ModelError
from pgnas.nn import extract, supernet
from pgnas.nn.expected_cost import expected_cost
from pgnas.nn.shedding import ShedSupernet
from pgnas.nn.supernet import Supernet
from pgnas.stages.inspection_tables import sections

from .networks import Network, generator, images, randomise
from .test_extract import require_theorem
from .test_shedding import both, closings, require_same, spread_logits


def edge(channels: int) -> nn.Module:
    return pgnas.OneOf(
        {
            "none": None,
            "skip": nn.Identity(),
            "conv": nn.Sequential(
                nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
            ),
            "point": nn.Conv2d(channels, channels, 1),
            "pool": nn.AvgPool2d(3, 1, 1),
        }
    )


class Cell(nn.Module):
    """Two nodes; as many channels as options, where a unit is easily taken for a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b, self.c = edge(channels), edge(channels), edge(channels)

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x)
        return self.b(x) + self.c(first)


class Cells(nn.Module):
    """Cells between a stem and a classifier, and branches that may be dropped, one of which halves the image."""

    def __init__(self, channels: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.cells = nn.Sequential(Cell(channels), Cell(channels))
        self.side = pgnas.AnyOf({"wide": nn.Conv2d(channels, channels, 5, padding=2), "max": nn.MaxPool2d(3, 1, 1)})
        self.fc = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cells(self.stem(x))
        return self.fc((x + self.side(x)).relu().mean((2, 3)))


TIES = [[f"cells.{cell}.{name}" for cell in (0, 1)] for name in "abc"]


def cells(granularity: str = "operation", **options: object) -> Supernet:
    return supernet(randomise(Cells()).double(), images(), granularity, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("granularity", ["operation", "channel", "group", "product"])
@pytest.mark.parametrize("tie", [[], TIES], ids=["free", "tied"])
def test_the_chosen_operations_are_what_is_extracted(granularity: str, tie: list[list[str]]) -> None:
    gated, rng = cells(granularity, tie=tie, initial_drop=0.3), generator(0)
    for _ in range(12):
        architecture = gated.sample(generator=rng)
        require_theorem(gated, (images(),), architecture, 1e-10)
        chosen = [
            architecture.kept[name] for name in gated.gates.sizes if name.startswith("cells.") and name[-1] in "abc"
        ]
        assert all(len(units) == 1 for units in chosen)
    require_theorem(gated, (images(),), gated.open(), 1e-10)
    require_theorem(gated, (images(),), gated.mode(), 1e-10)


def test_nothing_of_a_choice_is_left() -> None:
    gated = cells()
    kept = dict.fromkeys(gated.gates.sizes, (1,))  # a skip everywhere, and of the side branches the pooling
    small = extract(gated, Architecture(gated.gates.sizes, kept))
    assert not [m for m in small.modules() if type(m).__module__.startswith("pgnas")]
    assert {type(m).__name__ for m in small.modules() if not list(m.children())} <= {
        "Conv2d", "Identity", "MaxPool2d", "Linear", "ReLU", "Module",
    }  # fmt: skip
    assert [tuple(m.kernel_size) for m in small.modules() if isinstance(m, nn.Conv2d)] == [(3, 3)]  # the stem
    nothing = Architecture(gated.gates.sizes, {**dict.fromkeys(gated.gates.sizes, (0,)), "side": ()})
    assert gated.count(nothing).macs == 0
    require_theorem(gated, (images(),), nothing, 1e-10)


def test_samples_mode_and_log_prob_are_those_of_the_posterior() -> None:
    gated = cells(tie=TIES)
    assert gated.report.choices["cells.0.a"] == ("none", "skip", "conv", "point", "pool")
    assert gated.report.choices["side"] == ("wide", "max")
    assert gated.report.gated == {}
    assert gated.gates.logits().shape == (2 + 3 * 5,)
    with torch.no_grad():
        assert gated.gates.choice_logits is not None
        gated.gates.choice_logits.copy_(torch.randn(15, generator=generator(1)))
    keep = gated.keep_probabilities()
    assert torch.allclose(keep["cells.0.b"].sum(), torch.ones(()))
    mode = gated.mode()
    assert mode.kept["cells.0.b"] == (int(keep["cells.0.b"].argmax()),)
    chosen = [float(keep[f"cells.0.{name}"][mode.kept[f"cells.0.{name}"][0]]) for name in "abc"]
    side = [float(keep["side"][u]) for u in range(2)]  # both are kept at the start
    log_prob = gated.gates.log_prob(gated.gates.mask(mode))
    assert log_prob == pytest.approx(math.log(math.prod([*chosen, *side])), rel=1e-5)
    assert gated.gates.log_prob(gated.gates.mask(gated.open())) == -math.inf
    drawn = [gated.sample(generator=generator(seed)) for seed in range(300)]
    share = sum(a.kept["cells.0.c"] == mode.kept["cells.0.c"] for a in drawn) / 300
    assert share == pytest.approx(chosen[2], abs=0.12)
    assert len({a.digest for a in drawn}) > 10
    assert Architecture.from_json(mode.to_json()) == mode


def test_a_cold_training_pass_is_that_of_the_hard_architecture() -> None:
    gated = cells()
    gated.temperature = 1e-7
    noise = torch.rand(len(images()), gated.gates.units, dtype=torch.float64, generator=generator(2))
    noise[1:] = noise[0]
    relaxed = gated.gates.rsample(noise[:1], 1e-7)
    architecture = gated.gates.architecture(relaxed[0] > 0.5)
    output = gated.train()(images(), noise=noise)
    with gated.fixed(architecture):
        assert torch.allclose(output, gated(images()), atol=1e-6)
    gated.temperature = 1.0
    gated(images(), noise=noise).square().sum().backward()
    assert gated.gates.choice_logits is not None
    assert gated.gates.choice_logits.grad is not None
    assert (gated.gates.choice_logits.grad.reshape(6, 5).abs().sum(1) > 0).all()


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_expected_cost_is_the_mean_over_architectures_of_one_choice(kind: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), edge(5), nn.Flatten(), nn.Linear(5 * 64, 2)).double()
    gated = supernet(model, images(), "operation")
    with torch.no_grad():
        assert gated.gates.choice_logits is not None
        gated.gates.choice_logits.copy_(torch.randn(5, generator=generator(3)))
    full, keep = gated.count(gated.open()), gated.keep_probabilities()["1"].tolist()
    shares = []
    for unit in (1, 2, 3, 4):  # nothing at all on the only edge leaves no network, which the surrogate cannot see
        counts = gated.count(Architecture({"1": 5}, {"1": (unit,)}))
        shares.append(getattr(counts, kind) / getattr(full, kind))
    fixed = shares[0]  # a skip costs what is outside the choice
    expected = fixed + sum(p * (share - fixed) for p, share in zip(keep[1:], shares, strict=True))
    assert float(gated.expected_cost(kind).detach()) == pytest.approx(expected, rel=1e-4)  # type: ignore[arg-type]


def deep(channels: int) -> nn.Module:
    """Operations of several layers, as separable convolutions and blocks are."""
    separable = [
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.Conv2d(channels, channels, 1),
        nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        nn.Conv2d(channels, channels, 1),
    ]  # fmt: skip
    two = [nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, channels, 1)]
    return pgnas.OneOf(
        {"skip": nn.Identity(), "separable": nn.Sequential(*separable), "two": nn.Sequential(nn.ReLU(), *two)}
    )


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("granularity", ["operation", "channel"])
def test_the_layers_of_an_operation_cost_nothing_where_it_is_not_chosen(granularity: str, kind: str) -> None:
    """Not its last one alone; then caps can be met that only cheap operations meet."""
    branch = pgnas.AnyOf({"block": nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1))})
    network = Network(
        lambda net, x: net.head((y := net.second(F.relu(net.first(net.stem(x))))) + net.branch(y)),
        stem=nn.Conv2d(3, 4, 1), first=deep(4), second=deep(4), branch=branch, head=nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    gated = supernet(randomise(network), images(dtype=torch.float32), granularity)  # type: ignore[arg-type]
    options = gated.gates.units - gated.gates.free
    with torch.no_grad():
        gated.gates.choice_logits.copy_(torch.randn(options, generator=generator(0)))  # type: ignore[union-attr]
    mean, masses, keep = 0.0, 0.0, torch.sigmoid(gated.gates.logits().detach().double())
    full = gated.count(gated.gates.architecture(torch.ones(gated.gates.units, dtype=torch.bool)))
    for first, second, open_ in itertools.product(range(3), range(3), (False, True)):
        kept = torch.ones(gated.gates.units, dtype=torch.bool)
        kept[gated.gates.free :] = torch.tensor([k == first for k in range(3)] + [k == second for k in range(3)])
        unit = gated.gates.first_units()["branch"]
        kept[unit] = open_
        exact = getattr(gated.count(gated.gates.architecture(kept)), kind)
        logits = torch.where(kept, 200.0, -200.0).double()
        found = float(gated.expected_cost_at(kind, logits)) * getattr(full, kind)  # type: ignore[arg-type]
        assert found == pytest.approx(exact)
        probability = float(keep[gated.gates.free :][kept[gated.gates.free :]].prod())
        probability *= float(keep[unit] if open_ else 1 - keep[unit])
        mean, masses = mean + probability * exact, masses + probability
    assert masses == pytest.approx(1)
    if granularity == "operation":
        found = float(gated.expected_cost(kind).detach()) * getattr(full, kind)  # type: ignore[arg-type]
        assert found == pytest.approx(mean, rel=1e-5)
        gated.retarget_(kind, 0.2)  # type: ignore[arg-type]
        assert float(gated.expected_cost(kind).detach()) == pytest.approx(0.2, abs=1e-3)  # type: ignore[arg-type]


def test_the_papers_prior_weighs_the_operations_weights() -> None:
    gated = cells(tie=TIES)
    weight_sq = gated.gates.split(gated.weight_sq())
    convs = [gated.body.get_submodule(f"cells.{cell}.a.conv.1").weight.square().sum() for cell in (0, 1)]
    assert torch.allclose(weight_sq["cells.0.a"][2], sum(convs).detach().float(), rtol=1e-4)  # type: ignore[union-attr]
    assert weight_sq["cells.0.a"][[0, 1, 4]].detach().tolist() == [0, 0, 0]  # what has no weights pays nothing
    context = gated.gates.kl_context(10.0, weight_sq=gated.weight_sq(), expected_cost=None)
    PaperPrior(1.0).kl(context).backward()
    assert gated.gates.choice_logits is not None
    grad = gated.gates.choice_logits.grad
    assert grad is not None
    assert (grad.reshape(3, 5)[:, 2] > 0).all()  # the heaviest is pressed
    by_channel = cells("channel")
    assert by_channel.gates.split(by_channel.weight_sq())["cells.0.a"].tolist() == [0] * 5  # its layers pay by channel


def test_a_supernet_that_sheds_goes_on_choosing() -> None:
    gated = cells("channel")
    closed = torch.zeros(gated.gates.units, dtype=torch.bool)
    closed[: gated.gates.sizes["fc"] // 2] = True
    closed[-5:] = True  # a choice's options: they stay
    gated.gates.close_(closed)
    assert not gated.gates.closed[-5:].any()
    noise = torch.rand(len(images()), gated.gates.units, dtype=torch.float64, generator=generator(4))
    shed = ShedSupernet(gated)
    assert torch.allclose(shed(images(), noise=noise), gated(images(), noise=noise), atol=1e-9)
    assert torch.allclose(shed.eval()(images()), gated.eval()(images()), atol=1e-9)
    assert torch.allclose(shed.weight_sq()[gated.gates.free :], gated.weight_sq()[gated.gates.free :])


def test_a_choice_is_an_ordinary_module() -> None:
    choice = edge(5).double()
    x = torch.randn(2, 5, 4, 4, dtype=torch.float64)
    by_hand = sum(choice.get_submodule(name)(x) for name in ("skip", "conv", "point", "pool"))
    assert torch.allclose(choice(x), by_hand)
    assert set(choice.state_dict()) == {
        *(f"conv.2.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        *("conv.1.weight", "point.weight", "point.bias"),
    }


@pytest.mark.parametrize(
    ("kind", "operations"),
    [
        (pgnas.OneOf, {"a": nn.Identity()}),
        (pgnas.OneOf, [None, None]),
        (pgnas.AnyOf, []),
        (pgnas.AnyOf, {"a": None, "b": nn.Identity()}),
        (pgnas.OneOf, {"a": nn.Identity(), "b": "conv"}),
        (pgnas.OneOf, {"a.b": nn.Identity(), "c": None}),
        (pgnas.OneOf, {"output_gates": nn.Identity(), "c": None}),
        (pgnas.OneOf, {"forward": nn.Identity(), "c": None}),
    ],
)
def test_operations_that_cannot_be_chosen_from_are_refused(kind: type[nn.Module], operations: object) -> None:
    with pytest.raises(ModelError, match=kind.__name__):
        kind(operations)


def test_ties_and_exclusions_name_choices() -> None:
    with pytest.raises(ModelError, match="same options"):
        cells(tie=[["cells.0.a", "side"]])
    with pytest.raises(ModelError, match="must name gated"):
        cells(tie=[["cells.0.a", "stem"]])
    excluded = cells(exclude=["cells.1.*", "side"])
    assert list(excluded.gates.sizes) == ["cells.0.a", "cells.0.b", "cells.0.c"]
    require_theorem(excluded, (images(),), excluded.mode(), 1e-10)
    with pytest.raises(ModelError, match="can be gated"):
        supernet(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)).double(), images(), "operation")


def test_inspect_tells_choices_and_counts_their_architectures() -> None:
    found = pgnas.inspect(Cells().double(), images(), tie=TIES[:1])
    assert found.log10_architectures == pytest.approx(5 * math.log10(5) + (found.units - 25) * math.log10(2))
    first, *_, side = sorted(found.choices, key=lambda choice: choice.gate)
    assert (first.places, first.options[:2], first.exclusive) == (("cells.0.a", "cells.1.a"), ("none", "skip"), True)
    assert (side.places, side.options, side.exclusive) == (("side",), ("wide", "max"), False)
    assert "one of none, skip, conv, point, pool" in [head for part in sections(found) for head, _ in part.entries]
    assert found.logits["product"] == found.logits["channel"] + found.logits["group"] - 25


def test_the_expected_cost_of_widths_within_operations_is_counted() -> None:
    """Outputs of an operation are needed where a reader behind it is open, too: the surrogate is the real count."""
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), edge(5), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 6, 3, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    ).double()  # fmt: skip
    gated, rng = supernet(model, images(), "channel"), generator(5)
    cost = expected_cost(
        gated.graph, gated.space.all_sites, gated.gates.sizes, gated.prices("macs"), choice=gated.gates.choice_of_unit()
    )
    inside = {"1.conv.1": 2, "1.point": 3}
    for option in (1, 2, 3, 4) * 5:
        kept = {
            name: tuple(sorted(torch.randperm(size, generator=rng)[:3].tolist()))
            for name, size in gated.gates.sizes.items()
        }
        kept |= {"1": (option,), **{name: () for name, own in inside.items() if own != option}}
        architecture = Architecture(gated.gates.sizes, kept)
        assert cost.count(gated.gates.mask(architecture)) == gated.count(architecture).macs


@pytest.mark.parametrize("streams", [False, True])
def test_channels_that_leave_around_operations_change_no_output_and_no_gradient(streams: bool) -> None:
    gated = cells("channel", streams=streams)
    spread_logits(gated)
    macs = []
    for closed in closings(gated)[1::2]:
        whole, shed = both(gated, closed)
        macs.append(shed.counts.macs)
        x, noise = images(batch=4), torch.rand(4, gated.gates.units, generator=generator(2), dtype=torch.float64)
        outputs = [network.train()(x, noise=noise) for network in (whole, shed)]
        require_same(outputs[1].detach(), outputs[0].detach())
        for output in outputs:
            output.sin().sum().backward()
        for found, wanted in zip(shed.gates.parameters(), whole.gates.parameters(), strict=True):
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-6, atol=1e-9)
        with torch.no_grad():
            require_same(shed.eval()(x), whole.eval()(x))
    assert min(macs) < gated.count(gated.open()).macs


class Nested(nn.Module):
    """A convolution that is one option of an operation that may be dropped as a whole."""

    def __init__(self) -> None:
        super().__init__()
        inner = pgnas.OneOf({"conv": nn.Conv2d(4, 4, 3, padding=1), "skip": nn.Identity()})
        self.stem, self.side, self.fc = nn.Conv2d(3, 4, 1), pgnas.AnyOf({"inner": inner}), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc((x + self.side(x)).mean((2, 3)))


@pytest.mark.parametrize("granularity", ["channel", "operation"])
def test_weights_inside_operations_count_by_the_probability_that_they_are_used(granularity: str) -> None:
    """The sum of pi * |w|^2 over units is the expected squared norm of the weights in use, over every open gate."""
    gated = supernet(randomise(Nested()).double(), images(), granularity).double()  # type: ignore[arg-type]
    spread_logits(gated)
    probabilities, expected, masses = torch.sigmoid(gated.gates.logits()), 0.0, 0.0
    conv, fc = gated.body.get_submodule("side.inner.conv"), gated.body.fc
    for bits in itertools.product((False, True), repeat=gated.gates.units):
        kept = torch.tensor(bits)
        mass = math.exp(gated.gates.log_prob(kept))
        parts = gated.gates.split(kept.double())
        used = parts["side"][0] * parts["side.inner"][0]
        reads = parts.get("side.inner.conv", torch.ones(4)), parts.get("fc", torch.zeros(4))
        norms = conv.weight.square().sum((0, 2, 3)), fc.weight.square().sum(0)
        expected += mass * float((used * (reads[0] * norms[0]).sum() + (reads[1] * norms[1]).sum()).detach())
        masses += mass
    assert masses == pytest.approx(1.0)
    assert float((probabilities * gated.weight_sq()).sum().detach()) == pytest.approx(expected, rel=1e-5)
    whole, shed = both(gated, torch.zeros(gated.gates.units, dtype=torch.bool))
    torch.testing.assert_close(shed.weight_sq(), whole.weight_sq())
