"""Run a network of unknown origin without memory: every value is a shape, and every shape is bounded.

The run is on torch's meta device, whose tensors have a shape and no numbers. It finds, before anything is allocated,
operations that do not fit together, results of absurd sizes and Python values that grow without end.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from pgnas.description.errors import DescriptionError
from pgnas.description.operations import SPLITTING, functions

BATCH = 2
MOST_ELEMENTS = 2**29
"""Of one value on a batch of two: 2 GB in float32."""
_MOST_PARTS = 2**16
_MOST_PARTS_IN_ALL = 2**20
_LARGEST = 2**63
_LARGEST_EXPONENT = 64

_OPERATORS = frozenset(function for name, function in functions().items() if name.startswith("operator."))
_SPLITTING = frozenset(function for name, function in functions().items() if name.rpartition(".")[2] in SPLITTING)
_SCALARS = (bool, int, float, type(None), torch.dtype, torch.device, torch.memory_format, slice, range, type(...))


class Trial(fx.Interpreter):
    """Runs a graph on inputs without numbers.

    Args:
        root: Owner of the layers and tensors, all on the meta device.
        graph: The graph.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, graph=graph)
        self.extra_traceback = False
        self._parts_left = _MOST_PARTS_IN_ALL

    @torch.no_grad()
    def check(self, images: Tensor) -> Tensor:
        """The output for images on the meta device.

        Raises:
            DescriptionError: An operation refuses its inputs, or a value gets too large.
        """
        with torch.device("meta"):
            output = self.run(images, enable_io_processing=False)
        if not isinstance(output, Tensor):
            raise DescriptionError("output", "must be one tensor", type(output).__name__)
        return output

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and look at what it gives."""
        part = f"node {n.name!r}"
        try:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            self._require_harmless(n, part, args, kwargs)
            value = getattr(self, n.op)(n.target, args, kwargs)
        except DescriptionError:
            raise
        except Exception as error:  # operations refuse what they are given in any way
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise DescriptionError(part, "must be able to compute", lines[0]) from error
        self._require_small(value, part)
        return value

    def _require_harmless(self, n: fx.Node, part: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What must be known before the operation is done."""
        if n.op == "call_method" and not (args and isinstance(args[0], Tensor | torch.Size)):
            raise DescriptionError(part, "must call methods of tensors only")
        if n.target in _OPERATORS:
            self._require_arithmetic(n.target, part, [*args, *kwargs.values()])
        if n.target in _SPLITTING or (n.op == "call_method" and n.target in SPLITTING):
            longest = max((size for x in args if isinstance(x, Tensor) for size in x.shape), default=0)
            if longest > min(_MOST_PARTS, self._parts_left):
                raise DescriptionError(part, "must not split a value into that many parts", longest)

    def _require_arithmetic(self, function: Any, part: str, args: list[Any]) -> None:
        """Python's operators would multiply texts and lists, and compute powers of any size."""
        sequences = [x for x in args if isinstance(x, str | list | tuple | range)]
        if any(isinstance(x, str) for x in args) or (sequences and function is operator.mul):
            raise DescriptionError(part, "must compute with numbers and tensors")
        is_large = any(isinstance(x, int) and abs(x) > _LARGEST_EXPONENT for x in args[1:])
        if function is operator.pow and is_large:
            raise DescriptionError(part, f"must have exponents of at most {_LARGEST_EXPONENT}")

    def _require_small(self, value: Any, part: str, depth: int = 0) -> None:
        if isinstance(value, Tensor):
            if value.device.type != "meta":
                raise DescriptionError(part, "must not make tensors on a device of its own", value.device)
            if value.numel() > MOST_ELEMENTS:
                raise DescriptionError(part, f"must have at most {MOST_ELEMENTS:,} elements", tuple(value.shape))
        elif isinstance(value, tuple | list):
            self._parts_left -= len(value)
            if depth > 2 or len(value) > _MOST_PARTS or self._parts_left < 0:
                raise DescriptionError(part, "must not have that many parts", len(value))
            for item in value:
                self._require_small(item, part, depth + 1)
        elif not isinstance(value, _SCALARS):
            raise DescriptionError(part, "must be a tensor or a number", type(value).__name__)
        elif isinstance(value, int) and abs(value) >= _LARGEST:
            raise DescriptionError(part, "must be a number of 64 bits")
