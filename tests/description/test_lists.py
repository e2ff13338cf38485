"""The lists of what a description may name: real names, opened layers, round trips of values."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from pgnas.description import DescriptionError, opened, operations
from pgnas.description.layers import LAYERS, build_layer, describe_layer, passes_on
from pgnas.description.values import decode, encode


def test_no_function_of_the_lists_changes_a_tensor_or_reaches_out() -> None:
    """Names that end in one underscore are torch's for what changes its input; few listed functions are Python's."""
    for name, function in operations.functions().items():
        assert not name.endswith("_") or name in ("operator.and_", "operator.or_")
        assert "__" not in name
        assert operations.function_name(function) is not None
        if inspect.isfunction(function):
            assert function.__module__.startswith("torch.")
            for word in ("open(", "exec(", "eval(", "load(", "__import__", "os."):
                assert word not in inspect.getsource(function), (name, word)
    assert not [name for name in operations.METHODS if name.endswith("_")]


def test_methods_are_those_of_tensors_and_layers_are_leaves() -> None:
    assert all(callable(getattr(Tensor, name)) for name in operations.METHODS)
    assert not [name for name, kind in LAYERS.items() if issubclass(kind, nn.Sequential | nn.ModuleList | nn.RNNBase)]


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats()
    | st.sampled_from([torch.float32, torch.int64, torch.channels_last, ..., slice(1, None, -1), range(3, 9, 2)])
    | st.sampled_from([*sorted(operations.WORDS | operations.ATTRIBUTES), "bc,cd->bd"])
)


@given(
    st.recursive(
        PLAIN, lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple), max_leaves=8
    )
)
def test_values_come_back_from_json(value: Any) -> None:
    again = decode(json.loads(json.dumps(encode(value, "x"), allow_nan=False)), "x", {})
    assert repr(again) == repr(value)  # not ==, as True == 1 and nan != nan


@pytest.mark.parametrize("value", [object(), {"a": 1}, 1j, b"x", torch.zeros(1), torch.device("cpu"), print, "cuda"])
def test_other_values_are_not_written(value: Any) -> None:
    with pytest.raises(DescriptionError):
        encode([value], "x")


def test_a_layer_is_written_if_it_is_of_the_list() -> None:
    for layer in (nn.Bilinear(2, 3, 4), nn.Hardtanh(-1.0, float("inf")), nn.ZeroPad2d((1, 2, 3, 4))):
        again = build_layer(json.loads(json.dumps(describe_layer(layer, "x"))), "x")
        assert repr(again) == repr(layer)
    with pytest.raises(DescriptionError, match="layer of torch"):
        describe_layer(nn.LSTM(2, 3), "x")


class Foreign(nn.Module):
    """A layer with a tensor that is no part of its state, which changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("by", torch.tensor([2.0]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return x.mul_(self.by)


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.foreign = nn.Linear(2, 2), Foreign()

    def forward(self, x: Tensor) -> Tensor:
        return self.foreign(self.linear(x))


class Whole(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def test_opening_leaves_the_network_alone_and_keeps_every_tensor() -> None:
    module = fx.GraphModule(holder := Holder().eval(), Whole().trace(holder)).eval()
    text, state = module.code, set(module.state_dict())
    found = opened(module)
    assert (module.code, set(module.state_dict())) == (text, state)
    assert set(found.state_dict()) == {*state, "foreign.by"}
    assert "mul_(" not in found.code
    images = torch.randn(3, 2)
    with torch.no_grad():
        assert torch.equal(found(images.clone()), holder(images.clone()))
    found.linear.weight.data.zero_()
    assert holder.linear.weight.any()


class Bounded(nn.Module):
    """Does something in evaluation, but only to large numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x.clamp(-50, 50)


class Passed(nn.Module):
    """Does nothing in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if self.training else x


def test_a_layer_that_leaves_usual_numbers_alone_is_not_taken_for_one_that_passes_all_on() -> None:
    assert passes_on(Passed().eval())
    assert not passes_on(Bounded().eval())
    with pytest.raises(DescriptionError, match="Bounded"):
        describe_layer(Bounded().eval(), "a")
