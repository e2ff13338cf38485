"""What a network's operations cost in time on this device: measured once, then predicted for any sub-network.

A convolution or linear layer is timed at several widths, and ``pair * inputs * outputs + output * outputs + constant``
is fitted to the times. What the whole network takes beyond its layers is spread over the other operations by the size
of what they make. Picking channels from a shared value is timed too, since it can cost more than it saves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from pgnas.errors import FileError
from pgnas.nn.channels import ChannelGraph, Dense
from pgnas.nn.cut import cut_layer, cut_rule
from pgnas.nn.liveness import Plan
from pgnas.nn.macs import Counted
from pgnas.nn.prices import Price
from pgnas.nn.timing import evaluation, seconds

FORMAT = "pgnas.device-costs/1"

_WIDTHS = ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (0.5, 0.5), (0.25, 0.25))
"""Shares of the input and output channels at which a layer is timed."""


@dataclass(frozen=True)
class DeviceCosts:
    """The price list of a network on a device, in seconds a batch.

    Attributes:
        prices: Node name to its price.
        pick: Of picking channels from a shared value: ``output`` a number picked, ``constant`` a call.
        network: Seconds of the whole network.
        batch: Examples a batch.
        training: Whether a forward and a backward pass were timed, or a forward pass alone.
        device: Where, and with how many threads.
    """

    prices: Mapping[str, Price] = field(repr=False)
    pick: Price
    network: float
    batch: int
    training: bool
    device: str

    def predict(self, graph: ChannelGraph, plan: Plan) -> float:
        """Seconds a batch of the network that a plan describes."""
        total = 0.0
        for name, op in graph.ops.items():
            price, outputs = self.prices.get(name), int(plan.computed[name].sum())
            if price is None or not outputs:
                continue
            inputs = int(plan.reads[name][0].sum()) if isinstance(op, Dense) else 1
            groups = max(1, inputs // op.per_group) if isinstance(op, Dense) and op.groups > 1 else 1
            total += price.pair * inputs * outputs / groups + price.output * outputs + price.constant
        return total + sum(self.pick_seconds(numbers) for numbers in _picked(graph, plan, self.batch))

    def pick_seconds(self, numbers: float) -> float:
        """Seconds to pick so many numbers from a value."""
        return self.pick.constant + self.pick.output * numbers

    def channel_numbers(self, graph: ChannelGraph, name: str) -> float:
        """Numbers in one channel of a value, for a batch."""
        return _channel(graph, name) * self.batch

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"format": FORMAT, **asdict(self), "prices": {k: _to_list(p) for k, p in self.prices.items()}}

    @classmethod
    def from_json(cls, values: Any, *, subject: str, graph: ChannelGraph) -> DeviceCosts:
        """The inverse of :meth:`to_json`.

        Raises:
            FileError: These are no device costs, or those of another network.
        """
        remedy = "use a file that a run of the same network wrote"
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise FileError(subject, f"must hold device costs of format {FORMAT}", remedy=remedy)
        try:
            prices = {str(name): Price(*map(_number, price)) for name, price in values["prices"].items()}
            pick = Price(**{name: _number(price) for name, price in values["pick"].items()})
            rest = (_number(values["network"]), int(values["batch"]), bool(values["training"]), str(values["device"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FileError(subject, "must hold whole device costs", value=repr(error), remedy=remedy) from error
        if set(prices) != _priced(graph):
            raise FileError(subject, "must hold the costs of this network's operations", remedy=remedy)
        return cls(prices, pick, *rest)


def _to_list(price: Price) -> list[float]:
    return [price.pair, price.output, price.constant]


def _number(value: Any) -> float:
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{value!r} is no time")
    return number


def measure_device(graph: ChannelGraph, *, batch: int = 1, training: bool = False) -> DeviceCosts:
    """Time a network's operations on the device and in the memory format that its parameters have.

    Args:
        graph: The analysed network.
        batch: Examples a batch.
        training: Time a forward and a backward pass, and not a forward pass alone.
    """
    stopwatch = _Stopwatch(graph, batch=batch, training=training)
    module = graph.trace.module
    with torch.random.fork_rng(), evaluation(module):
        layers = {name: stopwatch.layer(name) for name in graph.ops if _is_layer(graph, name)}
        whole = stopwatch.network()
        call = stopwatch.call()
        pick = stopwatch.picking()
    others = {name: call for name in _priced(graph) - set(layers)}
    rest = whole - sum(_at_full(graph, name, price) for name, price in layers.items()) - call * len(others)
    numbers = sum(_numbers(graph, name) for name in others) * batch
    rate = max(0.0, rest) / max(1, numbers)
    prices = {name: Price(0.0, rate * batch * _channel(graph, name), call) for name in others}
    parameter = next(module.parameters())
    device = f"{parameter.device.type}, {torch.get_num_threads()} threads"
    return DeviceCosts({**layers, **prices}, pick, whole, batch, training, device)


def _priced(graph: ChannelGraph) -> set[str]:
    """The operations that make a tensor."""
    kinds = ("call_module", "call_function", "call_method")
    return {name for name in graph.ops if graph.nodes[name].op in kinds and graph.shape(name)}


def _is_layer(graph: ChannelGraph, name: str) -> bool:
    return isinstance(graph.layer(graph.nodes[name]), Counted) and graph.is_cut(name)


def _numbers(graph: ChannelGraph, name: str) -> int:
    return math.prod(graph.example_shape(name))


def _channel(graph: ChannelGraph, name: str) -> float:
    """Numbers of one channel of a value, for one example."""
    return _numbers(graph, name) / graph.ops[name].value.channels


def _at_full(graph: ChannelGraph, name: str, price: Price) -> float:
    op = graph.ops[name]
    inputs = op.per_group if isinstance(op, Dense) else 1
    return price.pair * inputs * op.value.channels + price.output * op.value.channels + price.constant


def _picked(graph: ChannelGraph, plan: Plan, batch: int) -> list[int]:
    """How many numbers each pick of channels from a shared value takes in a plan's network."""
    found: dict[tuple[str, bytes], int] = {}
    for name, op in graph.ops.items():
        if not plan.computed[name].any():
            continue
        for source, read in zip(op.inputs, plan.reads[name], strict=False):
            whole = graph.ops[source].value.axis is None or torch.equal(plan.kept(source), read)
            if not whole and read.any():
                numbers = int(int(read.sum()) * _channel(graph, source)) * batch
                found[source, read.numpy().tobytes()] = numbers
    return list(found.values())


class _Stopwatch:
    """Times the parts of one network."""

    def __init__(self, graph: ChannelGraph, *, batch: int, training: bool) -> None:
        self._graph, self._batch, self._training = graph, batch, training
        self._known: dict[Any, Price] = {}
        parameter = next(graph.trace.module.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        weights = [p for p in graph.trace.module.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
        self._channels_last = any(p.is_contiguous(memory_format=torch.channels_last) for p in weights)

    def layer(self, name: str) -> Price:
        """The price of a convolution or linear layer; layers alike in all that matters are timed once."""
        op, layer = self._graph.ops[name], self._graph.layer(self._graph.nodes[name])
        assert layer is not None
        shape = self._graph.example_shape(op.inputs[0])
        key = (shape, repr(layer))
        if key not in self._known:
            self._known[key] = self._fit(op, layer, shape)
        return self._known[key]

    def network(self) -> float:
        """Seconds of the whole network."""
        shapes = [(self._batch, *x.shape[1:]) for x in self._graph.trace.inputs]
        module = self._graph.trace.module
        inputs = [self._random(shape) for shape in shapes]
        return self._seconds(module, inputs, list(module.parameters()), at_least=0.3)

    def call(self) -> float:
        """Seconds of an operation on next to nothing."""
        return self._seconds(torch.relu, [self._random((1, 1))], [])

    def picking(self) -> Price:
        """Seconds to pick half the channels of the network's values."""
        candidates = {self._graph.example_shape(name) for name in self._graph.ops if _is_layer(self._graph, name)}
        shapes = sorted(candidates, key=math.prod)
        rows, times = [], []
        for shape in {shapes[0], shapes[len(shapes) // 2], shapes[-1]} if shapes else ():
            axis = 1 if len(shape) != 3 else 2
            index = torch.arange(0, shape[axis], 2, device=self._device)
            value = self._random((shape[0] * self._batch, *shape[1:]))
            times.append(self._seconds(lambda x, i=index, a=axis: x.index_select(a, i), [value], []))
            rows.append([value.numel() // shape[axis] * len(index), 1.0])
        output, constant = _fit(rows, times) if rows else (0.0, 0.0)
        return Price(0.0, output, constant)

    def _fit(self, op: Any, layer: nn.Module, shape: Sequence[int]) -> Price:
        axis = op.values[0].axis
        groups, follows = getattr(op, "groups", 1), not isinstance(op, Dense)
        rows, times = [], []
        for share_in, share_out in _WIDTHS:
            if groups > 1 or follows:  # whole groups; one input an output
                if share_in != share_out:
                    continue
                unit_in = 1 if follows else op.per_group
                unit_out = 1 if follows else op.value.channels // groups
                units = max(1, int(share_in * (op.value.channels if follows else groups)))
                inputs, outputs = units * unit_in, units * unit_out
                row = [outputs, 1.0]
            else:
                inputs = max(1, int(share_in * op.values[0].channels))
                outputs = max(1, int(share_out * op.value.channels))
                row = [float(inputs * outputs), outputs, 1.0]
            cut = cut_layer(layer, cut_rule(layer, torch.arange(inputs), torch.arange(outputs)))
            size = [shape[0] * self._batch, *shape[1:]]
            size[axis] = inputs
            times.append(self._seconds(cut, [self._random(size)], list(cut.parameters())))
            rows.append(row)
        return Price(0.0, *_fit(rows, times)) if len(rows[0]) == 2 else Price(*_fit(rows, times))

    def _seconds(
        self,
        function: Callable[..., Any],
        inputs: list[Tensor],
        parameters: list[nn.Parameter],
        *,
        at_least: float = 0.02,
    ) -> float:
        if not self._training:
            with torch.inference_mode():
                return seconds(lambda: function(*inputs), at_least=at_least)
        inputs = [x.requires_grad_() for x in inputs]
        wanted = [*inputs, *(p for p in parameters if p.requires_grad)]
        output = function(*inputs)
        tangent = torch.ones_like(output)
        return seconds(
            lambda: torch.autograd.grad(function(*inputs), wanted, tangent, allow_unused=True), at_least=at_least
        )

    def _random(self, shape: Sequence[int]) -> Tensor:
        value = torch.randn(*shape, device=self._device, dtype=self._dtype)
        if self._channels_last and value.ndim == 4:
            return value.contiguous(memory_format=torch.channels_last)
        return value


def _fit(rows: Sequence[Sequence[float]], times: Sequence[float]) -> list[float]:
    """Non-negative coefficients that fit the times in relative terms."""
    matrix = np.asarray(rows) / np.asarray(times)[:, None]
    scale = np.maximum(np.abs(matrix).max(0), 1e-30)
    solution, _ = nnls(matrix / scale, np.ones(len(times)))
    return [float(x) for x in solution / scale]
