"""Check a layer's channel rule: does the extracted network compute what the gated one does?"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pgnas.architecture import Architecture, format_ranges
from pgnas.errors import ModelError, RuleError, first_line
from pgnas.nn import Supernet, extract, measure, supernet
from pgnas.nn.channels import ChannelOp, Dense, Follow
from pgnas.testing.probing import is_affine, measured_dependence, pulled_dependence, pushed_dependence
from pgnas.testing.surrounding import MOST_INPUTS, Surrounding
from pgnas.testing.training import require_trainable

TOLERANCE = 1e-10
_DENSITIES = (0.02, 0.3, 0.7, 0.97)
_CUT_REMEDY = "say with cut_axes= or cut= which axes of its tensors are channels, with attributes= what counts them"


@dataclass(frozen=True)
class LayerReport:
    """What :func:`check_layer` found in order.

    Attributes:
        layer: The layer's type.
        operations: Node name to the kind of rule it has, for all operations of the layer.
        barriers: Node name to the reason why it is not followed.
        gated: Whether the layer has a gate of its own.
        architectures: How many architectures were extracted and compared.
        largest_difference: The largest difference from the gated network, relative to its outputs' scale.
    """

    layer: str
    operations: dict[str, str]
    barriers: dict[str, str]
    gated: bool
    architectures: int
    largest_difference: float


def check_layer(
    layer: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    *,
    rounds: int = 8,
    seed: int = 0,
    channels_last: bool = False,
    barrier: bool = False,
) -> LayerReport:
    """Check that pgnas shrinks a layer, and what surrounds it, without changing what is computed.

    The layer is put into a small network in which each of its input channels can be closed by itself. In float64, for
    random architectures from almost nothing to almost all, the extracted network must equal the gated one to 1e-10, its
    parameters and multiply-adds must be as counted, and the gated network must train. Which outputs depend on which
    inputs is measured and compared with the rule.

    Args:
        layer: The layer; a copy is checked, with its parameters and statistics moved a little.
        example: What it reads: (B, C, ...), a tuple if it reads several.
        rounds: Random architectures, beside those with all, one and no channel.
        seed: Seed of weights, inputs and architectures.
        channels_last: Whether the inputs are (B, ..., C).
        barrier: Whether the layer is meant not to be followed.

    Raises:
        RuleError: The rule, or the cut, is wrong; the message says where.
        ModelError: The layer does not run on the example.
    """
    subject = f"channel rule of layer type {type(layer).__name__}"
    before = _snapshot(layer)
    generator = torch.Generator().manual_seed(seed)
    examples = _examples(example)
    own = _moved(copy.deepcopy(layer).double().eval(), generator)
    made = _run(own, examples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Surrounding(own, examples, made, last=channels_last).double()
    gated = _gated(network, examples, type(layer).__name__)
    inputs, output = _ends(gated, len(examples))
    report = _report(gated, type(layer).__name__)
    followed = not report.barriers and "reader" in gated.report.gated
    if followed == barrier:
        reasons = "; ".join(dict.fromkeys(report.barriers.values())) or "a followed layer"
        rule = "must not follow the layer" if barrier else "must follow the layer's channels"
        remedy = "drop barrier=True" if barrier else "register a rule with pgnas.channel_rule, or pass barrier=True"
        raise RuleError(subject, rule, value=reasons, remedy=remedy)
    if followed:
        made_axis = gated.graph.value(output).axis
        assert made_axis is not None
        measured = measured_dependence(own, examples, network.axes, made_axis, generator)
        _require_dependence(subject, gated, measured, inputs, output)
    architectures = _architectures(gated, rounds, generator)
    x = tuple(torch.randn(len(e) + 1, *e.shape[1:], generator=generator, dtype=torch.float64) for e in examples)
    differences = [_require_exact(subject, gated, architecture, x, own) for architecture in architectures]
    require_trainable(subject, gated, own, x)
    if _snapshot(layer) != before:
        raise RuleError(subject, "must leave the layer as it was", remedy="return a Cut, and change nothing in place")
    return LayerReport(
        report.layer, report.operations, report.barriers, report.gated, len(architectures), max(differences)
    )


def _examples(example: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    found = (example,) if isinstance(example, Tensor) else tuple(example)
    good = all(isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 2 for x in found)
    if not good or not 1 <= len(found) <= MOST_INPUTS:
        rule = f"must be a floating-point tensor (B, C, ...) or up to {MOST_INPUTS} of them"
        raise ModelError("example", rule, remedy="pass what the layer reads")
    return tuple(x.detach().double() for x in found)


def _run(layer: nn.Module, examples: tuple[Tensor, ...]) -> Tensor:
    name = type(layer).__name__
    try:
        with torch.no_grad():
            made = layer(*(x.clone() for x in examples))
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in examples)
        text = first_line(error)
        raise ModelError(f"layer {name}", f"must run on {shapes}", value=text, remedy="pass what it reads") from error
    if not isinstance(made, Tensor) or made.ndim < 2:
        found = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise ModelError(f"layer {name}", "must make one tensor (B, C, ...)", value=found, remedy="check another layer")
    return made


def _gated(network: Surrounding, examples: tuple[Tensor, ...], name: str) -> Supernet:
    try:
        return supernet(network, examples).eval()
    except ModelError as error:
        if error.subject != f"model {type(network).__name__}":
            raise
        remedy = "register a rule with pgnas.channel_rule: layers with a rule are not looked into"
        raise ModelError(f"layer {name}", error.rule, value=error.value, remedy=remedy) from error


@torch.no_grad()
def _moved(layer: nn.Module, generator: torch.Generator) -> nn.Module:
    """Parameters and statistics as after some training: ones and zeros would hide a wrong cut."""
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.mul_(1 + 0.3 * noise).add_(0.1 * noise.flip(0) if noise.ndim else 0.1 * noise)
    return layer


def _ends(gated: Supernet, count: int) -> tuple[list[str], str]:
    """The nodes whose values the layer reads, and the one whose value is its result."""
    reads = {str(node.target): node.all_input_nodes[0].name for node in gated.graph.graph.nodes if node.all_input_nodes}
    return [reads[f"past.{place}"] for place in range(count)], reads["reader"]


def _report(gated: Supernet, name: str) -> LayerReport:
    operations = _operations(gated)
    kinds = {node: type(op).__name__ for node, op in operations.items()}
    barriers = {node: reason for node, reason in gated.graph.barriers.items() if node in operations}
    own = any(layer == "layer" or layer.startswith("layer.") for layer in gated.report.gated)
    return LayerReport(name, kinds, barriers, own, 0, 0.0)


def _operations(gated: Supernet) -> dict[str, ChannelOp]:
    """The rules of the layer's own operations, by node."""
    nodes = [n.name for n in gated.graph.graph.nodes if "layer" in (n.meta.get("nn_module_stack") or {})]
    return {name: gated.graph.ops[name] for name in nodes}


