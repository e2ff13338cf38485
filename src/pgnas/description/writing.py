"""Describe a network: its graph, its layers and the tensors that belong to it, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from pgnas.description.errors import DescriptionError
from pgnas.description.layers import describe_layer
from pgnas.description.operations import DTYPES, METHODS, function_name
from pgnas.description.reading import FORMAT, NODE_NAME
from pgnas.description.values import encode

_OPS = {"call_module": "layer", "get_attr": "tensor", "call_function": "function", "call_method": "method"}

_IGNORED = ("_stacklevel",)  # of torch's functions: how deep in the calls their warnings are


def describe(module: fx.GraphModule, example: Tensor) -> dict[str, Any]:
    """A network of one input as JSON values, to go with the tensors of its state dict.

    Args:
        module: The network; see :func:`pgnas.description.opened`.
        example: Images as it takes them, (B, ...); only their shape and number type are used.

    Raises:
        DescriptionError: A layer, an operation or a value is not of those that a description can hold.
    """
    nodes = list(module.graph.nodes)
    names = _names(nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    if len(placeholders) != 1:
        raise DescriptionError("network", "must take one input", len(placeholders))
    output = next(node for node in nodes if node.op == "output").args[0]
    if not isinstance(output, fx.Node):
        raise DescriptionError("network", "must return one tensor", type(output).__name__)
    layers = {str(node.target): module.get_submodule(str(node.target)) for node in nodes if node.op == "call_module"}
    shape, dtype = [int(size) for size in example.shape[1:]], _dtype(example, "input")
    return {
        "format": FORMAT,
        "input": {"name": names[placeholders[0]], "shape": shape, "dtype": dtype},
        "layers": {name: describe_layer(layer, name) for name, layer in layers.items()},
        "tensors": _tensors(module),
        "nodes": [_node(node, names) for node in nodes if node.op in _OPS],
        "output": names[output],
    }


def _names(nodes: list[fx.Node]) -> dict[fx.Node, str]:
    """The nodes' own names, but for the input's and those that a description cannot hold."""
    names = {node: node.name for node in nodes if node.op in _OPS and NODE_NAME.fullmatch(node.name)}
    taken = {"images", *names.values()}
    for index, node in enumerate(nodes):
        if node.op == "placeholder":
            names[node] = "images"
        elif node not in names or node.name == "images":
            names[node] = f"value_{index}"
            while names[node] in taken:
                names[node] += "_"
            taken.add(names[node])
    return names


def _tensors(module: nn.Module) -> dict[str, dict[str, Any]]:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    seen: dict[int, str] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        kind = "parameter" if name in parameters else "buffer"
        found[name] = {"kind": kind, "shape": list(value.shape), "dtype": _dtype(value, f"tensor '{name}'")}
        first = seen.setdefault(id(value), name)
        if first != name:
            found[name]["same_as"] = first
    return found


def _dtype(value: Tensor, part: str) -> str:
    name = str(value.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise DescriptionError(part, "must be of a number type that pgnas knows", name)
    return name


def _node(node: fx.Node, names: Mapping[fx.Node, str]) -> dict[str, Any]:
    part = f"node '{node.name}'"
    target = str(node.target)
    if node.op == "call_function":
        name = function_name(node.target)
        if name is None:
            shown = f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__name__', node.target)}"
            raise DescriptionError(part, "must be a function of torch that pgnas knows", shown)
        target = name
    elif node.op == "call_method" and target not in METHODS:
        raise DescriptionError(part, "must be a method of tensors that pgnas knows", target)
    written = {"name": names[node], "op": _OPS[node.op], "target": target}
    args = [encode(value, part, names) for value in node.args]
    kwargs = {key: encode(value, part, names) for key, value in node.kwargs.items() if key not in _IGNORED}
    return written | ({"args": args} if args else {}) | ({"kwargs": kwargs} if kwargs else {})
