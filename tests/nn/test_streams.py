"""Stream gates: a value that several layers read has a gate of its own, which all of them obey."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.models import googlenet

from pgnas.bayes import KLContext, PaperPrior
from pgnas.errors import ModelError
from pgnas.nn import ShedSupernet, Supernet, supernet
from pgnas.nn.cost import CostName
from pgnas.nn.shaping import Shaper, by_share
from pgnas.nn.shedding import plan_without

from .networks import NETWORKS, Network, Residual, architectures, generator, images, randomise
from .test_cost import KINDS, X, counted, require_mean_over_all
from .test_extract import ZOO, require_theorem
from .test_shedding import both, closings, require_same, spread_logits

STREAMS = ("residual", "nested cats", "split", "spatial attention", "grouped", "closed borders", "tied")


def stage() -> nn.Module:
    """Two blocks on one residual stream and a squeeze-and-excitation pair, all of five channels."""
    return Network(
        lambda net, x: net.head((z := (y := net.stem(x)) + net.b(net.a(y).relu())) * net.gate(z.mean((2, 3), True))),
        stem=nn.Conv2d(3, 5, 3, padding=1),
        a=nn.Conv2d(5, 4, 3, padding=1),
        b=nn.Conv2d(4, 5, 1),
        gate=nn.Conv2d(5, 5, 1),
        head=nn.Conv2d(5, 2, 1),
    )


def test_what_sums_and_products_tie_has_one_gate() -> None:
    gated = supernet(randomise(stage()), X, streams=True)
    assert [spec.name for spec in gated.space.gates if spec.name.startswith("stream:")] == ["stream:a"]
    read = {site.layer: [part.gate for part in site.streams] for site in gated.space.sites}
    assert read == {"a": ["stream:a"], "b": [], "gate": ["stream:a"], "head": ["stream:a"]}
    assert gated.gates.sizes["stream:a"] == 5


def test_a_closed_unit_of_a_stream_leaves_every_layer_of_the_stage() -> None:
    gated = supernet(randomise(stage()), X, streams=True)
    kept = torch.ones(gated.gates.units, dtype=torch.bool)
    first = gated.gates.first_units()["stream:a"]
    kept[first + 1] = kept[first + 3] = False
    small = dict(gated.plan_units(kept).computed)
    for name in ("stem", "b", "gate"):
        assert small[name].tolist() == [True, False, True, False, True]
    counts = gated.count(gated.gates.architecture(kept))
    layers = (nn.Conv2d(3, 3, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1))
    assert counts.params == sum(p.numel() for layer in layers for p in layer.parameters())


def test_there_is_none_where_it_could_save_nothing() -> None:
    shown = Network(  # the stream is an output as well
        lambda net, x: (y := net.stem(x), net.a(y), net.b(y)),
        stem=nn.Conv2d(3, 4, 1), a=nn.Conv2d(4, 2, 1), b=nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    chain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    for network, options in ((shown, {}), (chain, {}), (stage(), {"tie": [["a", "gate", "head"]]})):
        gated = supernet(network, X, streams=True, **options)  # type: ignore[arg-type]
        assert not any(site.streams for site in gated.space.sites)
        assert gated.gates.sizes == supernet(network, X, **options).gates.sizes  # type: ignore[arg-type]


def test_two_streams_that_one_layer_reads_first_have_two_names() -> None:
    network = Network(
        lambda net, x: net.p(both := torch.cat([net.a(x), net.b(x)], 1)) + net.q(both),
        a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(3, 4, 1), p=nn.Conv2d(12, 2, 1), q=nn.Conv2d(12, 2, 1),
    )  # fmt: skip
    gated = supernet(randomise(network), X, streams=True)
    assert gated.gates.sizes == {"p": 12, "q": 12, "stream:p": 8, "stream:p:b": 4}
    assert gated.gates.units == 36
    closed = torch.ones(36, dtype=torch.bool)
    closed[gated.gates.first_units()["stream:p:b"] :] = False
    counts, architecture = gated.count(gated.gates.architecture(closed)), gated.gates.architecture(closed)
    assert counted(gated, architecture, "macs") == counts.macs
    assert counts.params == 8 * 3 + 8 + 2 * (8 * 2 + 2)
    require_theorem(gated.double(), (images(),), architecture, 1e-9)


def test_networks_whose_concatenations_are_read_by_several_layers_can_be_capped() -> None:
    gated = supernet(
        googlenet(init_weights=False, aux_logits=False), images(size=64, dtype=torch.float32), streams=True
    )
    assert len([name for name in gated.gates.sizes if name.startswith("stream:")]) > 30
    assert float(gated.expected_cost("macs").detach()) > 0.5


def test_there_is_none_where_readers_disagree_about_channels() -> None:
    network = Network(  # 64 channels for the layer that makes them, 4 of 16 pixels for the readers
        lambda net, x: (net.left(both := net.a(x).flatten(1) + net.b(x.flatten(1))), net.right(both)),
        a=nn.Conv2d(3, 1, 1), b=nn.Linear(192, 64), left=nn.Linear(64, 2), right=nn.Linear(64, 2),
    )  # fmt: skip
    gated = supernet(randomise(network).double(), images(), streams=True)
    for architecture in architectures(gated)[::3]:
        require_theorem(gated, (images(),), architecture, 1e-9)


@pytest.mark.parametrize("granularity", ["group", "operation"])
def test_one_logit_for_a_stream_is_refused(granularity: str) -> None:
    with pytest.raises(ModelError, match=r"^streams need granularity channel or product, got granularity"):
        supernet(stage(), X, granularity, streams=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_small_network_is_that_of_both_gates(name: str) -> None:
    gated = supernet(randomise(NETWORKS[name]()).double(), images(), streams=True, gate_inputs=True)
    for architecture in architectures(gated)[::3]:
        require_theorem(gated, (images(),), architecture, 1e-9)


@pytest.mark.parametrize("name", ["resnet18", "densenet", "mobilenet_v3_small", "shufflenet"])
def test_of_known_networks_too(name: str) -> None:
    x = images(size=32)
    gated = supernet(randomise(ZOO[name]()).double(), x, streams=True)
    assert any(site.streams for site in gated.space.sites)
    architecture = gated.gates.architecture(torch.rand(gated.gates.units, generator=generator(1)) < 0.7)
    require_theorem(gated, (x,), architecture, 1e-8)


def test_training_multiplies_both_samples_and_evaluation_both_probabilities() -> None:
    gated = supernet(randomise(stage()), X, streams=True, initial_drop=0.3)
    spread_logits(gated)
    keep, masks = gated.keep_probabilities(), gated.channel_masks(torch.sigmoid(gated.gates.logits())[None])
    torch.testing.assert_close(masks["head"][0], keep["head"] * keep["stream:a"])
    values = torch.rand(4, gated.gates.units, generator=generator(3))
    parts = gated.gates.split(values)
    torch.testing.assert_close(gated.channel_masks(values)["gate"], parts["gate"] * parts["stream:a"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", ["channel", "product"])
def test_expected_cost_is_the_mean_over_all_architectures(kind: CostName, granularity: str) -> None:
    net = Network(
        lambda net, x: net.c(y := net.b(net.a(x).relu())) + net.d(y),
        a=nn.Conv2d(3, 3, 3), b=nn.Conv2d(3, 2, 1), c=nn.Conv2d(2, 2, 3), d=nn.Conv2d(2, 2, 3),
    )  # fmt: skip
    gated = supernet(net, X, granularity=granularity, streams=True)  # type: ignore[arg-type]
    assert "stream:c" in gated.gates.sizes
    spread_logits(gated)
    require_mean_over_all(gated, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_surrogate_counts_the_small_network(kind: CostName) -> None:
    """While every gated layer has an open input and a reader, nothing is approximated."""
    gated, rng = supernet(randomise(stage()), X, streams=True), generator(0)
    for _ in range(20):
        kept = torch.rand(gated.gates.units, generator=rng) < 0.7
        for part in gated.gates.split(kept).values():
            part[0] = True
        architecture = gated.gates.architecture(kept)
        exact = gated.count(architecture)
        assert counted(gated, architecture, kind) == (exact.macs if kind == "macs" else exact.params)


@pytest.mark.parametrize("name", STREAMS)
def test_shedding_changes_nothing(name: str) -> None:
    gated = supernet(randomise(NETWORKS[name]()).double(), images(), streams=True).double()
    spread_logits(gated)
    for closed in closings(gated)[1:8:2]:
        whole, shed = both(gated, closed)
        x, noise = images(batch=4), torch.rand(4, gated.gates.units, generator=generator(2), dtype=torch.float64)
        with torch.no_grad():
            require_same(shed.train()(x, noise=noise), whole.train()(x, noise=noise))
            require_same(shed.eval()(x), whole.eval()(x))


def test_a_stage_sheds_what_its_gate_closed() -> None:
    gated = supernet(randomise(stage()), X, streams=True)
    closed = torch.zeros(gated.gates.units, dtype=torch.bool)
    first = gated.gates.first_units()["stream:a"]
    closed[first : first + 4] = True
    plan = plan_without(gated, closed)
    assert int(plan.computed["stem"].sum()) == 1
    gated.gates.close_(closed)
    assert ShedSupernet(gated).counts.macs < 0.45 * gated.count(gated.open()).macs


def test_weights_count_by_the_probability_that_the_stream_is_open() -> None:
    """The paper's KL has E_q of the kept weights' squares: both gates of a weight must be open."""
    gated = supernet(randomise(stage()), X, streams=True)
    gated.body.requires_grad_(False)
    spread_logits(gated)
    keep = gated.keep_probabilities()
    layers = dict(gated.body.named_modules())
    expected = 0.0
    for site in gated.space.sites:
        squares = layers[site.layer].weight.square().sum((0, 2, 3))  # type: ignore[union-attr, operator]
        expected += float((squares * keep[site.layer] * (keep["stream:a"] if site.streams else 1.0)).sum())
    logits = gated.gates.logits()
    entropy = KLContext(logits=logits, data_size=1.0, weight_sq=torch.zeros_like(logits))
    context = KLContext(logits=logits, data_size=1.0, weight_sq=gated.weight_sq())
    found = PaperPrior(2.0).kl(context) - PaperPrior(2.0).kl(entropy)
    assert float(found.detach()) == pytest.approx(2.0 * expected, rel=1e-5)
    shed = ShedSupernet(copy.deepcopy(gated))
    torch.testing.assert_close(shed.weight_sq(), gated.weight_sq())


def test_a_shaped_architecture_keeps_what_it_kept_and_reads_whole_streams() -> None:
    gated = supernet(randomise(Residual()), X, streams=True)
    for options in ({"reads_all": by_share}, {"round_to": 2}, {"reads_all": by_share, "round_to": 2}):
        shaper = Shaper(gated, **options)  # type: ignore[arg-type]
        for architecture in architectures(gated):
            kept = gated.gates.mask(architecture)
            shaped = shaper.shape(kept)
            assert (shaped | ~kept).all()
            _require_no_costlier_reads(gated, kept, shaped)


def _require_no_costlier_reads(gated: Supernet, kept: torch.Tensor, shaped: torch.Tensor) -> None:
    before, after = gated.plan_units(kept), gated.plan_units(shaped)
    for site in gated.space.sites:
        if before.reads[site.node]:
            assert (after.reads[site.node][0] | ~before.reads[site.node][0]).all()
