"""The forward pass of a graph module as Python statements."""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from pgnas.errors import ModelError
from pgnas.stages.source_layers import literal

_INFIX: dict[Any, str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.truediv: "/",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.pow: "**",
    operator.matmul: "@",
    operator.eq: "==",
    operator.ne: "!=",
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.and_: "&",
    operator.or_: "|",
}
_PREFIX: dict[Any, str] = {operator.neg: "-", operator.invert: "~", operator.pos: "+"}
_NAMESPACES: tuple[tuple[str, Any], ...] = (
    ("torch.", torch),
    ("F.", F),
    ("math.", math),
    ("", builtins),
    ("torch.special.", torch.special),
    ("torch.linalg.", torch.linalg),
    ("torch.fft.", torch.fft),
)
_SHAPE_METHODS = ("size", "dim", "numel")
_SHAPE_ATTRIBUTES = ("shape", "ndim", "device", "dtype")
_WIDTH = 100
_REMEDY = "use the .pt2 or .onnx file"


def attribute_path(target: str) -> str:
    """How source refers to a layer or tensor: ``layer1.0.conv1`` is ``self.layer1[0].conv1``."""
    first, *parts = target.split(".")
    path = f"self.{first}" if first.isidentifier() else f"self.get_submodule({literal(first)})"
    for part in parts:
        is_number = part.isdecimal() and str(int(part)) == part
        path += f"[{part}]" if is_number else f".{part}" if part.isidentifier() else f"[{literal(part)}]"
    return path


