"""Time a network's operations on the device, one by one.

A convolution or linear layer is timed at several widths, and ``pair * inputs * outputs + output * outputs + constant``
is fitted to the times; any other operation is timed as it stands and taken as proportional to its channels, past the
cost of calling it. All are scaled by one factor so that together they take what the whole network takes. Picking
channels from a shared value is timed too, since it can cost more than it saves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from pgnas.nn.channels import ChannelGraph, Dense
from pgnas.nn.cut import cut_layer, cut_to
from pgnas.nn.device_costs import DeviceCosts, priced
from pgnas.nn.macs import Counted
from pgnas.nn.modes import evaluation
from pgnas.nn.prices import Price
from pgnas.nn.timing import seconds

_WIDTHS = ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (0.5, 0.5), (0.25, 0.25))
"""Shares of the input and output channels at which a layer is timed."""


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
        prices = {name: stopwatch.price(name) for name in priced(graph)}
        whole = stopwatch.network()
        pick = stopwatch.picking()
    factor = whole / sum(_at_full(graph, name, price) for name, price in prices.items())
    prices = {name: Price(p.pair * factor, p.output * factor, p.constant * factor) for name, p in prices.items()}
    parameter = next(module.parameters())
    device = f"{parameter.device.type}, {torch.get_num_threads()} threads"
    return DeviceCosts(prices, pick, whole, batch, training, device)


def _is_layer(graph: ChannelGraph, name: str) -> bool:
    return isinstance(graph.layer(graph.nodes[name]), Counted) and graph.is_cut(name)


def _at_full(graph: ChannelGraph, name: str, price: Price) -> float:
    op = graph.ops[name]
    inputs = op.per_group if isinstance(op, Dense) else 1
    return price.pair * inputs * op.value.channels + price.output * op.value.channels + price.constant


class _Stopwatch:
    """Times the parts of one network."""

    def __init__(self, graph: ChannelGraph, *, batch: int, training: bool) -> None:
        self._graph, self._batch, self._training = graph, batch, training
        self._known: dict[Any, Price] = {}
        self._call: float | None = None
        parameter = next(graph.trace.module.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        weights = [p for p in graph.trace.module.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
        self._channels_last = any(p.is_contiguous(memory_format=torch.channels_last) for p in weights)

    def price(self, name: str) -> Price:
        """The price of an operation; those alike in all that matters are timed once."""
        node = self._graph.nodes[name]
        layer = self._graph.layer(node)
        reads = [self._graph.shape(source) for source in node.all_input_nodes]
        rest = [str(node.target), map_arg(node.args, lambda n: None), map_arg(node.kwargs, lambda n: None)]
        key = repr((reads, layer if layer is not None else rest))
        if key not in self._known:
            if layer is not None and _is_layer(self._graph, name):
                self._known[key] = self._fit(self._graph.ops[name], layer)
            else:
                self._known[key] = self._proportional(name)
        return self._known[key]

    def network(self) -> float:
        """Seconds of the whole network."""
        shapes = [(self._batch, *x.shape[1:]) for x in self._graph.trace.inputs]
        module = self._graph.trace.module
        inputs = [self._random(shape) for shape in shapes]
        return self._seconds(module, inputs, list(module.parameters()), at_least=0.2)

    def call(self) -> float:
        """Seconds of an operation on next to nothing."""
        if self._call is None:
            self._call = self._seconds(torch.relu, [self._random((1, 1))], [])
        return self._call

    def picking(self) -> Price:
        """Seconds to pick half the channels of the network's values.

        Fast runtimes keep the channels of a pixel together, in blocks or all of them, and pick from whole maps: they
        reorder, pick, and reorder back. So that is timed (in training, which is done in PyTorch, the pick alone);
        onnxruntime was seen to take 1.2 to 1.5 times as long, and thirty times as long as a pick from whole maps.
        """

        def pick(x: Tensor, axis: int, index: Tensor) -> Tensor:
            if self._training or x.ndim != 4:
                return x.index_select(axis, index)
            return _channels_last(x.contiguous().index_select(axis, index))

        candidates = {self._graph.example_shape(name) for name in self._graph.ops if _is_layer(self._graph, name)}
        shapes = sorted(candidates, key=math.prod)
        rows, times = [], []
        for shape in {shapes[0], shapes[len(shapes) // 2], shapes[-1]} if shapes else ():
            axis = 1 if len(shape) != 3 else 2
            index = torch.arange(0, shape[axis], 2, device=self._device)
            value = _channels_last(self._random((shape[0] * self._batch, *shape[1:])))
            times.append(self._seconds(lambda x, i=index, a=axis: pick(x, a, i), [value], []))
            rows.append([value.numel() // shape[axis] * len(index), 1.0])
        output, constant = _fit(rows, times) if rows else (0.0, 0.0)
        return Price(0.0, output, constant)

    def _proportional(self, name: str) -> Price:
        """The price of an operation that is not fitted; one that cannot be run by itself costs a call."""
        node, inputs = self._graph.nodes[name], list[Tensor]()
        interpreter = fx.Interpreter(self._graph.trace.module)

        def value(read: fx.Node) -> Tensor:
            inputs.append(self._random(self._shape(read.name)))
            return inputs[-1]

        def run(*_: Tensor) -> Any:
            values = iter(inputs)
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: next(values))
            return getattr(interpreter, node.op)(node.target, args, kwargs)

        try:
            map_arg((node.args, node.kwargs), value)
            parameters = self._graph.own_parameters(name)
            taken = self._seconds(run, inputs, parameters) if inputs else self.call()
        except Exception:  # it reads numbers, or needs more than random values
            taken = self.call()
        constant = min(taken, self.call())
        return Price(0.0, (taken - constant) / self._graph.ops[name].value.channels, constant)

    def _shape(self, name: str) -> list[int]:
        """The shape of a value for the batch."""
        rows, *rest = self._graph.example_shape(name)
        return [rows * (self._batch if self._graph.is_batched(name) else 1), *rest]

    def _fit(self, op: Any, layer: nn.Module) -> Price:
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
            kept_in, kept_out = _first(inputs, op.values[0].channels), _first(outputs, op.value.channels)
            cut = cut_layer(layer, cut_to(layer, kept_in, kept_out))
            size = self._shape(op.inputs[0])
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
        at_least: float = 0.01,
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
        return _channels_last(value) if self._channels_last else value


def _fit(rows: Sequence[Sequence[float]], times: Sequence[float]) -> list[float]:
    """Non-negative coefficients that fit the times in relative terms."""
    matrix = np.asarray(rows) / np.asarray(times)[:, None]
    scale = np.maximum(np.abs(matrix).max(0), 1e-30)
    solution, _ = nnls(matrix / scale, np.ones(len(times)))
    return [float(x) for x in solution / scale]


def _first(count: int, channels: int) -> Tensor:
    """The mask of the first channels."""
    return torch.arange(channels) < count


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
