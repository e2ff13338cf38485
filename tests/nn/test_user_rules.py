"""Rules that a user registers for layers and functions of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pgnas
from pgnas.errors import RuleError
from pgnas.nn import Cut, supernet
from pgnas.nn.channels import mix, temporary_rules

from .networks import Network, architectures, images, randomise
from .test_extract import require_theorem


@pytest.fixture(autouse=True)
def own_rules() -> Iterator[None]:
    with temporary_rules():
        yield


class Scale(nn.Module):
    """Per-channel scale, statistics as a buffer, and the number of channels, which the forward needs."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.gain = nn.Parameter(torch.randn(num_features))
        self.register_buffer("shift", torch.randn(1, num_features, 1, 1))
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        gain = self.gain.reshape(1, self.num_features, 1, 1)
        return torch.tanh(self.temperature * x * gain) + self.shift.expand(1, self.num_features, 1, 1)


class Signs(nn.Conv2d):
    """A convolution with a forward of its own and a gain of each output."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(outputs, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, torch.sign(self.weight) * self.gain, self.bias, padding=1)


class Own(nn.Module):
    """A linear map over channels that knows nothing of torch.nn."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bihw,io->bohw", x, self.matrix)


class Squash(nn.Module):
    """Treats numbers alone, by a loop that the analysis cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = torch.special.expit(x) - torch.erf(x)
        return x


def squash(x: Tensor) -> Tensor:
    return torch.special.expit(x) - torch.erf(x)


def follow(node: Any, graph: Any) -> Any:
    return graph.follow(node)


def between(layer: nn.Module, width: int = 6) -> nn.Module:
    return randomise(
        nn.Sequential(
            nn.Conv2d(3, 6, 1),
            nn.Conv2d(6, 6, 3, padding=1),
            layer,
            nn.Conv2d(width, 5, 3, padding=1),
            nn.Conv2d(5, 2, 1),
        )
    ).double()


def require_exact(model: nn.Module) -> pgnas.Supernet:
    gated = supernet(model, images())
    assert gated.report.barriers == {}
    for architecture in architectures(gated):
        require_theorem(gated, (images(),), architecture, 1e-10)
    return gated


def test_without_a_rule_nothing_is_followed_and_with_it_everything() -> None:
    model = between(Squash())
    assert supernet(model, images()).report.barriers
    pgnas.channel_rule(Squash)(follow)
    require_exact(model)


def test_parameters_and_buffers_are_cut_with_the_same_decorator() -> None:
    @pgnas.channel_rule(Scale, cut_axes={"gain": 0, "shift": 1}, attributes="num_features")
    def scale(node: Any, graph: Any) -> Any:
        return graph.follow(node)

    gated = require_exact(between(Scale(6)))
    small = pgnas.extract(gated, pgnas.Architecture({"1": 6, "3": 6, "4": 5}, {"1": (0,), "3": (1, 4), "4": (2,)}))
    layer = small.get_submodule("2")
    assert (layer.num_features, layer.gain.shape, layer.shift.shape) == (2, (2,), (1, 2, 1, 1))
    assert layer.temperature.ndim == 0


def test_without_options_tensors_as_long_as_there_are_channels_are_cut() -> None:
    class Slopes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope, self.rest = nn.Parameter(torch.randn(6, 1, 1)), nn.Parameter(torch.randn(1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, x, self.slope * x) * self.rest

    pgnas.channel_rule(Slopes)(follow)
    require_exact(between(Slopes()))


def test_a_convolution_with_another_forward_is_gated_and_cut() -> None:
    model = between(Signs(6, 7), 7)
    assert "its forward is not that of a torch.nn layer" in supernet(model, images()).report.barriers.values()
    pgnas.channel_rule(Signs)(mix)
    assert require_exact(model).report.gated == {"1": 6, "2": 6, "3": 7, "4": 5}


def test_a_layer_that_mixes_channels_in_its_own_way_is_cut_by_its_own_cut() -> None:
    model = between(Own(6, 7), 7)
    with temporary_rules():
        pgnas.channel_rule(Own)(mix)
        assert supernet(model, images()).report.barriers == {
            "_2": "it mixes channels, and its rule does not say how it is cut (cut=)"
        }
    pgnas.channel_rule(Own, cut=lambda layer, kept_in, kept_out: Cut({"matrix": {0: kept_in, 1: kept_out}}))(mix)
    gated = require_exact(model)
    assert gated.report.gated == {"1": 6, "3": 7, "4": 5}
    assert {u.layer: u.reason for u in gated.report.ungated}["2"].endswith("it is cut but has no gate")


def test_functions_stay_whole() -> None:
    model = randomise(
        Network(lambda net, x: net.b(squash(net.a(net.stem(x)))), stem=nn.Conv2d(3, 6, 1), a=nn.Conv2d(6, 5, 1),
                b=nn.Conv2d(5, 2, 1))
    ).double()  # fmt: skip
    assert supernet(model, images()).report.barriers
    pgnas.channel_rule(squash)(follow)
    gated = require_exact(model)
    assert squash in [node.target for node in gated.graph.graph.nodes]


def test_tensor_methods() -> None:
    model = randomise(
        Network(lambda net, x: net.b(net.a(net.stem(x)).digamma()), stem=nn.Conv2d(3, 6, 1), a=nn.Conv2d(6, 5, 1),
                b=nn.Conv2d(5, 2, 1))
    ).double()  # fmt: skip
    assert supernet(model, images()).report.barriers == {"digamma": "no rule for tensor method digamma()"}
    pgnas.channel_rule("digamma")(follow)
    require_exact(model)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda layer: setattr(layer, "forward", layer.forward), "its forward was replaced on the layer itself"),
        (lambda layer: layer.add_module("inner", nn.BatchNorm2d(6)), "layers inside it have tensors"),
        (lambda layer: nn.utils.parametrizations.weight_norm(layer, "gain"), "(a parametrization)"),
    ],
)
def test_what_the_cut_cannot_reach_is_refused(spoil: Any, reason: str) -> None:
    pgnas.channel_rule(Scale, attributes="num_features")(follow)
    layer = Scale(6)
    spoil(layer)
    (found,) = supernet(between(layer), images()).report.barriers.values()
    assert reason in found


def test_a_subclass_with_another_forward_is_not_covered() -> None:
    class Other(Squash):
        def forward(self, x: Tensor) -> Tensor:
            return x.flip(1)

    pgnas.channel_rule(Squash)(follow)
    assert supernet(between(Other()), images()).report.barriers == {"flip": "it works along the channels or the batch"}


def test_the_rule_is_asked_only_on_its_axis() -> None:
    asked: list[Any] = []
    pgnas.channel_rule(Squash, axis=-1)(lambda node, graph: asked.append(node) or graph.follow(node))
    report = supernet(between(Squash()), images()).report
    assert report.barriers == {"_2": "the channels of its input do not lie on axis -1"}
    assert asked == []


@pytest.mark.parametrize(
    ("register", "message"),
    [
        (lambda: pgnas.channel_rule(), r"^channel_rule must be given what the rule is for; "),
        (lambda: pgnas.channel_rule(3), r"^channel_rule must be given layer types, .+ got int \(int\); "),
        (lambda: pgnas.channel_rule(Squash()), r"got Squash \(Squash\); pass the class, not a layer$"),
        (lambda: pgnas.channel_rule(int), r"got int \(type\); "),
        (lambda: pgnas.channel_rule("nosuch"), r"got nosuch \(str\); "),
        (lambda: pgnas.channel_rule(nn.ReLU), r"^ReLU has a channel rule already; "),
        (lambda: [pgnas.channel_rule(Squash)(follow) for _ in "ab"], r"^Squash has a channel rule already; "),
        (lambda: pgnas.channel_rule(squash, attributes="n"), r"^squash has nothing that could be cut; "),
        (lambda: pgnas.channel_rule(Scale, cut=Cut, cut_axes={}), r"^channel_rule takes cut or cut_axes .+; "),
        (lambda: pgnas.channel_rule(Squash)(lambda node: ""), r"^channel_rule must decorate a function of a node "),
        (lambda: pgnas.channel_rule(Squash)(3), r"^channel_rule must decorate .+, got a int; "),
        (lambda: pgnas.channel_rule(Squash)(nn.ReLU), r"^channel_rule must decorate .+, got a type; "),
    ],
)
def test_wrong_registrations_are_explained_in_one_line(register: Any, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        register()


@pytest.mark.parametrize(
    ("rule", "value"), [(lambda node, graph: None, "NoneType"), (lambda node, graph: 1 / 0, "ZeroDivisionError: .*")]
)
def test_a_rule_that_does_not_answer_is_named(rule: Any, value: str) -> None:
    pgnas.channel_rule(Squash)(rule)
    with pytest.raises(RuleError, match=rf"^channel rule of layer type Squash must return .+, got {value}; return "):
        supernet(between(Squash()), images())


def test_temporary_rules_are_forgotten() -> None:
    model = between(Squash())
    with temporary_rules():
        pgnas.channel_rule(Squash, squash, "digamma")(follow)
        assert not supernet(model, images()).report.barriers
    assert supernet(model, images()).report.barriers
    with temporary_rules():  # registered anew without a complaint
        pgnas.channel_rule(Squash, squash, "digamma")(follow)


def test_a_rule_that_reads_a_weight_leaves_what_it_is_computed_from() -> None:
    shapes = []

    @pgnas.channel_rule(Signs)
    def signs(node: Any, graph: Any) -> str:
        shapes.append(graph.layer(node).weight.shape)
        return "it is left alone"

    normed = nn.utils.parametrizations.spectral_norm(Signs(4, 5))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), normed, nn.Conv2d(5, 2, 1)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = supernet(model, images(dtype=torch.float32))
    assert shapes == [(5, 4, 3, 3)]
    assert made.body.training
    assert {name for name, value in made.body.state_dict().items() if not torch.equal(value, before[name])} == set()


class LowRank(nn.Module):
    """A linear layer in two steps, whose multiply-adds grow with inputs + outputs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down), self.up)


def test_layers_of_a_users_type_cost_what_they_run() -> None:
    @pgnas.channel_rule(LowRank, cut=lambda layer, inputs, outputs: Cut({"down": {1: inputs}, "up": {0: outputs}}))
    def low_rank(node: Any, graph: Any) -> Any:
        return mix(node, graph)

    model = randomise(nn.Sequential(nn.Flatten(), nn.Linear(192, 6), LowRank(6, 5), nn.ReLU(), nn.Linear(5, 2)))
    gated = supernet(model.double(), images())
    assert gated.report.barriers == {}
    for architecture in architectures(gated):
        require_theorem(gated, (images(),), architecture, 1e-10)
    for kept in range(1, 6):
        architecture = pgnas.Architecture(gated.gates.sizes, {"4": tuple(range(kept))})
        assert gated.count(architecture).macs == 192 * 6 + 2 * 6 + 2 * kept + 2 * kept
