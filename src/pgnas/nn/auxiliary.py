"""Auxiliary heads: further outputs that a network has in training alone, as GoogLeNet and Inception v3 have them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn


class Headed(nn.Module):
    """A network that has auxiliary heads in training: all its outputs there, in evaluation the main one.

    Args:
        network: Gives all outputs in either mode.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs of the mode."""
        outputs = self.network(*inputs)
        return outputs if self.training else outputs[0]


def answers_more(graph: fx.Graph) -> bool:
    """Whether a graph's output is a tuple of a main value and at least one more."""
    return len(_outputs(graph)) > 1


def same_main(graph: fx.Graph, evaluated: fx.Graph) -> bool:
    """Whether the first output of ``graph`` comes of the operations of ``evaluated``, in the same order."""
    if not _outputs(evaluated):
        return False
    return _operations(_main_only(graph)) == _operations(_main_only(evaluated))


def without_heads(module: fx.GraphModule) -> fx.GraphModule:
    """A network's main output alone: nodes keep their names, layers are shared."""
    return fx.GraphModule(module, _main_only(module.graph), class_name=type(module).__name__)


def _main_only(graph: fx.Graph) -> fx.Graph:
    main = _outputs(graph)[0]
    needed, made, copies = {main}, fx.Graph(), dict[fx.Node, fx.Node]()
    for node in reversed(graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    for node in graph.nodes:
        if node in needed or node.op == "placeholder":
            copies[node] = made.node_copy(node, copies.__getitem__)
    made.output(copies[main])
    return made


def _outputs(graph: fx.Graph) -> list[fx.Node]:
    """The nodes whose values are put out, in order, the main one first; empty if it is no value of the graph."""
    found = next(iter(reversed(graph.nodes))).args[0]
    if isinstance(found, fx.Node) and hasattr(found.target, "_fields"):  # the call of a named tuple's class
        found = (*found.args, *found.kwargs.values())
    parts = found if isinstance(found, tuple) else (found,)
    return [part for part in parts if isinstance(part, fx.Node)] if parts and isinstance(parts[0], fx.Node) else []


def _operations(graph: fx.Graph) -> list[tuple[str, str]]:
    return [(node.op, str(node.target)) for node in graph.nodes]