def _require_dependence(subject: str, gated: Supernet, measured: Tensor, inputs: Sequence[str], output: str) -> None:
    graph = gated.graph
    shape = (graph.value(output).channels, sum(graph.value(name).channels for name in inputs))
    if tuple(measured.shape) != shape:
        value = f"{shape[0]} of {measured.shape[0]}"
        raise RuleError(subject, "must give the layer's value all of its channels", value=value, remedy="check value=")
    follows = all(isinstance(op, Follow) for op in _operations(gated).values())
    for claimed in (pushed_dependence(graph, inputs, output), pulled_dependence(graph, inputs, output)):
        wrong = (measured & ~claimed).nonzero()
        if len(wrong):
            made, read = wrong[0].tolist()
            says = "channel by channel" if follows else "that it does not"
            raise RuleError(
                subject,
                "must name all that an output channel depends on",
                value=f"output channel {made} that depends on input channel {read} where the rule says {says}",
                remedy="return mix(node, graph), another ChannelOp, or why it cannot be followed",
            )


def _architectures(gated: Supernet, rounds: int, generator: torch.Generator) -> list[Architecture]:
    sizes, units = gated.gates.sizes, gated.gates.units
    drawn = [
        gated.gates.architecture(torch.rand(units, generator=generator) < _DENSITIES[number % len(_DENSITIES)])
        for number in range(rounds)
    ]
    one = Architecture(sizes, {name: (size - 1,) for name, size in sizes.items()})
    return [gated.open(), one, Architecture(sizes, dict.fromkeys(sizes, ())), *drawn]


