"""Layers that a network calls as functions, ``F.conv2d(x, self.weight)``, made layers again.

Then one rule a layer type does for both, and the gate, the cut and the count see a layer. Its tensors keep their names
where the module that owned them does nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pgnas.nn.sources import source_of

Arguments = Mapping[str, Any]

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_TRANSPOSE = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_NAMES: dict[Any, tuple[str, ...]] = {
    F.conv1d: _CONV,
    F.conv2d: _CONV,
    F.conv3d: _CONV,
    F.conv_transpose1d: _CONV_TRANSPOSE,
    F.conv_transpose2d: _CONV_TRANSPOSE,
    F.conv_transpose3d: _CONV_TRANSPOSE,
    F.linear: ("input", "weight", "bias"),
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    F.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    F.rms_norm: ("input", "normalized_shape", "weight", "eps"),
}
_WEIGHTED = tuple(function for function in _NAMES if "weight" in _NAMES[function][:2])


def functional_layers_to_modules(module: fx.GraphModule, model: nn.Module) -> list[str]:
    """Replace such calls in the graph of ``module`` (it is ours); says which tensors got other names.

    Args:
        module: The traced network.
        model: The network it was traced from, whose modules still have their types.
    """
    notes = []
    for node in list(module.graph.nodes):
        tensors = _own_tensors(module, node)
        if not tensors:
            continue
        owners = {target.rpartition(".")[0] for target in tensors.values()}
        if len(owners) > 1:
            continue
        named = {name: _attribute(module, target) for name, target in tensors.items()}
        owner = owners.pop()
        layer = _make(node, named) if _follows_mode(model, owner, node, named) else None
        if layer is None:
            continue
        _set_tensors(layer, named)
        for target in tensors.values():
            delattr(module.get_submodule(owner), target.rpartition(".")[2])
        name = owner if owner and _is_idle(module, owner) else f"{owner}.layer_{node.name}".lstrip(".")
        if name != owner:
            notes.append(f"function '{node.name}' became the layer '{name}', which has its tensors")
        module.add_submodule(name, layer)
        _replace(module, node, name)
    return notes


def applies_own_weight(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a layer, run on ``args``, gives its own weight to one convolution or linear function, as it is."""
    weights: list[Tensor] = []
    with torch.no_grad(), LayerCalls(lambda function, read, weight, made: weights.append(weight)):
        layer.forward(*args, **kwargs)
    return len(weights) == 1 and weights[0] is layer.weight


class LayerCalls(TorchFunctionMode):
    """While this lasts, ``tell`` hears of every convolution and linear function: it, its input, weight and output."""

    def __init__(self, tell: Callable[[Any, Tensor, Tensor, Tensor], None]) -> None:
        super().__init__()
        self._tell = tell

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in _WEIGHTED:
            given = {**dict(zip(_NAMES[func], args, strict=False)), **(kwargs or {})}
            self._tell(func, given["input"], given["weight"], made)
        return made


def is_transposed(function: Any) -> bool:
    """Whether a convolution or linear function is a transposed convolution."""
    return "output_padding" in _NAMES[function]


def _arguments(node: fx.Node) -> dict[str, Any]:
    return {**dict(zip(_NAMES[node.target], node.args, strict=False)), **node.kwargs}


def _own_tensors(module: fx.GraphModule, node: fx.Node) -> dict[str, str]:
    """Argument name to the attribute of the network that it is; empty if the call has not all of a layer to itself."""
    if node.op != "call_function" or node.target not in _NAMES:
        return {}
    given = {name: value for name, value in _arguments(node).items() if name != "input"}
    nodes = {name: value for name, value in given.items() if isinstance(value, fx.Node)}
    if not all(value.op == "get_attr" and len(value.users) == 1 for value in nodes.values()):
        return {}
    targets = {name: str(value.target) for name, value in nodes.items()}
    reads = [str(n.target) for n in module.graph.nodes if n.op == "get_attr"]
    called = tuple(f"{n.target}." for n in module.graph.nodes if n.op == "call_module")
    alone = all(reads.count(target) == 1 and not target.startswith(called) for target in targets.values())
    return targets if alone else {}


