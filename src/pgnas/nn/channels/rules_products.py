"""Rules of matrix products that work head by head: attention."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from pgnas.nn.channels.graph import ChannelGraph
from pgnas.nn.channels.ops import ChannelOp, Value, rule, spread

if TYPE_CHECKING:
    from pgnas.nn.rebuild import Builder

PRODUCTS = (F.scaled_dot_product_attention, torch.matmul, operator.matmul, "matmul")


@dataclass(frozen=True)
class HeadByHead(ChannelOp):
    """A product of matrices for each head alone, whose axis is the channels'; a mask is the same for all heads.

    Attributes:
        by_head: Which of the inputs have the heads.
    """

    by_head: tuple[bool, ...]

    def push(self, rows: list[Tensor]) -> Tensor:
        """A head depends on what any of its operands depends on."""
        heads = self.value.channels
        both = zip(rows, self.by_head, strict=True)
        return torch.stack([row if own else spread(row, heads) for row, own in both]).amax(0)

    def pull(self, rows: Tensor) -> list[Tensor]:
        """All operands of a head are read."""
        both = zip(self.values, self.by_head, strict=True)
        return [rows if own else spread(rows, value.channels) for value, own in both]

    def build(self, builder: Builder, kept: Tensor, reads: list[Tensor]) -> fx.Node:
        """Copy the operation."""
        return builder.copy(self, reads)


@rule(*PRODUCTS)
def product(node: fx.Node, graph: ChannelGraph) -> ChannelOp | str:
    """Products of matrices (..., heads, N, M), by one function or written out."""
    shape = graph.shape(node)
    operands = [n for n in graph.tensor_inputs(node) if graph.shape(n) is not None]
    if shape is None or len(operands) != len(graph.tensor_inputs(node)):
        return "its operands could not be followed"
    values = [graph.value(n) for n in operands]
    axes = {value.axis for value in values if value.axis is not None and value.channels > 1}
    masked = {node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")} if _is_fused(node) else set()
    own = [n for n in operands if n not in masked]
    axis = graph.value(own[0]).axis
    heads = [graph.value(n) for n in own]
    if axis is None or not 0 < axis == len(shape) - 3 or any(h != Value(axis, shape[axis]) for h in heads):
        return "its operands do not keep their channels on an axis of heads" if axes else ""
    for n in own:
        if len(graph.shape(n) or ()) != len(shape):
            return "its operands have different axes"
    for n in operands:
        if n in masked and (graph.shape(n) or ())[-3:-2] not in ((), (1,)):
            return "its mask has heads of its own"
    by_head = tuple(n not in masked for n in operands)
    names = tuple(n.name for n in operands)
    return HeadByHead(node.name, names, tuple(values), Value(axis, shape[axis]), by_head=by_head)


def _is_fused(node: fx.Node) -> bool:
    return node.target is F.scaled_dot_product_attention


def _has_tensors(node: fx.Node) -> bool:
    """Whether a node calls a layer that has parameters."""
    owner = node.graph.owning_module
    if node.op != "call_module" or owner is None:
        return False
    return any(True for _ in owner.get_submodule(str(node.target)).parameters())


def leads_to_product(node: fx.Node, steps: int = 16) -> bool:
    """Whether a value soon is an operand of a product, with no layer between that has parameters."""
    seen, front = {node}, [node]
    for _ in range(steps):
        front = [user for one in front for user in one.users if user not in seen and not _has_tensors(user)]
        if any(user.target in PRODUCTS for user in front):
            return True
        seen.update(front)
    return False
