"""Rewrite in-place operations of a traced graph as ordinary ones.

Gates and channel selections put new values between layers; an in-place operation that relied on two names meaning the
same memory would silently compute something else. After this pass no operation changes its input.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import fx

_OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def functionalize(module: fx.GraphModule) -> None:
    """Rewrite the graph of ``module`` in place (it is ours); layers with ``inplace`` set have it cleared."""
    order = {node: position for position, node in enumerate(module.graph.nodes)}
    in_place = [node for node in module.graph.nodes if _is_in_place(module, node)]  # a layer may be called twice
    for node in in_place:
        changed = node.args[0] if node.args else None
        if not isinstance(changed, fx.Node) or changed.op == "get_attr":  # state that outlasts a pass stays as it is
            continue
        # Whoever reads the value after it was changed reads the changed one.
        for user in list(changed.users):
            if order.get(user, -1) > order[node]:
                user.replace_input_with(changed, node)
        _make_ordinary(module, node)


def _is_in_place(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__") and name not in ("requires_grad_", "detach_")
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        named = name.endswith("_") and not name.endswith("__") and hasattr(torch.Tensor, name)
        return node.target in _OPERATORS or _in_place_argument(node) is not None or named
    return False


def _in_place_argument(node: fx.Node) -> int | str | None:
    """Where a call says ``inplace=True``: the position or the keyword."""
    if node.kwargs.get("inplace", False):
        return "inplace"
    try:
        names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a builtin without a signature
        return None
    position = names.index("inplace") if "inplace" in names else len(node.args)
    return position if position < len(node.args) and node.args[position] else None


def _make_ordinary(module: fx.GraphModule, node: fx.Node) -> None:
    if node.op == "call_module":
        layer: Any = module.get_submodule(str(node.target))
        layer.inplace = False
    elif node.op == "call_method":
        node.target = str(node.target).removesuffix("_")
    elif node.target in _OPERATORS:
        node.target = _OPERATORS[node.target]
    elif (place := _in_place_argument(node)) is not None:
        if isinstance(place, int):
            node.args = (*node.args[:place], False, *node.args[place + 1 :])
        else:
            node.kwargs = {**node.kwargs, place: False}
    else:
        name = getattr(node.target, "__name__", "").removesuffix("_")
        node.target = getattr(torch, name, None) or getattr(torch.nn.functional, name)