def _follows_mode(model: nn.Module, owner: str, node: fx.Node, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a normalisation with running statistics uses its batch's in training alone, as its layer would.

    It is called by who holds its tensors or by a module around that, whose source says what the call hangs on.
    """
    if node.target is not F.batch_norm or "running_mean" not in tensors:
        return True
    parts = owner.split(".") if owner else []
    around = [model.get_submodule(".".join(parts[:count])) for count in range(len(parts), -1, -1)]
    calls = [text for module in around for text in map(source_of, type(module).__mro__) if "batch_norm(" in text]
    return not calls or any("self.training" in text for text in calls)


def _make(node: fx.Node, tensors: Mapping[str, Tensor]) -> nn.Module | None:
    """The layer of a call, its tensors still to be set."""
    arguments = _arguments(node)
    shape = arguments["input"].meta["shape"] if isinstance(arguments["input"], fx.Node) else None
    if shape is None:
        return None
    if node.target in _WEIGHTED:
        return _weighted(node, arguments, tensors)
    if len(tensors) and not all(isinstance(t, nn.Parameter) or "running" in name for name, t in tensors.items()):
        return None
    eps: Any = arguments.get("eps", 1e-5)
    affine = {"elementwise_affine": "weight" in tensors}
    with torch.device("meta"):
        if node.target is F.batch_norm:
            kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
            tracks = "running_mean" in tensors
            momentum = arguments.get("momentum", 0.1)
            make: Callable[..., nn.Module] = kinds[len(shape)]
            return make(shape[1], eps, momentum, affine="weight" in tensors, track_running_stats=tracks)
        if node.target is F.group_norm:
            return nn.GroupNorm(int(arguments["num_groups"]), shape[1], eps, affine="weight" in tensors)
        normalized = _numbers(arguments["normalized_shape"])
        if normalized is None:
            return None
        if node.target is F.rms_norm:
            return nn.RMSNorm(normalized, arguments.get("eps"), **affine)
        return nn.LayerNorm(normalized, eps, bias="bias" in tensors, **affine)


def _numbers(shape: Any) -> tuple[int, ...] | None:
    """The sizes of a shape, some of which may be read from tensors; None if one is not known."""
    sizes = [size.meta.get("number") if isinstance(size, fx.Node) else size for size in shape]
    known = tuple(size for size in sizes if isinstance(size, int))
    return known if len(known) == len(sizes) else None


def _set_tensors(layer: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a layer these tensors and no others; a counter starts at 0."""
    for name in [*layer._parameters]:
        setattr(layer, name, tensors.get(name))
    for name, buffer in layer._buffers.items():
        if buffer is not None:
            setattr(layer, name, tensors.get(name, torch.zeros(buffer.shape, dtype=buffer.dtype)))


def _weighted(node: fx.Node, arguments: Arguments, tensors: Mapping[str, Tensor]) -> nn.Module | None:
    """A convolution or linear layer."""
    weight = tensors.get("weight")
    if not isinstance(weight, nn.Parameter) or (arguments.get("bias") is not None and "bias" not in tensors):
        return None
    has_bias = "bias" in tensors
    with torch.device("meta"):
        if node.target is F.linear:
            if weight.ndim != 2:
                return None
            return nn.Linear(weight.shape[1], weight.shape[0], bias=has_bias)
        groups = int(arguments.get("groups", 1))
        names = ("stride", "padding", "dilation", "output_padding")
        geometry: dict[str, Any] = {name: arguments[name] for name in names if name in arguments}
        dimensions = weight.ndim - 2
        transposed = is_transposed(node.target)
        kinds: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d) if transposed else _CONVOLUTIONS
        first, second = weight.shape[0], weight.shape[1] * groups
        channels = (first, second) if transposed else (second, first)
        made: nn.Module = kinds[dimensions - 1](
            *channels, tuple(weight.shape[2:]), groups=groups, bias=has_bias, **geometry
        )
        return made


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _is_idle(module: fx.GraphModule, owner: str) -> bool:
    """Whether nothing of ``owner`` is left that the graph uses."""
    targets = [str(n.target) for n in module.graph.nodes if n.op == "call_module"]
    left = [*module.get_submodule(owner).parameters(), *module.get_submodule(owner).buffers()]
    return not left and not any(target == owner or target.startswith(f"{owner}.") for target in targets)


def _replace(module: fx.GraphModule, node: fx.Node, name: str) -> None:
    with module.graph.inserting_after(node):
        layer = module.graph.call_module(name, (_arguments(node)["input"],))
    layer.meta.update(node.meta)
    node.replace_all_uses_with(layer)
    tensors = [read for read in node.all_input_nodes if read.op == "get_attr"]
    module.graph.erase_node(node)
    for read in tensors:
        module.graph.erase_node(read)


def _attribute(module: nn.Module, target: str) -> Any:
    owner, _, leaf = target.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)
