"""Operations to choose from, marked in an ordinary network: one of several, or any of several.

A choice is a plain module that sums what its operations make of one input, and trains as such. In a supernet each
operation's output has a gate, and in an extracted network only what was chosen is left, without a trace of the choice.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from pgnas.errors import ModelError

GATES = "output_gates"
"""Name of a choice's child that marks its operations' outputs."""


class OutputGate(nn.Module):
    """Marks an operation's output in the traced graph; it hands it on.

    Attributes:
        exclusive: Whether exactly one of the options is open.
        options: Names of all options.
        index: The place of this operation among them.
    """

    def __init__(self, options: tuple[str, ...], index: int, *, exclusive: bool) -> None:
        super().__init__()
        self.exclusive, self.options, self.index = exclusive, options, index

    def forward(self, x: Tensor) -> Tensor:
        """Its argument."""
        return x


class _Choice(nn.Module):
    """A sum of operations on one input, each of which a search may drop.

    Args:
        operations: The operations by name, or in a sequence (then named by their place). They become children of those
            names. Their outputs have one shape, with the batch first.
    """

    exclusive: ClassVar[bool]

    def __init__(self, operations: Mapping[str, nn.Module | None] | Sequence[nn.Module | None]) -> None:
        super().__init__()
        named = operations if isinstance(operations, Mapping) else {str(k): op for k, op in enumerate(operations)}
        _check(type(self).__name__, named, exclusive=self.exclusive)
        self.options = tuple(named)
        gates = nn.ModuleDict()
        for index, (name, module) in enumerate(named.items()):
            if module is not None:
                self.add_module(name, module)
                gates[name] = OutputGate(self.options, index, exclusive=self.exclusive)
        self.add_module(GATES, gates)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the operations' outputs."""
        gates = self.get_submodule(GATES)
        outputs: list[Tensor] = [gate(self.get_submodule(name)(x)) for name, gate in gates.named_children()]
        return functools.reduce(operator.add, outputs)


class OneOf(_Choice):
    """One of these operations, to be chosen by the search: a categorical gate.

    ``None`` among the operations stands for nothing at all, a sum of no operation::

        edge = pgnas.OneOf({"none": None, "skip": nn.Identity(), "conv": nn.Conv2d(16, 16, 3, padding=1)})

    Args:
        operations: The operations by name, or in a sequence (then named by their place). They become children of those
            names. Their outputs have one shape, with the batch first.
    """

    exclusive = True


class AnyOf(_Choice):
    """Any of these operations, each kept or dropped by itself: a Bernoulli gate at each one's output.

    Args:
        operations: As of :class:`OneOf`, without ``None``; one alone is a branch that may be dropped.
    """

    exclusive = False


def _check(kind: str, operations: Mapping[str, nn.Module | None], *, exclusive: bool) -> None:
    least = 2 if exclusive else 1
    if len(operations) < least or not any(isinstance(m, nn.Module) for m in operations.values()):
        rule = f"must have at least {least} operations, one of them a module"
        raise ModelError(kind, rule, value=list(operations), remedy="pass operations by name")
    for name, module in operations.items():
        if not (isinstance(module, nn.Module) or (module is None and exclusive)):
            wanted = "a module, or None for nothing" if exclusive else "a module"
            raise ModelError(f"{kind} '{name}'", f"must be {wanted}", value=type(module).__name__, remedy="pass one")
        if not name or "." in name or name == GATES or hasattr(nn.Module, name):
            remedy = "use a word such as conv3x3"
            raise ModelError(
                f"{kind} operation", "must have a name for a child module", value=repr(name), remedy=remedy
            )
