"""Turn any traceable network into a supernet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from pgnas.errors import ModelError
from pgnas.nn.channels import ChannelGraph
from pgnas.nn.copying import copied
from pgnas.nn.gate import Granularity
from pgnas.nn.sites import find_sites
from pgnas.nn.streams import STREAM_GRANULARITIES, add_streams
from pgnas.nn.supernet import Supernet
from pgnas.nn.trace import trace


def supernet(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    granularity: Granularity = "channel",
    *,
    initial_drop: float = 0.02,
    temperature: float = 0.5,
    exclude: Sequence[str] = (),
    tie: Sequence[Sequence[str]] = (),
    gate_inputs: bool = False,
    streams: bool = False,
    channels_per_gate: int = 1,
) -> Supernet:
    """A supernet around a copy of ``model``: gates at its convolutions' and linear layers' inputs, and at its choices.

    A separable convolution is gated at its pointwise part, a grouped one by whole groups, a linear layer that reads a
    flattened map by whole channels; a value that was concatenated has one group a source. The operations of a
    :class:`pgnas.OneOf` or :class:`pgnas.AnyOf` are gated at their outputs. The model's weights are the starting point.
    ``supernet.report`` lists what is gated and what is not, with reasons.

    Args:
        model: Any network that torch.fx can trace on the example inputs.
        example_inputs: A tensor (B, C, ...) or a tuple of such.
        granularity: ``channel``: a logit a unit; ``group``: one a source (the paper's); ``product``: both;
            ``operation``: layers have no gates, only the operations of choices have.
        initial_drop: Drop probability of every unit at the start, in (0, 1).
        temperature: tau of the relaxation (Eq. 16).
        exclude: Shell-style patterns of layers and choices that stay ungated, such as ``"fc"``.
        tie: Lists of layers whose inputs share one gate, or of choices that are made alike.
        gate_inputs: Also gate the layers that read the network's input.
        streams: Also gate every value that several layers read, as a whole: values that are summed or multiplied (a
            residual stage) are one stream with one gate, which all of its readers obey beside their own. Each of the
            two gates starts with ``initial_drop``. With ``channel`` or ``product``.
        channels_per_gate: Neighbouring input channels that one unit of a gate stands for, kept or dropped together: a
            layer reads multiples of it. Where its channels, or those of a part of a concatenation, are no multiple,
            the greatest common divisor takes its place: of 8 and 20 channels 4, of 8 and 20 beside 6 channels 2. Heads
            of an attention and groups of a grouped convolution stay the units that they are. Behind a channel shuffle
            neighbours were not made beside each other, so that what is made need not be a multiple.

    Raises:
        ModelError: The model cannot be traced, or nothing in it can be gated; an option breaks a rule.
    """
    inputs = _as_inputs(example_inputs)
    if granularity not in get_args(Granularity):
        remedy = "choose one"
        raise ModelError(
            "granularity", "must be channel, group, product or operation", value=repr(granularity), remedy=remedy
        )
    if streams and granularity not in STREAM_GRANULARITIES:
        rule, remedy = "need granularity channel or product", "leave out either"
        raise ModelError("streams", rule, value=f"granularity {granularity}", remedy=remedy)
    if type(channels_per_gate) is not int or channels_per_gate < 1:
        rule = "must be a whole number, at least 1"
        raise ModelError("channels_per_gate", rule, value=repr(channels_per_gate), remedy="use for example 8")
    if channels_per_gate > 1 and granularity == "operation":
        rule, value = "needs gates on channels", f"{channels_per_gate}, with granularity operation"
        raise ModelError("channels_per_gate", rule, value=value, remedy="leave out either")
    own = _copy(model).eval()  # in training, rules that read a weight may change what it is computed from
    device = next((p.device for p in own.parameters()), torch.device("cpu"))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the model may draw while it is traced
        graph = ChannelGraph(trace(own, tuple(x.detach()[:2].to(device) for x in inputs)))
    patterns = [exclude] if isinstance(exclude, str) else exclude
    space = find_sites(
        graph,
        exclude=patterns,
        tie=tie,
        gate_inputs=gate_inputs,
        gate_layers=granularity != "operation",
        channels_per_gate=channels_per_gate,
    )
    if streams:
        space = add_streams(graph, space)
    made = Supernet(graph, space, granularity=granularity, initial_drop=initial_drop, temperature=temperature)
    return made.to(device).train()


def _as_inputs(example: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    if not inputs or not all(isinstance(x, Tensor) and x.ndim >= 1 and len(x) for x in inputs):
        raise ModelError(
            "example_inputs", "must be a tensor or a tuple of tensors, batch first", remedy="pass one batch"
        )
    sizes = [len(x) for x in inputs]
    if len(set(sizes)) > 1:
        raise ModelError(
            "example_inputs", "must have the batch as first axis of each", value=sizes, remedy="pass one batch"
        )
    return inputs


def _copy(model: nn.Module) -> nn.Module:
    if isinstance(model, Supernet):
        raise ModelError("model", "must be an ordinary network", value="a Supernet", remedy="pass the network itself")
    try:
        return copied(model)
    except Exception as error:
        raise ModelError(
            f"model {type(model).__name__}", "must be copyable by copy.deepcopy", value=error, remedy="make it so"
        ) from error