class ForwardWriter:
    """Writes the statements of a graph, reusing a variable once its value is dead, as a person would.

    Args:
        graph: The graph; its first input is called ``images``.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._nodes = list(graph.nodes)
        self._inline = self._find_inline()
        self._last_use = self._find_last_uses()
        self._variable: dict[fx.Node, str] = {}
        self._free: list[str] = []
        self._made = 0

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs."""
        names = [str(node.target) for node in self._nodes if node.op == "placeholder"]
        return ["images", *(f"input_{index}" for index in range(1, len(names)))]

    def statements(self) -> Iterator[str]:
        """The statements in order; an empty one between blocks of layers."""
        inputs = iter(self.inputs)
        block: str | None = None
        for position, node in enumerate(self._nodes):
            if node.op == "placeholder":
                self._variable[node] = next(inputs)
            elif node.op == "output":
                yield f"return {self._argument(node.args[0])}"
            elif node not in self._inline:
                now = _block(str(node.target)) if node.op == "call_module" else block
                if block is not None and now != block:
                    yield ""
                block = now
                expression = self._expression(node)
                yield f"{self._assign(node, position)} = {expression}"

    def _find_inline(self) -> set[fx.Node]:
        """Tensors of the module, and what only asks for shapes: cheap, and clearer where it is used."""
        inline: set[fx.Node] = set()
        for node in self._nodes:
            about_shape = (node.op == "call_method" and node.target in _SHAPE_METHODS) or (
                node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES
            )
            of_shapes = node.op == "call_function" and (node.target in _INFIX or node.target is operator.getitem)
            of_shapes = of_shapes and all(read in inline and read.op != "get_attr" for read in node.all_input_nodes)
            if node.op == "get_attr" or about_shape or of_shapes:
                inline.add(node)
        return inline

    def _find_last_uses(self) -> dict[fx.Node, int]:
        """The last statement that reads each value, through inlined expressions too."""
        last: dict[fx.Node, int] = {}

        def read(node: fx.Node, position: int) -> None:
            for source in node.all_input_nodes:
                last[source] = position
                if source in self._inline:
                    read(source, position)

        for position, node in enumerate(self._nodes):
            if node not in self._inline:
                read(node, position)
        return last

    def _assign(self, node: fx.Node, position: int) -> str:
        """The variable of a node: that of a value which dies here, or a new one."""
        for dead in [n for n in self._variable if n.op != "placeholder" and self._last_use.get(n, -1) <= position]:
            self._free.append(self._variable.pop(dead))
        if self._free:
            self._free.sort(key=lambda name: (len(name), name), reverse=True)
            name = self._free.pop()
        else:
            name = f"x{self._made or ''}"
            self._made += 1
        self._variable[node] = name
        return name

    def _expression(self, node: fx.Node) -> str:
        if node.op == "get_attr":
            return attribute_path(str(node.target))
        if node.op == "call_module":
            return _call(attribute_path(str(node.target)), self._arguments(node.args, node.kwargs))
        if node.op == "call_method":
            owner = self._argument(node.args[0], tight=True)
            return _call(f"{owner}.{node.target}", self._arguments(node.args[1:], node.kwargs))
        return self._function(node)

    def _function(self, node: fx.Node) -> str:
        target, args = node.target, node.args
        if target in _INFIX and len(args) == 2 and not node.kwargs:
            return f"{self._argument(args[0], tight=True)} {_INFIX[target]} {self._argument(args[1], tight=True)}"
        if target in _PREFIX:
            return f"{_PREFIX[target]}{self._argument(args[0], tight=True)}"
        if target is operator.getitem:
            return f"{self._argument(args[0], tight=True)}[{self._index(args[1])}]"
        if target is getattr and len(args) == 2:
            return f"{self._argument(args[0], tight=True)}.{args[1]}"
        return _call(_function_name(node), self._arguments(args, node.kwargs))

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
        return [*map(self._argument, args), *(f"{key}={self._argument(value)}" for key, value in kwargs.items())]

    def _argument(self, value: Any, *, tight: bool = False) -> str:
        """A value as source; ``tight`` puts expressions that an operator could tear apart in parentheses."""
        if isinstance(value, fx.Node):
            text = self._expression(value) if value in self._inline else self._variable[value]
            is_sum = value in self._inline and (value.target in _INFIX or value.target in _PREFIX)
            return f"({text})" if tight and is_sum else text
        if isinstance(value, tuple):
            return f"({', '.join(map(self._argument, value))}{',' if len(value) == 1 else ''})"
        if isinstance(value, list):
            return f"[{', '.join(map(self._argument, value))}]"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{literal(key)}: {self._argument(item)}" for key, item in value.items()) + "}"
        if isinstance(value, slice):
            return f"slice({', '.join(map(self._argument, (value.start, value.stop, value.step)))})"
        try:
            text = literal(value)
        except TypeError as error:
            raise ModelError(
                "forward pass", "must use plain constants to be written as source", value=str(error), remedy=_REMEDY
            ) from error
        return f"({text})" if tight and text.startswith("-") else text

    def _index(self, value: Any) -> str:
        if isinstance(value, tuple) and value:
            return ", ".join(map(self._index, value)) + ("," if len(value) == 1 else "")
        if isinstance(value, slice):
            start, stop, step = ("" if v is None else self._argument(v) for v in (value.start, value.stop, value.step))
            return f"{start}:{stop}" + (f":{step}" if step else "")
        return self._argument(value)


def _call(function: str, arguments: list[str]) -> str:
    """A call on one line or, if that gets long, with a line for each argument."""
    line = f"{function}({', '.join(arguments)})"
    if len(line) <= _WIDTH:
        return line
    return f"{function}(\n" + "".join(f"            {argument},\n" for argument in arguments) + "        )"


def _function_name(node: fx.Node) -> str:
    """The public name of a function, checked to be that very function."""
    name = str(getattr(node.target, "__name__", ""))
    for prefix, namespace in _NAMESPACES:
        if name and getattr(namespace, name, None) is node.target:
            return prefix + name
    for prefix, namespace in _NAMESPACES:  # some functions do not know their public name
        for public, value in vars(namespace).items():
            if value is node.target and not public.startswith("_"):
                return f"{prefix}{public}"
    raise ModelError(
        f"operation '{node.name}'",
        "must be a function of torch to be written as source",
        value=f"{getattr(node.target, '__module__', '')}.{name or node.target}",
        remedy=_REMEDY,
    )


def _block(target: str) -> str:
    """The part of a layer's name up to its first number, which is what networks call their blocks."""
    parts = target.split(".")
    for index, part in enumerate(parts[:-1]):
        if part.isdecimal():
            return ".".join(parts[: index + 1])
    return parts[0] if len(parts) > 1 else ""
