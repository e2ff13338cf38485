"""What is told about a network before a search is what the search works on."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torchvision.models as zoo
from torch import Tensor, nn

import pgnas
from pgnas.nn import measure, supernet
from pgnas.nn.inspection import inspect_supernet

from .networks import NETWORKS, Network, Residual, Separable, images

X = images(dtype=torch.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_agrees_with_the_supernet_on_every_network(name: str) -> None:
    model = NETWORKS[name]()
    gated = supernet(model, X)
    found = inspect_supernet(gated, model=name, params=sum(p.numel() for p in model.parameters()))
    assert {layer.layer: layer.units for layer in found.gated} == gated.report.gated
    assert [(layer.layer, layer.reason) for layer in found.ungated] == [
        (entry.layer, entry.reason) for entry in gated.report.ungated
    ]
    assert [barrier.reason for barrier in found.barriers] == list(gated.report.barriers.values())
    assert found.params == measure(model, (X,)).params
    assert found.macs == measure(model, (X,)).macs  # layers called as functions count as well
    assert all(sum(source.units for source in layer.sources) == layer.units for layer in found.gated)
    for granularity, number in found.logits.items():
        made = supernet(model, X, granularity)  # type: ignore[arg-type]
        assert number == sum(p.numel() for p in made.gates.parameters())
    assert found.log10_architectures == pytest.approx(math.log10(2) * gated.gates.units)
    one = pgnas.Architecture(gated.gates.sizes, dict.fromkeys(gated.gates.sizes, (0,)))
    small = measure(pgnas.extract(gated, one), (X,))
    assert (found.smallest_params, found.smallest_macs) == (small.params, small.macs)
    assert json.loads(json.dumps(found.to_json()))["units"] == gated.gates.units


def test_a_residual_stream_is_one_shared_value() -> None:
    found = pgnas.inspect(zoo.resnet18(), torch.randn(2, 3, 32, 32))
    stream = found.coupled[0]
    assert stream.origins == ("conv1", "layer1.0.conv2", "layer1.1.conv2")
    assert stream.channels == 64
    assert stream.readers == ("layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.0.downsample.0")


def test_closing_all_readers_of_a_shared_value_is_what_removes_its_channel() -> None:
    gated = supernet(Residual(), X)
    (stream,) = [v for v in pgnas.inspect(gated).coupled if v.origins[0] == "stem"]
    full = gated.open()
    for leave in (*stream.readers, None):
        kept = {
            name: tuple(u for u in units if u % 6 != 2) if name in stream.readers and name != leave else units
            for name, units in full.kept.items()
        }
        stem = pgnas.extract(gated, pgnas.Architecture(full.sizes, kept)).get_submodule("stem")
        assert stem.out_channels == (5 if leave is None else 6), leave


def test_parts_of_a_concatenation_are_shared_one_by_one() -> None:
    found = pgnas.inspect(NETWORKS["nested cats"](), X)
    assert {value.origins: value.readers for value in found.coupled} == {("a",): ("c", "d"), ("b",): ("c", "d")}
    assert [source.origin for source in found.gated[1].sources] == ["a", "b", "a", "c", "a"]


def _barred(net: Any, x: Tensor) -> Tensor:
    shared = net.a(x.fliplr())
    unread = net.d(x).lgamma()
    return net.c(net.b(shared).rot90(2, (2, 3))) + shared.erfc().sum() + unread.sum()


def test_barriers_on_gated_channels_are_told_from_others() -> None:
    net = Network(_barred, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 5, 1), c=nn.Conv2d(5, 2, 1), d=nn.Conv2d(3, 4, 1))
    barriers = {barrier.operation: barrier.touches_gates for barrier in pgnas.inspect(net, X).barriers}
    # b's outputs are read through rot90, a's channels by erfc beside the gated b; no gate could remove d's.
    assert barriers["rot90()"]
    assert barriers["erfc()"]
    assert not barriers["fliplr()"]
    assert not barriers["lgamma()"]


def test_kinds_and_labels() -> None:
    found = pgnas.inspect(Separable(), X)
    kinds = {layer.layer: layer.kind for layer in (*found.gated, *found.ungated)}
    assert kinds["depthwise"] == "depthwise 3x3"
    assert kinds["pointwise"] == "conv 1x1"
    assert {layer.kind for layer in pgnas.inspect(NETWORKS["grouped"](), X).gated} >= {"conv 3x3 groups 4"}
    assert {layer.kind for layer in pgnas.inspect(NETWORKS["transposed"](), X).gated} >= {"conv 3x3 transposed"}


def test_ties() -> None:
    assert pgnas.inspect(NETWORKS["tied"](), X).tied_weights == (("a.weight", "b.weight"),)
    found = pgnas.inspect(Residual(), X, tie=[["left.0", "right.0"]])
    assert found.tied_gates == (("left.0", "right.0"),)
    assert found.units == 6 + 12 + 6


def test_printed_it_is_a_few_lines() -> None:
    found = pgnas.inspect(zoo.mobilenet_v3_small(), torch.randn(1, 3, 64, 64))
    text = str(found)
    assert f"MobileNetV3 on (3, 64, 64): {found.params:,} parameters, {found.macs:,} multiply-adds" in text
    assert f"{len(found.gated)} layers and 0 choices gated: {found.units:,} binary variables" in text
    assert f"; and {len(found.ungated) - 3} more" in text
    assert found.ungated[0].layer in text
    assert len(text.splitlines()) < 8 + len(found.notes)
    assert "not gated" not in str(pgnas.inspect(nn.Sequential(nn.Linear(4, 2)), torch.randn(1, 4), gate_inputs=True))
