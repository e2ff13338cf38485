"""A traced network as layers of torch.nn and operations of torch alone."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from pgnas.description.layers import is_torch_layer, passes_on
from pgnas.nn.functionalize import functionalize


def opened(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of ``module`` in which foreign layers are replaced by their operations, where these can be followed.

    The tensors that the operations of a foreign layer read become buffers of the copy, so that its state is whole.
    A layer whose operations cannot be followed stays.
    """
    layers = [module.get_submodule(str(node.target)) for node in module.graph.nodes if node.op == "call_module"]
    module = copy.deepcopy(module)
    if all(map(_stays, layers)):
        return module
    try:
        found = fx.GraphModule(module, _Opener(module).trace(module), class_name=type(module).__name__)
    except Exception:  # tracing runs foreign code, which may do anything; the layer is named when it is written
        return module
    for node in list(found.graph.nodes):
        if node.target is torch._assert:
            found.graph.erase_node(node)
    functionalize(found)
    found.graph.eliminate_dead_code()
    found.recompile()
    _keep_constants(found)
    return found.train(module.training)


class _Opener(fx.Tracer):
    """Traces into layers that are not torch.nn's, so that they become the operations they consist of.

    Args:
        module: The network that will be traced.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # Asked before the trace: whether a layer passes its input on is found by running it.
        self._kept = {id(layer) for layer in module.modules() if _stays(layer)}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Layers that stay as they are."""
        return id(m) in self._kept


def _stays(layer: nn.Module) -> bool:
    return is_torch_layer(layer) or passes_on(layer)


def _keep_constants(module: fx.GraphModule) -> None:
    """Make the plain tensors that the graph reads part of the state."""
    state = module.state_dict()
    for node in module.graph.nodes:
        target = str(node.target)
        if node.op == "get_attr" and target not in state:
            owner_name, _, leaf = target.rpartition(".")
            owner = module.get_submodule(owner_name)
            value = getattr(owner, leaf)
            if isinstance(value, Tensor):
                delattr(owner, leaf)
                owner.register_buffer(leaf, value)
