"""Passes over a freshly traced graph: what tracing on one batch in eval mode fixed is made to vary again."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn


def functional_dropout_to_modules(module: fx.GraphModule) -> list[str]:
    """``F.dropout(x, p, training=self.training)`` was traced with training off; make it follow the mode again."""
    kinds: dict[Any, type[nn.Module]] = {
        nn.functional.dropout: nn.Dropout,
        nn.functional.dropout1d: nn.Dropout1d,
        nn.functional.dropout2d: nn.Dropout2d,
        nn.functional.dropout3d: nn.Dropout3d,
    }
    notes = []
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target not in kinds:
            continue
        p = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
        if not isinstance(p, float | int):
            continue
        name = f"functional_{node.name}"
        module.add_submodule(name, kinds[node.target](p=float(p)))
        with module.graph.inserting_after(node):
            layer = module.graph.call_module(name, (node.args[0] if node.args else node.kwargs["input"],))
        layer.meta.update(node.meta)
        node.replace_all_uses_with(layer)
        module.graph.erase_node(node)
        notes.append(f"functional dropout '{node.name}' became the layer '{name}'")
    return notes


def batch_size_from_input(graph: fx.Graph, values: dict[str, Any]) -> None:
    """Read the batch size from the first input wherever it is read, so that no inner value is kept for its shape."""
    placeholder = next(node for node in graph.nodes if node.op == "placeholder")
    batch = placeholder.meta["shape"][0] if placeholder.meta["shape"] else None
    for node in list(graph.nodes):
        reads_size = node.op == "call_method" and node.target == "size" and node.args[1:] == (0,)
        is_item = node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem"
        reads_item = is_item and node.args[1] == 0 and _is_shape(node.args[0])
        if not (reads_size or reads_item) or values.get(node.name) != batch:
            continue
        if reads_size and node.args[0] is placeholder:
            continue
        first = next(n for n in graph.nodes if n.op != "placeholder")
        with graph.inserting_before(first):
            size = graph.call_method("size", (placeholder, 0))
        size.meta.update(node.meta)
        node.replace_all_uses_with(size)
        graph.erase_node(node)


def _is_shape(node: Any) -> bool:
    if not isinstance(node, fx.Node):
        return False
    source = node.args[0] if node.args else None
    if isinstance(source, fx.Node) and source.op == "get_attr":
        return False  # the shape of a parameter, which does not follow the batch
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
