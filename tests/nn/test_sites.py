"""Where a network is gated, where it is not, and that nothing is silently missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.models as zoo
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pgnas.architecture import Architecture
from pgnas.errors import ModelError
from pgnas.nn import extract, measure, supernet
from pgnas.nn.channels import ChannelGraph, channel_rule, temporary_rules

from .networks import NETWORKS, Network, Residual, Separable, generator, images
from .test_extract import ZOO

X = images(dtype=torch.float32)


def ungated(report: Any) -> dict[str, str]:
    return {entry.layer: entry.reason for entry in report.ungated}


def test_pointwise_is_gated_and_depthwise_is_not() -> None:
    report = supernet(Separable(), X).report
    assert report.gated == {"pointwise": 6, "squeeze": 8, "excite": 4, "last": 16}
    assert ungated(report) == {
        "stem": "it reads the network's input",
        "depthwise": "depthwise: it follows the gates around it",
        "multiplied": "depthwise: it follows the gates around it",
    }
    assert report.barriers == {}


def test_grouped_convolutions_have_a_unit_a_group() -> None:
    assert supernet(NETWORKS["grouped"](), X).report.gated == {"2": 4, "5": 2, "6": 6}


def test_layers_called_as_functions_are_layers() -> None:
    report = supernet(NETWORKS["functions"](), X).report
    assert report.gated == {"layer_conv2d": 4, "layer_linear": 6}
    assert report.barriers == {}
    assert any("'layer_conv2d'" in note for note in report.notes)
    padded = supernet(NETWORKS["padded by hand"](), X)
    assert padded.report.gated == {"2": 4, "5": 5}
    assert set(padded.body.state_dict()) == set(NETWORKS["padded by hand"]().state_dict())


@pytest.mark.parametrize("name", ["shuffle", "split attention", "selective kernels", "tokens", "transposed groups"])
def test_moved_channels_are_followed(name: str) -> None:
    """Nothing of a shuffle, a radix, a stack or a token map stops the analysis."""
    assert supernet(NETWORKS[name](), X).report.barriers == {}


@pytest.mark.parametrize("name", ["residual", "grouped", "chain"])
def test_the_image_is_gated_on_request(name: str) -> None:
    first, layers = supernet(NETWORKS[name](), X), supernet(NETWORKS[name](), X, gate_inputs=True)
    new = set(layers.report.gated) - set(first.report.gated)
    assert {layer: layers.report.gated[layer] for layer in new} in ({"stem": 3}, {"0": 3})


def test_an_input_that_the_network_normalises_is_still_the_input() -> None:
    net = Network(
        lambda net, x: net.b(net.a(torch.relu(net.norm((x - 0.5) / 2)))),
        a=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(3), b=nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    report = supernet(net, X).report
    assert report.gated == {"b": 4}
    assert ungated(report) == {"a": "it reads the network's input"}


def test_linear_layer_after_flatten_has_a_unit_a_channel() -> None:
    made = supernet(NETWORKS["flat"](), X)
    assert made.report.gated == {"head": 5}
    assert made.space.sites[0].unit_of_channel.tolist() == [c for c in range(5) for _ in range(36)]
    assert supernet(NETWORKS["cat of blocks"](), X).report.gated == {"head": 138}


def test_concatenated_sources_are_groups() -> None:
    made = supernet(NETWORKS["nested cats"](), X)
    groups = {spec.name: [(g.source, g.start, g.stop) for g in spec.groups] for spec in made.space.gates}
    assert groups == {
        "c": [("a", 0, 4), ("b", 4, 7), ("a", 7, 11)],
        "d": [("a", 0, 4), ("b", 4, 7), ("a", 7, 11), ("c", 11, 16), ("a", 16, 20)],
    }


def test_densenet_121_has_one_group_a_source() -> None:
    made = supernet(zoo.densenet121(num_classes=10), images(size=32, dtype=torch.float32))
    assert len(made.report.gated) == 120
    sources = {spec.name: len(spec.groups) for spec in made.space.gates}
    for block, layers in enumerate((6, 12, 24, 16), start=1):
        for layer in range(1, layers + 1):
            assert sources[f"features.denseblock{block}.denselayer{layer}.conv1"] == layer
            assert sources[f"features.denseblock{block}.denselayer{layer}.conv2"] == 1
        if block < 4:
            assert sources[f"features.transition{block}.conv"] == layers + 1
    assert sources["classifier"] == 17


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("called twice", "shared", "its layer is called 2 times with the same weights"),
        ("norm called twice", None, "its layer is called 2 times with the same weights"),
        ("tied", "a", "its weights are shared with another layer"),
        ("attribute of a layer", "b", "its weights are shared with another layer"),
        ("layer norm", "norm", "its statistics see all channels"),
        ("group norm", "4", "its statistics see all channels"),
        ("masked attention", "mix", "no rule for layer type MultiheadAttention"),
        ("own forward", "2", "its forward is not that of a torch.nn layer"),
        ("weight norm", "2", "its weight is computed from other tensors (weight norm, a parametrization)"),
        ("channels last", None, "its input's channels could not be followed"),
    ],
)
def test_what_cannot_be_followed_is_reported(name: str, layer: str | None, reason: str) -> None:
    report = supernet(NETWORKS[name](), X).report
    assert reason in report.barriers.values()
    if layer is not None:
        assert ungated(report)[layer] == reason


@pytest.mark.parametrize(
    "name",
    ["residual", "separable", "chain", "closed borders", "grouped", "transposed", "slices and pad", "nested cats",
     "cat of blocks", "flat", "resized", "in place", "arithmetic", "spatial attention", "split", "parts",
     "layer scale", "no statistics",
     "named tuple"],
)  # fmt: skip
def test_ordinary_networks_have_nothing_that_stops_shrinking(name: str) -> None:
    barriers = dict(supernet(NETWORKS[name](), X).report.barriers)
    if name == "layer scale":  # one of its scales is read twice
        assert len(barriers) == 2
        return
    assert barriers == {}


@pytest.mark.parametrize("name", [*ZOO, "googlenet", "convnext_tiny", "swin_t"])
def test_every_layer_is_gated_or_listed(name: str) -> None:
    make = ZOO.get(name)
    options = {"init_weights": False} if name == "googlenet" else {}
    model = make() if make is not None else zoo.get_model(name, weights=None, **options)
    report = supernet(model, images(size=64 if make is None else 32, dtype=torch.float32)).report
    listed = set(report.gated) | set(ungated(report))
    layers = {k for k, m in model.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)}
    assert layers <= listed
    assert not set(report.gated) & set(ungated(report))
    assert all(ungated(report).values())


def test_layers_that_do_not_run_are_listed() -> None:
    net = Network(lambda net, x: net.b(net.a(x)), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1), aux=nn.Linear(2, 2))
    assert ungated(supernet(net, X).report)["aux"] == "it is not called on the example inputs in evaluation"


def test_sequence_first_is_not_gated_by_mistake() -> None:
    net = Network(
        lambda net, x: net.c(net.b(net.a(x).flatten(2).permute(2, 0, 1))),
        a=nn.Conv2d(3, 4, 1), b=nn.Linear(4, 5), c=nn.Linear(5, 2), d=nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    with pytest.raises(ModelError, match="must have a layer that can be gated"):
        supernet(net, X)


def test_exclude() -> None:
    report = supernet(Residual(), X, exclude=["left.*", "head"]).report
    assert set(report.gated) == {"right.0", "mix"}
    assert ungated(report) == {"stem": "it reads the network's input", "left.0": "excluded", "head": "excluded"}
    assert "head" not in supernet(Residual(), X, exclude="head").report.gated


def test_tied_layers_share_a_gate_however_the_ties_are_listed() -> None:
    for tie in ([["left.0", "right.0", "head"]], [["right.0", "head"], ["left.0", "right.0"]]):
        made = supernet(Residual(), X, tie=tie)
        assert made.gates.units == 6 + 12
        assert len({site.gate for site in made.space.sites}) == 2
        assert made.report.gated == {"left.0": 6, "right.0": 6, "mix": 12, "head": 6}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": ["lefty.*"]}, r"^exclude 'lefty\.\*' must match .+; check the layer's name$"),
        ({"tie": [["left.0", "mix"]]}, r"^tie of 'left.0' and 'mix' must join .+, got 6 and 12; .+$"),
        ({"tie": [["left.0", "stem"]]}, r"^tie must name gated layers, got 'stem'; .+$"),
        ({"exclude": ["*"]}, r"^model must have a layer that can be gated, got none; .+$"),
        ({"granularity": "pixel"}, r"^granularity must be channel, group, product or operation, got 'pixel'; .+$"),
    ],
)
def test_mistakes_are_explained_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        supernet(Residual(), X, **options)


@pytest.mark.parametrize("by_example", [True, False])
def test_rows_that_do_not_come_example_by_example_have_no_gate(by_example: bool) -> None:
    """An example's noise must not meet the rows of others."""

    def run(net: Network, x: Tensor) -> Tensor:
        frames = x.flatten(0, 1) if by_example else x.transpose(0, 1).flatten(0, 1)
        y = net.b(net.a(frames).relu())
        y = y.view(x.size(0), 3, 2, 8, 8) if by_example else y.view(3, x.size(0), 2, 8, 8).transpose(0, 1)
        made: Tensor = y.mean((1, 3, 4))
        return made

    clips = torch.randn(2, 3, 3, 8, 8, generator=generator(0))
    network = Network(run, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1))
    if not by_example:
        with pytest.raises(ModelError, match=r"'b' \(the rows of its input do not come one example after the other\)"):
            supernet(network, clips, gate_inputs=True)
        return
    gated = supernet(network, clips, gate_inputs=True).train()
    assert not gated.report.ungated
    noise = torch.full((2, gated.gates.units), 0.5)
    other = noise.clone()
    other[0] = 1e-6
    changed = (gated(clips, noise=noise) - gated(clips, noise=other)).abs().amax(1)
    assert changed[0] > 0 == changed[1]


