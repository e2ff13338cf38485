"""Trace a network that nobody wrote for us into a graph of layers."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import keyword
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from pgnas.errors import ModelError, first_line
from pgnas.nn.attention import attention_to_layers
from pgnas.nn.auxiliary import answers_more, same_main, without_heads
from pgnas.nn.concrete_tracer import ConcreteTracer, is_composite, reads_mode, stops_gradients
from pgnas.nn.functional_layers import functional_layers_to_modules
from pgnas.nn.functionalize import functionalize
from pgnas.nn.graph_passes import (
    batch_size_from_input,
    drop_unused,
    functional_dropout_to_modules,
    sizes_one_by_one,
)
from pgnas.nn.macs import watch_macs


@dataclass(frozen=True)
class Trace:
    """A traced network.

    Attributes:
        module: The graph module; it owns the layers. Each node's ``meta`` has ``shape`` (of its tensor value on the
            example inputs, or None), ``part_shapes`` (of several tensors), ``number`` (of an int), ``is_static`` (no
            tensor in its value), ``is_identity`` (a layer that returned its input itself), ``is_hooked`` (a layer whose
            hooks may change what it computes), ``is_batched`` (the value's first axis grows with the batch),
            ``batch_axes`` (all that do), ``rows_mixed`` (the rows of an example are no block), ``macs`` (multiply-adds
            of one example) and ``example_shape`` (of one example's value).
        inputs: The example inputs, for later measurements.
        notes: What a user should know about how the network was traced.
        uncalled: Convolutions and linear layers of the network that the graph does not call, with the reason.
        headed: The network with its auxiliary heads, if it has any that only training calls: a graph module with the
            nodes of ``module`` under the same names, the same layers, and the outputs it has in training.
    """

    module: fx.GraphModule
    inputs: tuple[Tensor, ...]
    notes: tuple[str, ...]
    uncalled: dict[str, str]
    headed: fx.GraphModule | None = None


def trace(model: nn.Module, inputs: tuple[Tensor, ...]) -> Trace:
    """Trace ``model`` (in eval mode) on example inputs.

    Args:
        model: The network. It is used as it is: hand in a copy if its mode and buffers matter.
        inputs: Example inputs, batch first.

    Raises:
        ModelError: The network fails on the inputs, has control flow that depends on values, or works for the example's
            batch size only once it is traced.
    """
    name = type(model).__name__
    _require_free_names(name, model)
    mode = model.training
    model.eval()
    try:
        expected = _run(name, model, inputs)
        expected_of_more = _run_if_possible(model, _one_more(inputs))
        graph, tracer = _record(name, model, inputs)
        in_training = _record_in_training(name, model, inputs, graph) if isinstance(expected, Tensor) else None
        graph, tracer = in_training or (graph, tracer)
        notes = _mode_notes(model, tracer, headed=in_training is not None) + _training_notes(model, tracer)
        _require_names(name, graph)
        module = fx.GraphModule(model, graph, class_name=name)
        functionalize(module)  # first: nothing may be dropped that changes what it reads
        drop_unused(module.graph)
        notes += attention_to_layers(module, _record_part)
        notes += functional_dropout_to_modules(module)
        sizes_one_by_one(module.graph)
        notes += functional_layers_to_modules(module, model)
        module.eval()
        batch_size_from_input(module.graph, _shapes_of_more(module, inputs))
        drop_unused(module.graph)
        module.recompile()
        headed = module if in_training else None
        module = without_heads(module) if in_training else module
        _require_same(name, module, inputs, expected)
        _require_other_batch(name, module, inputs, expected_of_more)
        _note_macs(module, inputs)
        _note_rows(module, inputs)
        if headed is not None:
            _note_batched(headed, inputs, _observe(headed, _one_more(inputs)))
            _note_macs(headed, inputs)
    finally:
        model.train(mode)
    return Trace(module, inputs, tuple(notes), _uncalled(model, module.graph, headed), headed)


def _require_free_names(name: str, model: nn.Module) -> None:
    """What the model holds must not bear a name that a traced network has for something of its own."""
    own = {"graph", "meta", *dir(fx.GraphModule)}.difference(dir(nn.Module))
    held = own.intersection([*model._modules, *model._parameters, *model._buffers])
    if held:
        raise ModelError(
            f"model {name}",
            "must not have an attribute of a name that torch.fx uses for a traced network",
            value=min(held),
            remedy="rename it",
        )


def _require_names(name: str, graph: fx.Graph) -> None:
    """What the network uses must bear names that may stand in the code that torch.fx writes."""
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr") and any(map(keyword.iskeyword, str(node.target).split("."))):
            rule = "must not have an attribute of a name that Python keeps for itself"
            raise ModelError(f"model {name}", rule, value=node.target, remedy="rename it")


def _run(name: str, model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    try:
        with torch.no_grad():
            return model(*_clones(inputs))
    except Exception as error:
        shapes = ", ".join(f"{tuple(x.shape)} ({str(x.dtype).removeprefix('torch.')})" for x in inputs)
        raise ModelError(
            f"model {name}",
            f"must run on inputs of shape {shapes}",
            value=first_line(error)[:300],
            remedy="check the image size, the number of input channels, the dtype and the model's parameters",
        ) from error


def _run_if_possible(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    try:
        with torch.no_grad():
            return model(*_clones(inputs))
    except Exception:
        return None


def _record(name: str, model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[fx.Graph, ConcreteTracer]:
    tracer = ConcreteTracer(_clones(inputs))
    try:
        try:
            graph = _traced(tracer, model, inputs)
        except Exception:  # a transformer with masks, say, of a kind that its own checks do not take from a tracer
            if not any(is_composite(module) for module in model.modules()):
                raise
            tracer = ConcreteTracer(_clones(inputs), opens_composites=False)
            graph = _traced(tracer, model, inputs)
    except Exception as error:
        raise ModelError(
            f"model {name}",
            "must be traceable by torch.fx (no control flow that depends on tensor values)",
            value=first_line(error)[:300],
            remedy="remove the control flow, or put it into a parameter-free module that reads self.training; "
            "isinstance(x, Tensor) is false while it is traced, torch.is_tensor(x) is true",
        ) from error
    _note_values(graph, tracer)
    return graph, tracer


def _traced(tracer: ConcreteTracer, model: nn.Module, inputs: tuple[Tensor, ...]) -> fx.Graph:
    with torch.no_grad():
        return tracer.trace(model, concrete_args=_defaults_beyond(model, len(inputs)))


def _record_part(module: nn.Module, inputs: tuple[Tensor, ...]) -> fx.Graph:
    """The graph of a module of ours, in eval mode."""
    tracer = ConcreteTracer(inputs)
    with torch.no_grad():
        graph = tracer.trace(module.eval())
    _note_values(graph, tracer)
    return graph


def _note_values(graph: fx.Graph, tracer: ConcreteTracer) -> None:
    """Note of each value what was seen when it was traced."""
    for node in graph.nodes:
        value = tracer.values.get(node.name)
        node.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        if isinstance(value, tuple | list) and all(isinstance(part, Tensor) for part in value):
            node.meta["part_shapes"] = [tuple(part.shape) for part in value]
        if isinstance(value, int):
            node.meta["number"] = value
        node.meta["is_static"] = not _holds_tensor(value)
        node.meta["is_hooked"] = node.name in tracer.hooked
        read = node.args[0] if node.op == "call_module" and node.args else None
        node.meta["is_identity"] = isinstance(read, fx.Node) and tracer.values[read.name] is value


def _record_in_training(
    name: str, model: nn.Module, inputs: tuple[Tensor, ...], evaluated: fx.Graph
) -> tuple[fx.Graph, ConcreteTracer] | None:
    """The network with the heads that only training calls, its layers in eval mode; None if it has no such heads.

    Heads there are if some layer is not called in evaluation, and if in training the same operations give the first of
    several outputs.
    """
    if not _layers_past(model, evaluated):
        return None
    model.training = True
    try:
        graph, tracer = _record(name, model, inputs)
    except ModelError:
        return None
    finally:
        model.training = False
    return (graph, tracer) if answers_more(graph) and same_main(graph, evaluated) else None


def _mode_notes(model: nn.Module, tracer: ConcreteTracer, *, headed: bool) -> list[str]:
    """Modules that were traced through although they behave differently in training."""
    heads = ["the network's auxiliary heads answer in training; they are not gated and no part of the found network"]
    readers: dict[type, list[str]] = {}
    for name, module in model.named_modules():
        if not tracer.is_leaf_module(module, name) and reads_mode(module) and not (headed and module is model):
            readers.setdefault(type(module), []).append(name or type(model).__name__)
    return heads * headed + [
        f"'{first}'{f' and {len(others)} more of its type read' if others else ' reads'} self.training: "
        "the supernet keeps what it does in evaluation"
        for first, *others in readers.values()
    ]


def _training_notes(model: nn.Module, tracer: ConcreteTracer) -> list[str]:
    """Modules that say what is trained by more than ``requires_grad``, which a traced network does not keep."""
    found = []
    for name, module in model.named_modules():
        if tracer.is_leaf_module(module, name) or type(module).__module__.startswith("torch.nn."):
            continue
        shown = name or type(model).__name__
        if type(module).train is not nn.Module.train:
            found.append(
                f"'{shown}' has a train() of its own, which the supernet does not call: its layers train as others do"
            )
        if stops_gradients(module):
            found.append(
                f"'{shown}' stops gradients in its forward; the supernet does so for requires_grad=False alone"
            )
    return found


def _require_same(name: str, module: fx.GraphModule, inputs: tuple[Tensor, ...], expected: Any) -> None:
    """The traced network must compute what the network computes."""
    try:
        with torch.no_grad():
            found = module(*inputs)
        same = _all_close(found, expected)
    except Exception as error:
        found, same = first_line(error)[:300], False
    if not same:
        raise ModelError(
            f"model {name}",
            "must compute the same when traced",
            value=found if isinstance(found, str) else "another output",
            remedy="look for random or in-place operations outside torch.nn layers in its forward, and for "
            "isinstance(x, Tensor), which is false while it is traced (torch.is_tensor(x) is true)",
        )


def _require_other_batch(name: str, module: fx.GraphModule, inputs: tuple[Tensor, ...], expected: Any) -> None:
    """The batch size of the example must not have been written into the traced network.

    Args:
        name: What to call the network.
        module: The traced network.
        inputs: The example.
        expected: What the network makes of a batch of one more; None if it is made for one batch size.
    """
    if expected is None:
        return
    more = _one_more(inputs)
    other = _Recorder(module)
    try:
        same = _all_close(other.observe(more), expected)
    except Exception:
        same = False
    if not same:
        raise ModelError(
            f"model {name}",
            "must not turn the batch size into a Python number",
            value=f"a traced network for batches of {len(inputs[0])} only",
            remedy="write x.size(0) or -1 instead of len(x) or int(x.size(0)) in its forward",
        )
    _note_batched(module, inputs, other)


def _note_batched(module: fx.GraphModule, inputs: tuple[Tensor, ...], other: _Recorder) -> None:
    """Note which values grow with the batch, as seen on a batch of one more."""
    size = len(inputs[0])
    for node in module.graph.nodes:
        before, after = node.meta.get("shape"), other.shapes.get(node.name)
        node.meta["is_batched"] = bool(before and after and before[0] * (size + 1) == after[0] * size)
        grown = zip(before or (), after or (), strict=False)
        node.meta["batch_axes"] = tuple(axis for axis, (few, more) in enumerate(grown) if few != more)


def _note_macs(module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
    """Note each value's shape and the multiply-adds behind it for one example, wherever its axis is."""
    try:
        one = _observe(module, tuple(x[:1] for x in inputs))
        alike = all(_is_of_one(node, one.shapes.get(node.name)) for node in module.graph.nodes)
    except Exception:
        alike = False
    if not alike:  # the network is made for batches of more
        one, size = _observe(module, inputs), len(inputs[0])
        for node in module.graph.nodes:
            if node.meta.get("is_batched"):
                one.macs[node.name] //= size
                if (shape := one.shapes.get(node.name)) is not None:
                    one.shapes[node.name] = (shape[0] // size, *shape[1:])
    for node in module.graph.nodes:
        node.meta["macs"] = one.macs[node.name]
        node.meta["example_shape"] = one.shapes.get(node.name, ())


def _is_of_one(node: fx.Node, shape: tuple[int, ...] | None) -> bool:
    """Whether a value of one example has the axes of the whole example's, and those that do not grow as long."""
    whole: tuple[int, ...] | None = node.meta.get("shape")
    if whole is None or shape is None:
        return whole is None
    grown = node.meta.get("batch_axes", ())
    return len(shape) == len(whole) and all(shape[a] == whole[a] or a in grown for a in range(len(whole)))


def _note_rows(module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
    """Note where a value's first axis, longer than the batch, does not hold the rows of one example after the other.

    It shows in which rows change with the last of several examples.
    """
    longer = {
        node.name
        for node in module.graph.nodes
        if node.meta.get("is_batched") and node.meta["shape"][0] > len(inputs[0])
    }
    if not longer:
        return
    more = _one_more(inputs)
    other = tuple(torch.cat([x[:-1], _another(x)]) for x in more)
    recorders = [_Recorder(module, keep=longer) for _ in range(2)]
    try:
        for recorder, values in zip(recorders, (more, other), strict=True):
            recorder.observe(_clones(values))
    except Exception:  # another batch, or other numbers, than the network is made for
        return
    before, after = (recorder.kept for recorder in recorders)
    for node in module.graph.nodes:
        if node.name in before:
            rows = len(before[node.name]) // len(more[0])
            first, then = (kept[node.name][: len(kept[node.name]) - rows] for kept in (before, after))
            node.meta["rows_mixed"] = not torch.equal(first.nan_to_num(), then.nan_to_num())


def _another(x: Tensor) -> Tensor:
    """Another example than the last, (1, ...); whole numbers stay among those that occur, as they may name rows."""
    last = x[-1:]
    if x.is_floating_point() or x.is_complex():
        return last * 0.5 + 0.25
    if x.dtype == torch.bool:
        return ~last
    return x.amax() + x.amin() - last if bool(x.amax() > x.amin()) else last + 1


def _shapes_of_more(module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes of values in a batch of one more; those that come before what fails, if it is made for one batch."""
    recorder = _Recorder(module)
    with contextlib.suppress(Exception):
        recorder.observe(_one_more(inputs))
    return recorder.shapes


def _observe(module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> _Recorder:
    recorder = _Recorder(module)
    recorder.observe(inputs)
    return recorder


def _one_more(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.cat([x, x[:1]]) for x in inputs)


class _Recorder(fx.Interpreter):
    """Runs a graph and remembers each node's shape and multiply-adds."""

    def __init__(self, module: fx.GraphModule, *, keep: Container[str] = ()) -> None:
        super().__init__(module)
        self.kept: dict[str, Tensor] = {}
        self._keep = keep
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.macs: dict[str, int] = {}
        self._watched = module

    @torch.no_grad()
    def observe(self, inputs: tuple[Tensor, ...]) -> Any:
        """The output, without gradient."""
        return self.run(*inputs)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        macs: list[int] = []
        layer = self._watched.get_submodule(str(n.target)) if n.op == "call_module" else nn.Identity()
        with watch_macs(layer, macs.append):
            value = super().run_node(n)
        self.macs[n.name] = sum(macs)
        if isinstance(value, Tensor):
            self.shapes[n.name] = tuple(value.shape)
            if n.name in self._keep:
                self.kept[n.name] = value.clone()
        return value


def _clones(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copies, since a network may change its input in place."""
    return tuple(x.clone() for x in inputs)


def _all_close(found: Any, expected: Any) -> bool:
    a, b = _tensors(found), _tensors(expected)
    if [x.shape for x in a] != [x.shape for x in b]:
        return False
    return all(torch.allclose(x, y, rtol=1e-3, atol=1e-5, equal_nan=True) for x, y in zip(a, b, strict=True))


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, dicts and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        return _tensors([getattr(value, field.name) for field in dataclasses.fields(value)])
    if isinstance(value, dict):
        return _tensors(list(value.values()))
    return [t for item in value for t in _tensors(item)] if isinstance(value, tuple | list) else []


def _holds_tensor(value: Any) -> bool:
    return bool(_tensors(value))


def _uncalled(model: nn.Module, graph: fx.Graph, headed: fx.GraphModule | None) -> dict[str, str]:
    in_heads = set() if headed is None else set(_layers_past(model, headed.graph))
    return {
        name: "it is not called on the example inputs in evaluation"
        if headed is None or name in in_heads
        else "it is of an auxiliary head, which only training has"
        for name in _layers_past(model, graph)
    }


def _layers_past(model: nn.Module, graph: fx.Graph) -> list[str]:
    """The convolutions and linear layers that a graph does not call."""
    called = tuple(f"{node.target}." for node in graph.nodes if node.op == "call_module")
    layers = [name for name, layer in model.named_modules() if isinstance(layer, _ConvNd | nn.Linear)]
    return [name for name in layers if not f"{name}.".startswith(called)]


def _defaults_beyond(model: nn.Module, count: int) -> dict[str, Any] | None:
    """Arguments of ``forward`` past the inputs, fixed to their defaults."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    beyond = {
        p.name: p.default
        for p in parameters[count:]
        if p.default is not inspect.Parameter.empty and p.kind is not inspect.Parameter.VAR_KEYWORD
    }
    return beyond or None
