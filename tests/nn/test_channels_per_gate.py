"""Units of several channels: they are kept, paid for and shed together, and all theorems hold for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import pgnas
from pgnas.config import RunConfig
from pgnas.errors import ConfigError, ModelError
from pgnas.nn import supernet
from pgnas.nn.cost import CostName
from pgnas.nn.shaping import Shaper
from pgnas.nn.shedding import plan_without
from pgnas.stages.fitting import Fitter

from .networks import NETWORKS, Network, architectures, generator, images, randomise, tensors
from .test_cost import KINDS, X, counted, require_mean_over_all
from .test_extract import ZOO, require_theorem
from .test_shedding import DRAWS, both, closings, require_same, spread_logits


def stage(channels: int = 8, inside: int = 4) -> nn.Module:
    """A block on a residual stream that two layers read."""
    return Network(
        lambda net, x: net.head((y := net.stem(x)) + net.b(net.a(y).relu())),
        stem=nn.Conv2d(3, channels, 3, padding=1),
        a=nn.Conv2d(channels, inside, 3, padding=1),
        b=nn.Conv2d(inside, channels, 1),
        head=nn.Conv2d(channels, 2, 1),
    )


def test_neighbouring_channels_share_a_unit() -> None:
    gated = supernet(stage(), X, streams=True, channels_per_gate=4)
    assert gated.gates.sizes == {"a": 2, "b": 1, "head": 2, "stream:a": 2}
    assert gated.report.gated == {"a": 2, "b": 1, "head": 2}
    (site,) = (site for site in gated.space.sites if site.layer == "a")
    assert site.unit_of_channel.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert site.streams[0].units.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(("channels", "units"), [(8, 1), (12, 3), (20, 5), (6, 3), (5, 5), (32, 4)])
def test_where_they_do_not_divide_the_channels_fewer_do(channels: int, units: int) -> None:
    gated = supernet(stage(channels), X, streams=True, channels_per_gate=8)
    assert gated.gates.sizes["a"] == gated.gates.sizes["stream:a"] == units


def test_the_pixels_of_a_flattened_map_are_with_their_channel() -> None:
    chain = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 2))
    gated = supernet(chain, X, channels_per_gate=3)
    assert gated.gates.sizes == {"3": 2}
    assert gated.space.sites[0].unit_of_channel.tolist() == [0] * 108 + [1] * 108


def test_groups_stay_units_and_what_reads_them_keeps_within() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 2, 1))
    assert supernet(network, X, channels_per_gate=8).gates.sizes == {"1": 4, "2": 12}
    assert supernet(network, X, channels_per_gate=6).gates.sizes == {"1": 4, "2": 4}


class Attention(nn.Module):
    """Four heads of six channels, read by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Conv2d(3, 8, 3), nn.Linear(8, 72)
        self.left, self.right = nn.Linear(24, 2), nn.Linear(24, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(x.size(0), -1, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return (self.left(mixed) + self.right(mixed)).mean(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("per_gate", [1, 2, 4, 8])
def test_heads_stay_units(per_gate: int) -> None:
    gated = supernet(randomise(Attention()).double(), images(), streams=True, channels_per_gate=per_gate)
    assert gated.gates.sizes == {"qkv": 8 // per_gate, "left": 4, "right": 4, "stream:left": 4}
    for architecture in architectures(gated)[::3]:
        require_theorem(gated, (images(),), architecture, 1e-9)


def test_sums_of_flattened_maps_are_read_by_whole_channels() -> None:
    network = Network(
        lambda net, x: net.last(net.a(x).flatten(1) + net.b(x).flatten(1)),
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1), last=nn.Linear(256, 2),
    )  # fmt: skip
    assert [supernet(network, X, channels_per_gate=k).gates.sizes["last"] for k in (1, 2, 4, 8)] == [4, 2, 1, 1]


def test_tied_layers_have_the_units_that_suit_all_of_them() -> None:
    network = Network(
        lambda net, x: (net.p(torch.cat([net.a(x), net.b(x)], 1)), net.q(net.c(x)), net.r(net.a(x))),
        a=nn.Conv2d(3, 10, 1), b=nn.Conv2d(3, 10, 1), c=nn.Conv2d(3, 20, 1),
        p=nn.Conv2d(20, 2, 1), q=nn.Conv2d(20, 2, 1), r=nn.Conv2d(10, 2, 1),
    )  # fmt: skip
    gated = supernet(network, X, tie=[["p", "q"]], channels_per_gate=8)
    assert gated.gates.sizes == {"p": 10, "r": 5}
    with pytest.raises(ModelError, match="must join layers with equally many channels"):
        supernet(network, X, tie=[["q", "r"]], channels_per_gate=20)  # one unit each, of 20 channels and of 10


def test_what_streams_would_add_is_told_in_their_units() -> None:
    gated = supernet(stage(), X, channels_per_gate=4)
    assert "under a cap whole streams have gates as well: 2 more binary variables" in pgnas.inspect(gated).notes


def test_units_of_a_concatenation_keep_within_its_parts() -> None:
    network = Network(
        lambda net, x: net.last(torch.cat([net.a(x), net.b(x)], 1)),
        a=nn.Conv2d(3, 12, 1), b=nn.Conv2d(3, 8, 1), last=nn.Conv2d(20, 2, 1),
    )  # fmt: skip
    gated = supernet(network, X, channels_per_gate=8)
    assert [(g.source, g.start, g.stop) for g in gated.space.gates[0].groups] == [("a", 0, 3), ("b", 3, 5)]


@pytest.mark.parametrize("per_gate", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_small_network_computes_the_same(name: str, per_gate: int) -> None:
    gated = supernet(randomise(NETWORKS[name]()).double(), images(), streams=True, channels_per_gate=per_gate)
    for architecture in architectures(gated)[::2]:
        require_theorem(gated, (images(),), architecture, 1e-9)


@pytest.mark.parametrize("name", ["resnet18", "densenet", "mobilenet_v3_small", "shufflenet"])
def test_widths_of_known_networks_are_multiples(name: str) -> None:
    x = images(size=32)
    gated = supernet(randomise(ZOO[name]()).double(), x, streams=True, channels_per_gate=8)
    assert 6 * gated.gates.units < supernet(ZOO[name](), x.float(), streams=True).gates.units
    architecture = gated.gates.architecture(torch.rand(gated.gates.units, generator=generator(1)) < 0.7)
    require_theorem(gated, (x,), architecture, 1e-8)
    if name == "resnet18":
        small = pgnas.extract(gated, architecture)
        widths = [m.weight.shape[1] for m in small.modules() if isinstance(m, nn.Conv2d | nn.Linear)][1:]
        assert widths
        assert all(width % 8 == 0 for width in widths)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", ["channel", "product", "group"])
def test_expected_cost_is_the_mean_over_all_architectures(kind: CostName, granularity: str) -> None:
    streams = granularity != "group"
    gated = supernet(stage(), X, granularity, streams=streams, channels_per_gate=2)  # type: ignore[arg-type]
    spread_logits(gated)
    require_mean_over_all(gated, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["stage", "residual", "grouped", "separable", "flat"])
def test_the_surrogate_counts_the_small_network(name: str, kind: CostName) -> None:
    """While every gated layer has an open input and a reader, nothing is approximated."""
    network = stage() if name == "stage" else NETWORKS[name]()
    gated, rng = supernet(randomise(network), X, streams=True, channels_per_gate=2), generator(0)
    architecture = gated.open()
    exact = gated.count(architecture)
    assert counted(gated, architecture, kind) == (exact.macs if kind == "macs" else exact.params)
    for _ in range(20 if name == "stage" else 0):
        kept = torch.rand(gated.gates.units, generator=rng) < 0.6
        for part in gated.gates.split(kept).values():
            part[0] = True
        architecture = gated.gates.architecture(kept)
        exact = gated.count(architecture)
        assert counted(gated, architecture, kind) == (exact.macs if kind == "macs" else exact.params)


def test_channels_of_a_gated_group_die_with_it() -> None:
    """However many channels are wanted in a unit, it lies within one group."""
    network = Network(
        lambda net, x: net.last(net.wide(net.stem(x)).relu()),
        stem=nn.Conv2d(3, 4, 1), wide=nn.Conv2d(4, 8, 3, groups=2), last=nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    costs = []
    for per_gate in (1, 2, 4, 8):
        gated = supernet(network, X, channels_per_gate=per_gate)
        kept = torch.ones(gated.gates.units, dtype=torch.bool)
        kept[gated.gates.first_units()["wide"]] = False
        costs.append(counted(gated, gated.gates.architecture(kept), "params"))
        exact = gated.count(gated.gates.architecture(kept)).params
        assert costs[-1] == exact
    assert len(set(costs)) == 1


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in DRAWS])
def test_shedding_changes_nothing(name: str) -> None:
    gated = supernet(randomise(NETWORKS[name]()).double(), images(), streams=True, channels_per_gate=2).double()
    spread_logits(gated)
    for closed in closings(gated)[1:8:3]:
        whole, shed = both(gated, closed)
        x, noise = images(batch=4), torch.rand(4, gated.gates.units, generator=generator(2), dtype=torch.float64)
        outputs = [tensors(net.train()(x, noise=noise)) for net in (whole, shed)]
        for output in outputs:
            sum(t.sin().sum() for t in output).backward()
        require_same([t.detach() for t in outputs[1]], [t.detach() for t in outputs[0]])
        for found, wanted in zip(shed.gates.parameters(), whole.gates.parameters(), strict=True):
            if wanted.grad is not None:
                torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(shed.expected_cost("macs"), whole.expected_cost("macs"))
        with torch.no_grad():
            require_same(shed.eval()(x), whole.eval()(x))


def test_a_unit_is_shed_whole() -> None:
    gated = supernet(randomise(stage()), X, streams=True, channels_per_gate=4)
    closed = torch.zeros(gated.gates.units, dtype=torch.bool)
    closed[gated.gates.first_units()["stream:a"]] = True
    assert plan_without(gated, closed).computed["stem"].tolist() == [False] * 4 + [True] * 4


def test_weights_behind_a_unit_are_those_of_all_its_channels() -> None:
    fine, coarse = (supernet(stage(), X, channels_per_gate=k) for k in (1, 4))
    coarse.body.load_state_dict(fine.body.state_dict())
    by_channel, by_unit = fine.weight_sq().detach(), coarse.weight_sq().detach()
    first = fine.gates.first_units()
    expected = by_channel[first["a"] : first["a"] + 8].reshape(2, 4).sum(1)
    start = coarse.gates.first_units()["a"]
    torch.testing.assert_close(by_unit[start : start + 2], expected)


def test_a_run_finds_widths_that_are_multiples(tmp_path: Path) -> None:
    result = pgnas.run(
        model="multibranch-resnet:width=8,stages=1", data="digits", out=f"{tmp_path}/run", epochs=2,
        max_macs="50%", channels_per_gate=4, candidates=4, compile="off",
    )  # fmt: skip
    assert result["found"]["macs"] <= 0.5 * result["full"]["macs"]
    widths = [m.weight.shape[1] for m in result.model.modules() if isinstance(m, nn.Conv2d)][1:]
    assert widths
    assert all(width % 4 == 0 for width in widths)


@pytest.mark.parametrize("per_gate", [0, -8, 2.0, "8", True])
def test_numbers_that_are_none_are_refused(per_gate: object) -> None:
    with pytest.raises(ModelError, match=r"^channels_per_gate must be a whole number, at least 1"):
        supernet(stage(), X, channels_per_gate=per_gate)  # type: ignore[arg-type]
    if per_gate != "8":  # which a file of settings may hold
        with pytest.raises(ConfigError, match="--channels-per-gate must"):
            RunConfig(model="m", data="d", out="o", channels_per_gate=per_gate)  # type: ignore[arg-type]


@pytest.mark.parametrize(("per_gate", "round_to", "fits"), [(8, 16, True), (8, 4, True), (6, 8, False), (1, 8, True)])
def test_rounding_goes_by_units(per_gate: int, round_to: int, fits: bool) -> None:
    settings = {"model": "m", "data": "d", "out": "o", "channels_per_gate": per_gate, "round_to": round_to}
    if fits:
        RunConfig(**settings)  # type: ignore[arg-type]
        return
    with pytest.raises(ConfigError, match="--round-to must be a multiple of --channels-per-gate, or divide it, got 8"):
        RunConfig(**settings)  # type: ignore[arg-type]


def test_operations_alone_have_no_channels_to_gate() -> None:
    with pytest.raises(ModelError, match="channels_per_gate needs gates on channels"):
        supernet(stage(), X, "operation", channels_per_gate=8)
    with pytest.raises(ConfigError, match="--channels-per-gate needs gates on channels"):
        RunConfig(model="m", data="d", out="o", granularity="operation", channels_per_gate=8)


def test_room_that_a_dear_unit_leaves_is_filled_with_cheap_ones() -> None:
    network = Network(
        lambda net, x: net.dear(net.a(x)).mean() + net.cheap(net.b(x)).mean(),
        a=nn.Conv2d(3, 8, 1), dear=nn.Conv2d(8, 8, 3), b=nn.Conv2d(3, 8, 1), cheap=nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    gated = supernet(network, X, channels_per_gate=4)
    with torch.no_grad():
        assert gated.gates.unit_logits is not None
        gated.gates.unit_logits.copy_(torch.tensor([3.0, 2.0, 1.0, 0.0]))  # of "dear", then of "cheap"
    assert list(gated.gates.sizes) == ["dear", "cheap"]
    full = gated.count(gated.open()).macs
    found = Fitter(gated, {"macs": int(0.8 * full)}, Shaper(gated)).fit(gated.open())
    assert found.architecture.kept == {"dear": (0,), "cheap": (0, 1)}