@pytest.mark.parametrize(
    ("name", "layer", "heads", "size", "queries", "keys", "width"),
    [
        ("attention", "encoder.self_attn.out_proj", 2, 4, 4, 4, 8),
        ("transformer", "decoder.layers.0.multihead_attn.out_proj", 2, 4, 4, 4, 8),
        ("attention with dropout", "mix.out_proj", 4, 2, 4, 16, 6),
        ("fused attention", "proj", 3, 4, 16, 16, 8),
        ("attention written out", "proj", 3, 4, 16, 16, 8),
        ("indexed attention", "proj", 3, 4, 16, 16, 8),
    ],
)
def test_a_head_of_an_attention_is_a_unit(
    name: str, layer: str, heads: int, size: int, queries: int, keys: int, width: int
) -> None:
    """With its rows of the projections, both of its products and its columns of the last layer."""
    gated = supernet(NETWORKS[name](), X)
    assert gated.report.gated[layer] == heads
    assert set(gated.report.barriers.values()) <= {"its statistics see all channels"}
    assert not [entry for entry in gated.report.ungated if entry.reason.startswith("no rule")]
    whole = gated.open()
    fewer = Architecture(whole.sizes, {**whole.kept, layer: tuple(range(1, heads))})
    projections = size * (queries * 8 + 2 * keys * width + queries * 8)
    products = 2 * queries * keys * size
    assert gated.count(whole).macs - gated.count(fewer).macs == projections + products
    small = extract(gated, fewer)
    assert measure(small, X) == gated.count(fewer)
    assert "index_select" not in small.code  # what is left of queries, keys and values lies side by side


