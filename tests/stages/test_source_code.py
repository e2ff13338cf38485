from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from pgnas.errors import ConfigError, ModelError
from pgnas.stages.source_code import source_code
from pgnas.stages.source_layers import layer_source

LAYERS: list[Callable[[], nn.Module]] = [
    lambda: nn.Conv1d(2, 4, 3),
    lambda: nn.Conv2d(4, 8, (3, 1), stride=2, padding=(1, 0), dilation=(2, 1), groups=2, bias=False),
    lambda: nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect"),
    lambda: nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1),
    lambda: nn.Linear(3, 2, bias=False),
    lambda: nn.BatchNorm2d(4, eps=1e-3, momentum=None, affine=False),
    lambda: nn.BatchNorm1d(4, track_running_stats=False),
    lambda: nn.LayerNorm((4, 4), eps=1e-6, bias=False),
    lambda: nn.GroupNorm(2, 4),
    lambda: nn.InstanceNorm2d(4, affine=True),
    lambda: nn.PReLU(3),
    lambda: nn.ReLU6(inplace=True),
    lambda: nn.LeakyReLU(0.2),
    lambda: nn.GELU(approximate="tanh"),
    lambda: nn.Hardtanh(-2.0, float("inf")),
    lambda: nn.Threshold(0.1, 20),
    lambda: nn.Softmax(dim=1),
    lambda: nn.Dropout2d(0.3),
    lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    lambda: nn.AvgPool2d((2, 3), count_include_pad=False),
    lambda: nn.AdaptiveAvgPool2d((1, None)),
    lambda: nn.Flatten(1, 2),
    lambda: nn.Unflatten(1, (2, 2)),
    lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    lambda: nn.PixelShuffle(2),
    lambda: nn.ZeroPad2d((1, 1, 2, 2)),
    lambda: nn.Embedding(5, 3, padding_idx=0),
    lambda: nn.MultiheadAttention(8, 2, dropout=0.1, bias=False, batch_first=True),
    lambda: nn.LSTM(16, 12, batch_first=True, bidirectional=True),
    lambda: nn.LSTM(3, 4, 2, bias=False, dropout=0.2, proj_size=2),
    lambda: nn.GRU(3, 4, 3, False),
    lambda: nn.RNN(3, 4, nonlinearity="relu"),
    lambda: nn.RNN(3, 4, 2),
    lambda: nn.Identity(),
]


@pytest.mark.parametrize("make", LAYERS, ids=lambda make: type(make()).__name__)
def test_source_makes_the_same_layer(make: Callable[[], nn.Module]) -> None:
    layer = make()
    again = eval(layer_source(layer, "x"), {"nn": nn})
    assert type(again) is type(layer)
    assert repr(again) == repr(layer)
    shapes = {name: value.shape for name, value in layer.state_dict().items()}
    assert shapes == {name: value.shape for name, value in again.state_dict().items()}


def test_source_is_short() -> None:
    assert layer_source(nn.Conv2d(3, 8, 3, padding=1), "x") == "nn.Conv2d(3, 8, 3, padding=1)"
    assert layer_source(nn.ReLU(), "x") == "nn.ReLU()"
    assert layer_source(nn.Conv2d(1, 1, 1, padding_mode="zeros", padding="same"), "x").endswith('padding="same")')


