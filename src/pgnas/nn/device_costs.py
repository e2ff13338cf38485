"""What a network's operations cost in time on this device: measured once, then predicted for any sub-network.

Made by :func:`pgnas.nn.stopwatch.measure_device`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from pgnas.errors import FileError
from pgnas.nn.channels import ChannelGraph, Dense
from pgnas.nn.liveness import Plan
from pgnas.nn.prices import Price

FORMAT = "pgnas.device-costs/1"


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
        return total + sum(map(self.pick_seconds, self._picked(graph, plan)))

    def pick_seconds(self, numbers: float) -> float:
        """Seconds to pick so many numbers from a value."""
        return self.pick.constant + self.pick.output * numbers

    def channel_numbers(self, graph: ChannelGraph, name: str) -> float:
        """Numbers in one channel of a value, for a batch."""
        return math.prod(graph.example_shape(name)) / graph.ops[name].value.channels * self.batch

    def _picked(self, graph: ChannelGraph, plan: Plan) -> list[float]:
        """How many numbers each pick of channels from a shared value takes in a plan's network."""
        found: dict[tuple[str, bytes], float] = {}
        for name, op in graph.ops.items():
            if not plan.computed[name].any():
                continue
            for source, read in zip(op.inputs, plan.reads[name], strict=False):
                whole = graph.ops[source].value.axis is None or torch.equal(plan.kept(source), read)
                if not whole and read.any():
                    found[source, read.numpy().tobytes()] = int(read.sum()) * self.channel_numbers(graph, source)
        return list(found.values())

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
        if set(prices) != set(priced(graph)):
            raise FileError(subject, "must hold the costs of this network's operations", remedy=remedy)
        return cls(prices, pick, *rest)


def _to_list(price: Price) -> list[float]:
    return [price.pair, price.output, price.constant]


def _number(value: Any) -> float:
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{value!r} is no time")
    return number


def priced(graph: ChannelGraph) -> list[str]:
    """The operations that have a price: those that make a tensor."""
    kinds = ("call_module", "call_function", "call_method")
    return [name for name in graph.ops if graph.nodes[name].op in kinds and graph.shape(name)]