def weights_read(net: Any, t: Tensor) -> Tensor:
    mixed, weights = net.mix(t, t, t)
    return mixed * weights.mean()


def called_twice(net: Any, t: Tensor) -> Tensor:
    once, _ = net.mix(t, t, t)
    twice: Tensor = net.mix(once, once, once, need_weights=False)[0]
    return twice


def batch_on_the_second_axis(net: Any, t: Tensor) -> Tensor:
    t = t.transpose(0, 1)
    mixed: Tensor = net.second(t, t, t)[0].transpose(0, 1)
    return mixed


@pytest.mark.parametrize("mix", [weights_read, called_twice, batch_on_the_second_axis])
def test_attention_that_stays_whole(mix: Callable[[Any, Tensor], Tensor]) -> None:
    net = Network(
        lambda net, x: net.head(mix(net, net.b(torch.relu(net.a(x))).flatten(2).mT).mean(1)),
        a=nn.Conv2d(3, 6, 4, stride=4), b=nn.Conv2d(6, 8, 1), head=nn.Linear(8, 3),
        mix=nn.MultiheadAttention(8, 2, batch_first=True), second=nn.MultiheadAttention(8, 2),
    )  # fmt: skip
    gated = supernet(net, X)
    assert "no rule for layer type MultiheadAttention" in gated.report.barriers.values()
    assert not any("written out" in note for note in gated.report.notes)
    assert torch.allclose(extract(gated, gated.open())(X), net.eval()(X), atol=1e-6)


