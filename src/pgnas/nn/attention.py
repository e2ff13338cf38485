"""torch.nn's attention layers, written out: projections that can be cut, and products that work head by head."""

from __future__ import annotations

import inspect
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pgnas.nn.own_layers import own_layer

Record = Callable[[nn.Module, tuple[Tensor, ...]], fx.Graph]
"""Traces a module on example inputs; the nodes know their shapes."""


class WrittenOut(nn.Module):
    """Multi-head attention (Vaswani et al., NeurIPS 2017) with the weights of an ``nn.MultiheadAttention``.

    Args:
        layer: The layer. Its tensors are used, not copied, but for a joint projection of different values.
        joint: Whether query, key and value are the same value, projected by one layer.
    """

    def __init__(self, layer: nn.MultiheadAttention, *, joint: bool) -> None:
        super().__init__()
        self._size = layer.head_dim
        self._joint = joint
        if joint:
            self.in_proj = _linear(layer.in_proj_weight, layer.in_proj_bias)
        else:
            biases = (None,) * 3 if layer.in_proj_bias is None else _thirds(layer.in_proj_bias)
            apart = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
            weights = _thirds(layer.in_proj_weight) if layer._qkv_same_embed_dim else apart
            self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        if layer.dropout:
            self.drop = nn.Dropout(layer.dropout)
        self.out_proj = _linear(layer.out_proj.weight, layer.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attended values (B, N, E), of a query (B, N, E), keys (B, M, ...) and values (B, M, ...)."""
        if self._joint:
            projected = self.in_proj(query).chunk(3, -1)
        else:
            projected = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        q, k, v = (x.unflatten(-1, (-1, self._size)).transpose(1, 2) for x in projected)  # (B, heads, N, size)
        if hasattr(self, "drop"):
            weights = (q @ k.transpose(-2, -1) * self._size**-0.5).softmax(-1)
            mixed = self.drop(weights) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        attended: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return attended


def attention_to_layers(module: fx.GraphModule, record: Record) -> list[str]:
    """Replace the attention layers in the graph of ``module`` (it is ours) that can be; says what was done.

    Those stay that have masks, biases of keys and values, or the batch on the second axis, that are called more than
    once, or whose attention weights or own tensors are read.

    Args:
        module: The traced network.
        record: Traces what takes a layer's place.
    """
    calls = Counter(str(node.target) for node in module.graph.nodes if node.op == "call_module")
    names = Counter(id(tensor) for _, tensor in module.named_parameters(remove_duplicate=False))
    read = tuple(str(node.target) for node in module.graph.nodes if node.op == "get_attr")
    written = 0
    for node in list(module.graph.nodes):
        layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(layer, nn.MultiheadAttention) or calls[str(node.target)] > 1:
            continue
        inputs = _inputs(node, layer)
        if inputs is None or any(names[id(tensor)] > 1 for tensor in layer.parameters()):
            continue
        if any(target.startswith(f"{node.target}.") for target in read):
            continue
        joint = layer._qkv_same_embed_dim and inputs[0] is inputs[1] is inputs[2]
        _replace(module, node, WrittenOut(layer, joint=joint), inputs, record)
        written += 1
    if not written:
        return []
    return [f"{written} attention layers were written out: their projections are layers of their own"]


def _inputs(node: fx.Node, layer: nn.MultiheadAttention) -> list[fx.Node] | None:
    """Query, key and value of an attention layer that can be written out; None if it cannot."""
    if type(layer) is not nn.MultiheadAttention or own_layer(layer) is not None or "forward" in vars(layer):
        return None
    plain = layer.batch_first and layer.bias_k is None and layer.bias_v is None and not layer.add_zero_attn
    hooked = any(
        part._forward_hooks or part._forward_pre_hooks or hasattr(part, "parametrizations")
        for part in (layer, layer.out_proj)
    )
    given: dict[str, Any] = inspect.signature(layer.forward).bind(*node.args, **node.kwargs).arguments
    masks = [given.get(name) for name in ("key_padding_mask", "attn_mask")]
    inputs = [given[name] for name in ("query", "key", "value")]
    if not plain or hooked or any(mask is not None for mask in masks):
        return None
    if not all(isinstance(x, fx.Node) and len(x.meta.get("shape") or ()) == 3 for x in inputs):
        return None
    return inputs if all(_takes_first(user) or not user.users for user in node.users) else None


def _takes_first(node: fx.Node) -> bool:
    return node.target is operator.getitem and node.args[1:] == (0,)


def _replace(
    module: fx.GraphModule, node: fx.Node, attention: WrittenOut, inputs: list[fx.Node], record: Record
) -> None:
    """Put the graph of ``attention`` in the place of a layer."""
    name, weight = str(node.target), attention.out_proj.weight
    examples = tuple(weight.new_zeros(x.meta["shape"]) for x in inputs)
    waiting, copies = list(inputs), dict[fx.Node, fx.Node]()
    made: fx.Node | None = None
    with module.graph.inserting_before(node):
        for inner in record(attention, examples).nodes:
            if inner.op == "placeholder":
                copies[inner] = waiting.pop(0)
            elif inner.op == "output":
                made = copies[inner.args[0]]
            else:
                copies[inner] = module.graph.node_copy(inner, copies.__getitem__)
                if inner.op == "call_module":
                    copies[inner].target = f"{name}.{inner.target}"
    assert made is not None
    for user in list(node.users):
        if _takes_first(user):
            user.replace_all_uses_with(made)
        module.graph.erase_node(user)
    module.graph.erase_node(node)
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, attention)


def _thirds(parameter: nn.Parameter) -> tuple[nn.Parameter, ...]:
    """Copies of the parts of a joint projection."""
    return tuple(nn.Parameter(part.clone(), parameter.requires_grad) for part in parameter.detach().chunk(3))


def _linear(weight: Any, bias: Any) -> nn.Linear:
    """A linear layer with these parameters; there may be no bias."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer
