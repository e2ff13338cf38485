"""Build a network from a description that nobody vouches for.

The description is data. Nothing that it names is imported, looked up in a module or evaluated: functions, methods,
layers and words are found in the closed lists of :mod:`pgnas.description.operations` and
:mod:`pgnas.description.layers` or refused, names are plain identifiers, and the whole is run once on shapes alone
(:mod:`pgnas.description.trial`) before it meets a tensor.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from pgnas.description.errors import DescriptionError
from pgnas.description.operations import ATTRIBUTES, KEYWORDS_REFUSED, METHODS, functions
from pgnas.description.structure import (
    MOST_ENTRIES,
    make_root,
    read_dtype,
    read_layers,
    read_shape,
    read_tensor_list,
    tie,
)
from pgnas.description.trial import BATCH, MOST_ELEMENTS, Trial
from pgnas.description.values import decode

FORMAT = "pgnas.network/1"
MOST_CHARACTERS = 2**23
NODE_NAME = re.compile(r"(?!self$)[A-Za-z][A-Za-z0-9_]{0,99}")
_KEYWORD = re.compile(r"[a-z][a-z0-9_]{0,49}")

_PIECES = {"format", "input", "layers", "tensors", "nodes", "output"}


def parse(text: str) -> dict[str, Any]:
    """The JSON of a description.

    Raises:
        DescriptionError: It is too long, no JSON, or of another format.
    """
    part = "network description"
    if len(text) > MOST_CHARACTERS:
        raise DescriptionError(part, f"must have at most {MOST_CHARACTERS:,} characters", len(text))
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DescriptionError(part, "must be whole JSON", str(error)) from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise DescriptionError(part, f"must be of format {FORMAT}")
    if set(value) != _PIECES:
        raise DescriptionError(part, f"must hold {', '.join(sorted(_PIECES))}")
    return value


def build(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """The network of a description with the tensors of a file, in eval mode.

    Args:
        description: From :func:`parse`.
        tensors: Name to value; the network takes them as they are, without a copy.

    Raises:
        DescriptionError: It breaks a rule of the format, or the tensors are not those of the description.
    """
    listed = read_tensor_list(description["tensors"], tensors)
    layers = read_layers(description["layers"])
    root = make_root(layers, listed).eval()
    name, images = _input(description["input"])
    graph = _graph(description, name, layers, listed)
    Trial(root, graph).check(images)
    module = fx.GraphModule(root, graph, class_name="Network")
    for unread in sorted(set(listed) - set(module.state_dict())):
        raise DescriptionError(f"tensor {unread!r}", "must be read by the network")
    module.load_state_dict(dict(tensors), assign=True)
    tie(module, listed)
    return module.eval()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key that stands twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is no JSON")


def _input(value: Any) -> tuple[str, Tensor]:
    """The name of the input and images without numbers."""
    if not isinstance(value, dict) or set(value) != {"name", "shape", "dtype"}:
        raise DescriptionError("input", "must have a name, a shape and a dtype")
    shape, elements = read_shape(value["shape"], "input"), BATCH
    for size in shape:
        elements *= size
    if elements > MOST_ELEMENTS:
        raise DescriptionError("input", f"must have at most {MOST_ELEMENTS:,} elements on a batch of {BATCH}", shape)
    images = torch.empty((BATCH, *shape), dtype=read_dtype(value["dtype"], "input"), device="meta")
    return _node_name(value["name"], {}), images


def _node_name(value: Any, nodes: Mapping[str, fx.Node]) -> str:
    is_plain = isinstance(value, str) and NODE_NAME.fullmatch(value) and not keyword.iskeyword(value)
    if not is_plain or value in nodes:
        raise DescriptionError("node", "must have a plain name of its own", value)
    return str(value)


def _graph(
    description: Mapping[str, Any], name: str, layers: Mapping[str, nn.Module], listed: Mapping[str, Any]
) -> fx.Graph:
    """The nodes, each checked against the lists; names in the code that torch.fx writes are identifiers of ASCII."""
    graph, entries = fx.Graph(), description["nodes"]
    nodes = {name: graph.placeholder("images")}
    if not isinstance(entries, list) or len(entries) > MOST_ENTRIES:
        raise DescriptionError("nodes", f"must be a list of at most {MOST_ENTRIES:,}")
    targets: dict[str, tuple[str, Mapping[str, Any]]] = {
        "layer": ("call_module", {target: target for target in layers}),
        "tensor": ("get_attr", {target: target for target in listed}),
        "function": ("call_function", functions()),
        "method": ("call_method", {target: target for target in METHODS}),
    }
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) - {"args", "kwargs"} != {"name", "op", "target"}:
            raise DescriptionError("node", "must have a name, an op, a target and arguments", entry)
        label, op, target = _node_name(entry["name"], nodes), entry["op"], entry["target"]
        part = f"node {label!r}"
        if not isinstance(op, str) or not isinstance(target, str) or target not in targets.get(op, ("", {}))[1]:
            raise DescriptionError(part, "must name an operation, layer or tensor that is known", f"{op} {target}")
        args, kwargs = _arguments(entry, part, nodes)
        if target == "builtins.getattr" and (len(args) != 2 or args[1] not in ATTRIBUTES or kwargs):
            raise DescriptionError(part, f"must read one of {', '.join(sorted(ATTRIBUTES))}")
        nodes[label] = graph.create_node(targets[op][0], targets[op][1][target], args, kwargs, name=label)
    output = description["output"]
    if not isinstance(output, str) or output not in nodes:
        raise DescriptionError("output", "must be one of the nodes", output)
    graph.output(nodes[output])
    return graph


def _arguments(
    entry: Mapping[str, Any], part: str, nodes: Mapping[str, fx.Node]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = entry.get("args", []), entry.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise DescriptionError(part, "must have args in a list and kwargs in an object")
    for key, value in kwargs.items():
        is_plain = _KEYWORD.fullmatch(key) and not keyword.iskeyword(key)
        if not is_plain or (key in KEYWORDS_REFUSED and value is not False):
            raise DescriptionError(part, "must have keyword arguments that are allowed", key)
    return tuple(decode(args, part, nodes)), {key: decode(value, part, nodes) for key, value in kwargs.items()}