class Foreign(nn.Module):
    """A layer of the user's, kept whole by the tracer."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class StochasticDepth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(len(x)) if self.training else x


def test_layers_without_source_are_named() -> None:
    with pytest.raises(ModelError, match=r"layer 'a\.b' \(Foreign\) must be a layer of torch\.nn"):
        layer_source(Foreign(), "a.b")
    hooked = nn.Linear(1, 1)
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(ModelError, match="must have no hooks"):
        layer_source(hooked, "x")
    with pytest.raises(ModelError, match="must be a layer of torch"):
        layer_source(parametrizations.weight_norm(nn.Linear(2, 2)), "x")
    changed = nn.Linear(2, 2)
    changed.weight = nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(ModelError, match="must be as its constructor makes it"):
        layer_source(changed, "x")


def test_stochastic_depth_is_an_identity() -> None:
    assert layer_source(StochasticDepth().eval(), "x") == "nn.Identity()"
    assert not isinstance(StochasticDepth().train(), nn.Identity)


class Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, Net | nn.Sequential)


class Net(nn.Module):
    pass


def traced(model: nn.Module) -> fx.GraphModule:
    return fx.GraphModule(model, Tracer().trace(model)).eval()


def defined(module: nn.Module) -> nn.Module:
    """The network that the source of ``module`` defines, with its state."""
    names: dict[str, Any] = {"__name__": "model", "__file__": "model.py"}
    exec(source_code(module), names)
    network: nn.Module = names["Network"]()
    network.load_state_dict(module.state_dict(), strict=True)
    return network.eval()


def require_same(model: nn.Module, *shape: int) -> str:
    module = traced(model)
    network = defined(module)
    assert set(network.state_dict()) == set(module.state_dict())
    assert [n for n, _ in sorted(network.named_parameters())] == [n for n, _ in sorted(module.named_parameters())]
    for batch in (1, 3):
        images = torch.randn(batch, *shape)
        torch.testing.assert_close(network(images), module(images))
    return source_code(module)


def test_awkward_names_and_tensors() -> None:
    class Awkward(Net):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleDict({"0": nn.Linear(4, 4), "07": nn.Linear(4, 4), "keys_": nn.Linear(4, 4)})
            self.torch = nn.Module()
            self.torch.scale = nn.Parameter(torch.randn(4))
            self.torch.register_buffer("index", torch.tensor([3, 1, 1, 0]))
            self.register_buffer("flag", torch.tensor([True, False, True, True]))
            self.x = nn.Linear(4, 4)

        def forward(self, input: Tensor) -> Tensor:
            y = self.blocks["0"](input) * self.torch.scale
            y = self.blocks["keys_"](self.blocks["07"](y)).index_select(1, self.torch.index)
            return torch.where(self.flag, self.x(y), -y) @ self.x.weight

    require_same(Awkward(), 4)


def test_shapes_are_asked_for_where_they_are_used() -> None:
    class Shapes(Net):
        def forward(self, x: Tensor) -> Tensor:
            b, c = x.shape[0], x.size(1)
            y = x.reshape(b, c // 2, 2 * x.shape[2], -1)
            y = F.interpolate(y, size=(x.shape[2] * 2, x.shape[3] + 1), mode="nearest")
            y = y[:, 1:, ..., None].mean((2, 3, 4)) - (b + 1) * (c - 2)
            return -(y[:, 0:3] ** 2 + y[:, -1:].expand(b, -1))

    text = require_same(Shapes(), 8, 4, 6)
    assert ".expand(images.shape[0], -1)" in text


def test_a_network_whose_layers_have_numbers() -> None:
    text = require_same(nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 2)), 3)
    assert "nn.Linear(4, 2)" in text


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_hand_on_their_states(kind: type[nn.RNNBase]) -> None:
    class Recurrent(Net):
        def __init__(self) -> None:
            super().__init__()
            self.first = kind(3, 4, 2, batch_first=True, bidirectional=True)
            self.second = kind(8, 4, 2, batch_first=True, bidirectional=True)

        def forward(self, x: Tensor) -> Tensor:
            steps, state = self.first(x)
            last, end = self.second(steps, state)
            return torch.cat([last[:, -1], (end[0] if kind is nn.LSTM else end)[1]], 1)

    text = require_same(Recurrent(), 5, 3)
    assert f"self.first = nn.{kind.__name__}(3, 4, num_layers=2, batch_first=True, bidirectional=True)" in text


def test_foreign_layers_are_opened() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

        def forward(self, x: Tensor) -> Tensor:
            torch._assert(x.ndim == 2, "two axes")
            return self.norm(x) * 2

    class Holder(Net):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.depth = Scale(), StochasticDepth()

        def forward(self, x: Tensor) -> Tensor:
            return self.depth(self.scale(x))

    text = require_same(Holder(), 4)
    assert "Scale" not in text
    assert "assert" not in text


def test_foreign_functions_and_constants_are_named() -> None:
    def helper(x: Tensor) -> Tensor:
        return x + 1

    graph = fx.Graph()
    graph.output(graph.call_function(helper, (graph.placeholder("x"),)))
    with pytest.raises(ModelError, match="operation 'helper' must be a function of torch"):
        source_code(fx.GraphModule(nn.Module(), graph))
    hidden = nn.Module()
    hidden.register_buffer("table", torch.ones(2), persistent=False)
    graph = fx.Graph()
    graph.output(graph.call_function(operator.add, (graph.placeholder("x"), graph.get_attr("table"))))
    with pytest.raises(ModelError, match="constant 'table' must be in the state dict"):
        source_code(fx.GraphModule(hidden, graph))
    with pytest.raises(ModelError, match="network must be a traced one, got Linear"):
        source_code(nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="must be a Python name"):
        source_code(traced(nn.Linear(1, 1)), class_name="1; import os")


Step = tuple[int, int, int]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 100), st.integers(0, 100)), max_size=25))
@settings(max_examples=60, deadline=None)
def test_variables_are_reused_only_once_dead(steps: list[Step]) -> None:
    graph = fx.Graph()
    values = [graph.placeholder("x")]
    for kind, i, j in steps:
        a, b = values[i % len(values)], values[j % len(values)]
        made = [
            lambda a=a, b=b: graph.call_function(operator.add, (a, b)),
            lambda a=a, b=b: graph.call_function(operator.sub, (a, b)),
            lambda a=a: graph.call_function(torch.tanh, (a,)),
            lambda a=a, b=b: graph.call_function(torch.where, (graph.call_function(operator.gt, (a, 0)), b, a)),
            lambda a=a: graph.call_method("mul", (a, graph.call_method("size", (a, 1)))),
            lambda a=a, b=b: graph.call_function(torch.maximum, (a, b)),
        ][kind]()
        values.append(made)
    graph.output(graph.call_function(torch.cat, ([values[-1], values[len(values) // 2]], 1)))
    module = fx.GraphModule(nn.Module(), graph)
    images = torch.linspace(-1, 1, 6).reshape(2, 3)
    torch.testing.assert_close(defined(module)(images), module(images), equal_nan=True)