def _require_exact(
    subject: str, gated: Supernet, architecture: Architecture, x: tuple[Tensor, ...], own: nn.Module
) -> float:
    """The relative difference of the extracted network from the gated one, which must be rounding."""
    said = f"in the architecture with {_described(architecture)}"
    read: dict[str, Tensor] = {}
    with torch.no_grad(), gated.fixed(architecture):
        expected = _watched(gated.body, x, read, "gated", gated)
    try:
        small = extract(gated, architecture)
        with torch.no_grad():
            found = _watched(small, x, read, "small", small)
        counts = measure(small, x)
    except Exception as error:
        text = first_line(error)
        rule = "must come with a cut under which the extracted layer runs"
        raise RuleError(subject, rule, value=f"{text}, {said}", remedy=_CUT_REMEDY) from error
    scale = max(1.0, *(float(y.abs().max()) for y in expected))
    differences = [float((a - b).abs().max()) / scale for a, b in zip(found, expected, strict=True)]
    if not max(differences) <= TOLERANCE:
        raise RuleError(
            subject,
            "must let the extracted network compute what the gated one does",
            value=f"{_where(gated, architecture, read, max(differences))}, {said}",
            remedy=_remedy(gated, own, x),
        )
    counted = gated.count(architecture)
    if counted != counts:
        rule = "must let parameters and multiply-adds be counted before extraction"
        raise RuleError(subject, rule, value=f"{counted} for {counts}, {said}", remedy=_CUT_REMEDY)
    return max(differences)


def _watched(module: nn.Module, x: tuple[Tensor, ...], read: dict[str, Tensor], name: str, whole: nn.Module) -> Any:
    """The outputs of a network; ``read`` gets what its reader reads, if it is there."""
    readers = [part for path, part in module.named_modules() if path == "reader"]
    handles = [part.register_forward_pre_hook(lambda _, args: read.update({name: args[0]})) for part in readers]
    try:
        return whole(*x)
    finally:
        for handle in handles:
            handle.remove()


def _where(gated: Supernet, architecture: Architecture, read: dict[str, Tensor], largest: float) -> str:
    """Which of the layer's output channels differs most."""
    wanted = gated.plan(architecture).reads.get("reader") or [torch.zeros(0, dtype=torch.bool)]
    axis = gated.graph.ops["reader"].values[0].axis
    channels = wanted[0].nonzero()[:, 0].tolist()
    if channels and axis is not None and set(read) == {"gated", "small"}:
        expected = read["gated"].index_select(axis, torch.tensor(channels))
        if expected.shape == read["small"].shape:
            off = (expected - read["small"]).abs().movedim(axis, 0).flatten(1).amax(1)
            if float(off.max()) > TOLERANCE:
                return f"output channel {channels[int(off.argmax())]} off by {float(off.max()):.2g}"
    return f"an output off by {largest:.2g}"


def _remedy(gated: Supernet, own: nn.Module, x: tuple[Tensor, ...]) -> str:
    mixes = any(isinstance(op, Dense) for op in _operations(gated).values())
    if mixes and not is_affine(own, x, torch.Generator().manual_seed(0)):
        return "mix() is for layers that are affine in their input, and this one is not"
    return f"the kept part of the layer does not compute what the whole one did: {_CUT_REMEDY}"


def _described(architecture: Architecture) -> str:
    """The kept units of the gates that matter to a reader: the layer's inputs, its own and its outputs' gate."""
    names = [name for name in architecture.sizes if not name.startswith(("feeders", "past"))]
    fed = [
        name.rpartition(".")[2]
        for name in architecture.sizes
        if name.startswith("feeders.0.") and architecture.kept[name]
    ]
    parts = [f"live inputs {format_ranges([int(number) for number in fed]) or 'none'}"]
    parts += [f"'{name}' reading {format_ranges(architecture.kept[name]) or 'none'}" for name in names]
    return ", ".join(parts)


def _snapshot(layer: nn.Module) -> list[Any]:
    """Everything of a layer that a check might change by mistake."""
    tensors = {name: (value.tolist(), value.dtype) for name, value in layer.state_dict().items()}
    modules = [
        (name, module.training, {key: id(value) for key, value in vars(module).items() if not key.startswith("_")})
        for name, module in layer.named_modules()
    ]
    flags = [(name, p.requires_grad, p.grad is None) for name, p in layer.named_parameters()]
    return [tensors, modules, flags]
