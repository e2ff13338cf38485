"""Which output channels of a layer depend on which input channels: as measured, and as its rules say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pgnas.nn.channels import Barrier, ChannelGraph

_DRAWS = 4  # a pooling or a threshold may hide a dependence from one draw


@torch.no_grad()
def measured_dependence(
    layer: nn.Module, examples: Sequence[Tensor], axes: Sequence[int], made_axis: int, generator: torch.Generator
) -> Tensor:
    """Whether each output channel changes when each input channel does: bool (outputs, inputs), all inputs in a row."""
    columns = []
    for place, axis in enumerate(axes):
        for channel in range(examples[place].shape[axis]):
            changed = torch.zeros(0)
            for _ in range(_DRAWS):
                base = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in examples]
                other = [x.clone() for x in base]
                noise = torch.randn(other[place].shape, generator=generator, dtype=other[place].dtype)
                other[place].select(axis, channel).copy_(noise.select(axis, channel))
                before, after = layer(*base), layer(*other)
                moved = (after - before).abs().movedim(made_axis, 0).flatten(1).amax(1)
                tolerance = 1e-9 * max(1.0, float(before.abs().max()))
                changed = (moved > tolerance) if not len(changed) else changed | (moved > tolerance)
            columns.append(changed)
    return torch.stack(columns, 1)


def pushed_dependence(graph: ChannelGraph, inputs: Sequence[str], output: str) -> Tensor:
    """What the rules' ``push`` says of the same: bool (outputs, inputs)."""
    widths = [graph.value(name).channels for name in inputs]
    rows: dict[str, Tensor] = {}
    for name, block in zip(inputs, torch.split(torch.eye(sum(widths), dtype=torch.long), widths), strict=True):
        rows[name] = block
    for name, op in graph.ops.items():
        if name not in rows and any(source in rows for source in op.inputs):
            read = [
                rows.get(source, torch.zeros(value.channels, sum(widths), dtype=torch.long))
                for source, value in zip(op.inputs, op.values, strict=True)
            ]
            is_barrier = isinstance(op, Barrier)
            rows[name] = torch.ones(op.value.channels, sum(widths)).long() if is_barrier else op.push(read)
    return rows[output] > 0


def pulled_dependence(graph: ChannelGraph, inputs: Sequence[str], output: str) -> Tensor:
    """What the rules' ``pull`` says of the same: bool (outputs, inputs)."""
    outputs = graph.value(output).channels
    rows = {output: torch.eye(outputs, dtype=torch.long)}
    for name in reversed(graph.ops):
        if name not in rows or name in inputs:
            continue
        op = graph.ops[name]
        for source, read in zip(op.inputs, op.pull(rows[name]), strict=True):
            rows[source] = torch.maximum(rows[source], read) if source in rows else read
    nothing = [torch.zeros(graph.value(name).channels, outputs, dtype=torch.long) for name in inputs]
    return torch.cat([rows.get(name, none) for name, none in zip(inputs, nothing, strict=True)]).T > 0


@torch.no_grad()
def is_affine(layer: nn.Module, examples: Sequence[Tensor], generator: torch.Generator) -> bool:
    """Whether f(a + b) + f(0) = f(a) + f(b) on random a and b."""
    a, b = ([torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in examples] for _ in "ab")
    both, none = [x + y for x, y in zip(a, b, strict=True)], [torch.zeros_like(x) for x in a]
    return torch.allclose(layer(*both) + layer(*none), layer(*a) + layer(*b), rtol=1e-8, atol=1e-8)
