"""Wrong rules and wrong cuts are found, and the message says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pgnas
from pgnas.errors import ModelError, RuleError
from pgnas.nn import Cut
from pgnas.nn.channels import Follow, mix
from pgnas.testing import check_layer, temporary_rules

IMAGES = (2, 6, 4, 5)


@pytest.fixture(autouse=True)
def own_rules() -> Iterator[None]:
    with temporary_rules():
        torch.manual_seed(0)
        yield


def follow(node: Any, graph: Any) -> Any:
    return graph.follow(node)


class Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.gain = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain.expand(1, self.channels, 1, 1)


class Neighbours(nn.Module):
    """Channel 3 also reads channel 5."""

    def forward(self, x: Tensor) -> Tensor:
        mixed = x.clone()
        mixed[:, 3] += torch.relu(x[:, 5])
        return mixed


class Standardised(nn.Conv2d):
    """Its weights are standardised over the input channels: cutting some changes the others."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


class Squared(nn.Conv2d):
    """Not affine."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach() * 1.5 if self.training else x * 1.5


class Renamed(nn.Module):
    """Its forward changes the layer, which a rule that keeps it whole would hide."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


def message(layer: nn.Module, shape: tuple[int, ...] = IMAGES, **options: Any) -> str:
    with pytest.raises(RuleError) as found:
        check_layer(layer, torch.randn(shape), **options)
    assert str(found.value).startswith(f"channel rule of layer type {type(layer).__name__} must ")
    assert "\n" not in str(found.value)
    return str(found.value)


def test_a_right_rule_passes_and_the_layer_is_left_alone() -> None:
    pgnas.channel_rule(Scale, cut_axes={"gain": 1}, attributes="channels")(follow)
    layer = Scale(6).train()
    report = check_layer(layer, torch.randn(IMAGES), rounds=5)
    assert report.operations == {"layer": "Follow"}
    assert (report.barriers, report.gated, report.architectures) == ({}, False, 8)
    assert report.largest_difference < 1e-10
    assert layer.training
    assert torch.equal(layer.gain, torch.ones(1, 6, 1, 1))
    assert layer.gain.grad is None


def test_a_layer_without_a_rule_is_not_followed() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.roll(1, 1)

    assert "must follow the layer's channels, got it works along the channels or the batch" in message(Turned())
    assert check_layer(Turned(), torch.randn(IMAGES), barrier=True).barriers == {
        "roll": "it works along the channels or the batch"
    }


def test_a_barrier_that_is_none() -> None:
    assert "must not follow the layer, got a followed layer" in message(nn.ReLU(), barrier=True)


def test_channels_that_are_mixed_are_named() -> None:
    pgnas.channel_rule(Neighbours)(follow)
    said = message(Neighbours())
    assert "output channel 3 that depends on input channel 5 where the rule says channel by channel" in said


def test_a_wrong_pull_is_found_as_well() -> None:
    class Forgetful(Follow):
        def pull(self, rows: Tensor) -> list[Tensor]:
            (read,) = super().pull(rows)
            read = read.clone()
            read[2] = 0
            return [read]

    def rule(node: Any, graph: Any) -> Any:
        found = graph.follow(node)
        return Forgetful(found.name, found.inputs, found.values, found.value)

    pgnas.channel_rule(Renamed)(rule)
    assert "output channel 2 that depends on input channel 2" in message(Renamed())


@pytest.mark.parametrize(
    "options",
    [
        {},  # the first axis of gain is no channel axis: nothing is cut
        {"cut_axes": {"gain": 1}},  # the forward needs the number of channels
        {"cut_axes": {"gain": 0}, "attributes": "channels"},
        {"cut": lambda layer, kept_in, kept_out: Cut({"gain": {2: kept_out}}, {"channels": len(kept_out)})},
    ],
)
def test_a_cut_that_does_not_run_is_found(options: dict[str, Any]) -> None:
    pgnas.channel_rule(Scale, **options)(follow)
    assert "must come with a cut under which the extracted layer runs" in message(Scale(6))


def test_a_cut_that_keeps_the_wrong_channels_is_found() -> None:
    def first(layer: Any, kept_in: Tensor, kept_out: Tensor) -> Cut:
        return Cut({"gain": {1: torch.arange(len(kept_out))}}, {"channels": len(kept_out)})

    pgnas.channel_rule(Scale, cut=first)(follow)
    said = message(Scale(6))
    assert "must let the extracted network compute what the gated one does, got output channel " in said
    assert "say with cut_axes=" in said


def test_weights_that_hang_together_over_channels_are_found() -> None:
    pgnas.channel_rule(Standardised)(mix)
    said = message(Standardised(6, 4, 1))
    assert "the kept part of the layer does not compute what the whole one did" in said
    assert "'layer' reading" in said


def test_a_layer_that_is_not_affine_cannot_mix() -> None:
    pgnas.channel_rule(Squared)(mix)
    assert message(Squared(6, 4, 1)).endswith("mix() is for layers that are affine in their input, and this one is not")


def test_a_gradient_that_does_not_flow_is_found() -> None:
    class Split(nn.Module):
        """Traced in evaluation, where it detaches; by itself it trains."""

        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            y = x * self.gain
            return y if self.training else y.detach()

    assert "must give its parameter 'gain' a gradient, got none" in message(Split())


def test_a_gradient_that_the_plain_layer_lacks_too_is_no_fault() -> None:
    pgnas.channel_rule(Detached)(follow)
    assert check_layer(Detached(), torch.randn(IMAGES)).operations == {"layer": "Follow"}


def test_a_rule_that_changes_the_layer_is_found() -> None:
    layer = Renamed()

    def meddle(node: Any, graph: Any) -> Any:
        layer.calls = 10_000
        return graph.follow(node)

    pgnas.channel_rule(Renamed)(meddle)
    assert "must leave the layer as it was" in message(layer)


def test_several_inputs() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.relu(x) + y

    report = check_layer(Sum(), (torch.randn(IMAGES), torch.randn(IMAGES)))
    assert list(report.operations.values()) == ["Follow", "Elementwise"]


@pytest.mark.parametrize(
    ("layer", "example", "part"),
    [
        (nn.ReLU(), torch.ones(3, dtype=torch.long), "example must be a floating-point tensor"),
        (nn.ReLU(), (), "example must be a floating-point tensor"),
        (nn.Conv2d(3, 4, 3), torch.ones(2, 5, 4, 4), "layer Conv2d must run on (2, 5, 4, 4), got "),
        (nn.LSTM(4, 4), torch.ones(2, 3, 4), "layer LSTM must make one tensor"),
        (Neighbours(), torch.ones(2, 6, 4, 4), "layer Neighbours must be traceable by torch.fx"),
        (nn.ReLU(), torch.ones(2, 3, 1, 1, 1, 1), "example must be (B, C), (B, C, L), "),
    ],
)
def test_what_cannot_be_checked_is_said(layer: nn.Module, example: Any, part: str) -> None:
    with pytest.raises(ModelError) as found:
        check_layer(layer, example)
    assert part in str(found.value)
