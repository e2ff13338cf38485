"""Passes over a freshly traced graph: what tracing on one batch in eval mode fixed is made to vary again."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from pgnas.nn.concrete_tracer import DROPOUTS


def functional_dropout_to_modules(module: fx.GraphModule) -> list[str]:
    """``F.dropout(x, p, training=self.training)`` was traced with training off; make it follow the mode again."""
    notes = []
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target not in DROPOUTS:
            continue
        p = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
        if not isinstance(p, float | int):
            continue
        name = f"functional_{node.name}"
        module.add_submodule(name, DROPOUTS[node.target](p=float(p)))
        with module.graph.inserting_after(node):
            layer = module.graph.call_module(name, (node.args[0] if node.args else node.kwargs["input"],))
        layer.meta.update(node.meta)
        node.replace_all_uses_with(layer)
        module.graph.erase_node(node)
        notes.append(f"functional dropout '{node.name}' became the layer '{name}'")
    return notes


def sizes_one_by_one(graph: fx.Graph) -> None:
    """Every number picked of a shape, however it was picked, becomes ``x.size(axis)``: each has a source of its own."""
    for node in list(graph.nodes):
        axes = _axes_of_shape(node)
        if axes is None or not isinstance(axes, int):
            continue
        source = _measured(node)
        if source.op == "get_attr" and "number" in node.meta:  # of a parameter: the same whatever comes in
            _write_down(node, node.meta["number"])
            continue
        with graph.inserting_before(node):
            size = graph.call_method("size", (source, axes))
        size.meta.update(node.meta)
        node.replace_all_uses_with(size)
        graph.erase_node(node)
    drop_unused(graph)


def _write_down(node: fx.Node, number: int) -> None:
    """Let the users of a node have a number instead."""
    for user in list(node.users):
        user.args = map_arg(user.args, lambda n: number if n is node else n)
        user.kwargs = map_arg(user.kwargs, lambda n: number if n is node else n)


def _axes_of_shape(node: Any) -> tuple[int, ...] | int | None:
    """The axis or axes whose sizes a node's value is; None if it is something else."""
    if not isinstance(node, fx.Node):
        return None
    if _is_shape(node):
        shape = node.args[0].meta.get("shape") if isinstance(node.args[0], fx.Node) else None
        return None if shape is None else tuple(range(len(shape)))
    if node.target is not operator.getitem or not isinstance(node.args[1], int | slice):
        return None
    outer, index = _axes_of_shape(node.args[0]), node.args[1]
    bounds = (index.start, index.stop, index.step) if isinstance(index, slice) else ()
    if not isinstance(outer, tuple) or any(isinstance(bound, fx.Node) for bound in bounds):
        return None
    return outer[index]


def _measured(node: fx.Node) -> fx.Node:
    """The tensor that a picked size is of."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source if _is_shape(node) else _measured(source)


def batch_size_from_input(graph: fx.Graph, of_more: Mapping[str, tuple[int, ...]]) -> None:
    """Read the batch size from the first input wherever it is read, so that no inner value is kept for its shape.

    Args:
        graph: The graph.
        of_more: The shapes of its values in a larger batch, as far as they are known: what stays as long as the batch
            is now is no batch.
    """
    placeholder = next(node for node in graph.nodes if node.op == "placeholder")
    batch = placeholder.meta["shape"][0] if placeholder.meta["shape"] else None
    for node in list(graph.nodes):
        reads_size = node.op == "call_method" and node.target == "size" and node.args[1:] == (0,)
        if not reads_size or node.meta.get("number") != batch or node.args[0] is placeholder:
            continue
        source = node.args[0]
        if isinstance(source, fx.Node) and (source.op == "get_attr" or of_more.get(source.name, (None,))[0] == batch):
            continue  # a parameter, say, or a stack of as many values as the example has images
        first = next(n for n in graph.nodes if n.op != "placeholder")
        with graph.inserting_before(first):
            size = graph.call_method("size", (placeholder, 0))
        size.meta.update(node.meta)
        node.replace_all_uses_with(size)
        graph.erase_node(node)


def _is_shape(node: Any) -> bool:
    if not isinstance(node, fx.Node):
        return False
    by_attribute = node.op == "call_function" and node.target is getattr and node.args[1] == "shape"
    return bool(by_attribute) or (node.op == "call_method" and node.target == "size" and len(node.args) == 1)


def drop_unused(graph: fx.Graph) -> None:
    """Remove what nothing reads, the checks on fixed arguments and their inputs included."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch._assert:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node in placeholders:
        if not node.users and node.meta["shape"] is None:
            graph.erase_node(node)


def free_name(wanted: str, is_taken: Callable[[str], bool]) -> str:
    """The name wanted, or the first of it with a number behind that is not taken."""
    names = itertools.chain([wanted], map(f"{wanted}_{{}}".format, itertools.count(1)))
    return next(name for name in names if not is_taken(name))