@pytest.mark.parametrize("name", ["attention", "attention with dropout", "transformer"])
def test_what_is_frozen_stays_frozen(name: str) -> None:
    net = NETWORKS[name]()
    for key, parameter in net.named_parameters():
        parameter.requires_grad = "proj" not in key
    with torch.no_grad():
        gated = supernet(net, X)
    learns = {key: parameter.requires_grad for key, parameter in gated.body.named_parameters()}
    assert learns == {key: "proj" not in key for key in learns}
    assert set(learns.values()) == {True, False}


def test_a_transformer_with_a_mask_is_looked_into_and_its_attention_stays_whole() -> None:
    report = supernet(NETWORKS["causal transformer"](), X).report
    assert {f"encoder.layers.{index}.linear{part}" for index in (0, 1) for part in (1, 2)} <= set(report.gated)
    assert ungated(report)["encoder.layers.0.self_attn"] == "no rule for layer type MultiheadAttention"


def test_a_rule_for_a_kind_of_transformer_layer_is_asked() -> None:
    class Block(nn.TransformerEncoderLayer):
        """A kind of its own."""

    with temporary_rules():

        @channel_rule(Block, axis=2)
        def whole(node: fx.Node, graph: ChannelGraph) -> str:
            return "kept whole, says its rule"

        net = Network(
            lambda net, x: net.head(net.block(net.b(torch.relu(net.a(x))).flatten(2).mT).mean(1)),
            a=nn.Conv2d(3, 6, 4, stride=4), b=nn.Conv2d(6, 8, 1), block=Block(8, 2, 12, batch_first=True),
            head=nn.Linear(8, 3),
        )  # fmt: skip
        assert "kept whole, says its rule" in supernet(net, X).report.barriers.values()


def test_rows_that_alternate_between_examples_are_seen_among_numbers_too() -> None:
    net = Network(_words, e=nn.Embedding(10, 8), l=nn.Linear(8, 8), m=nn.Linear(8, 3))
    for words in (torch.randint(10, (2, 5), generator=generator(0)), torch.zeros(2, 5, dtype=torch.long)):
        with pytest.raises(ModelError, match="rows of its input do not come one example after the other"):
            supernet(net, words)


def _words(net: Any, x: Tensor) -> Tensor:
    y = net.e(x).permute(1, 0, 2)
    length, batch, channels = y.shape
    return net.m(F.relu(net.l(y.reshape(length * batch, channels)))).reshape(length, batch, 3).mean(0)


def test_what_is_behind_a_computed_weight_does_not_read_the_image() -> None:
    assert supernet(NETWORKS["standardised"](), X).report.gated == {"2": 5, "4": 6}


def test_a_norm_with_a_forward_of_its_own_is_cut_if_it_treats_each_channel_alone() -> None:
    report = supernet(NETWORKS["norms of their own"](), X).report
    assert report.barriers == {"_1": "its forward is not that of a torch.nn layer"}
    assert report.gated == {"2": 5, "4": 6}
