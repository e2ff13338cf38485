"""A network as readable Python source that needs torch alone, to go with its weights in a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from pgnas.description import opened
from pgnas.errors import ConfigError, ModelError
from pgnas.run_folder.storage import to_json
from pgnas.stages.export_metadata import ExportMetadata
from pgnas.stages.network_file import WEIGHTS_NAME
from pgnas.stages.source_forward import ForwardWriter
from pgnas.stages.source_layers import layer_source, literal

_WIDTH = 100

_GROUP = '''
class Layers(nn.Module):
    """Layers under the names they had in the original network: ``block.conv1``, or ``blocks[0]`` if it is a number."""

    def __init__(self, members: dict[str, nn.Module | torch.Tensor]) -> None:
        super().__init__()
        for name, member in members.items():
            if isinstance(member, nn.Module | nn.Parameter):
                setattr(self, name, member)
            else:
                self.register_buffer(name, member)

    def __getitem__(self, name: int | str) -> nn.Module:
        return getattr(self, str(name))

'''
_PREPROCESS = '''
def preprocess(images: torch.Tensor) -> torch.Tensor:
    """{what} as the network takes them: ({axes}) uint8, resized to {size}, to normalised float32."""
    mean = torch.tensor(MEAN, device=images.device).view(-1{ones})
    std = torch.tensor(STD, device=images.device).view(-1{ones})
    return (images.to(torch.float32) / 255 - mean) / std

'''
_LOAD = '''
def load(path: str | Path = Path(__file__).with_name("{weights}")) -> {name}:
    """The network with its weights, in eval mode."""
    import safetensors.torch

    network = {name}()
    network.load_state_dict(safetensors.torch.load_file(path))
    return network.eval()
'''

Tree = dict[str, Any]  # name to the source of a member, or to a Tree


def source_code(module: nn.Module, *, class_name: str = "Network", metadata: ExportMetadata | None = None) -> str:
    """The source of a Python file that defines ``module`` as a class and loads its weights.

    The class has the layers and buffers of ``module`` under the same names: ``load_state_dict`` takes its state.

    Args:
        module: What :func:`pgnas.extract` returns, or another ``torch.fx.GraphModule`` whose layers are torch.nn's.
        class_name: The name of the class.
        metadata: What to say of the network; its class names and preprocessing become constants.

    Raises:
        ModelError: A layer or an operation cannot be written as source; it is named.
        ConfigError: ``class_name`` is not a name.
    """
    if not class_name.isidentifier():
        raise ConfigError("class_name", "must be a Python name", value=repr(class_name), remedy="choose another")
    if not isinstance(module, fx.GraphModule):
        remedy = "extract it from a supernet, or trace it with torch.fx.symbolic_trace"
        raise ModelError("network", "must be a traced one", value=type(module).__name__, remedy=remedy)
    unused = module.state_dict()  # counters and the like: opening layers leaves them out
    module = opened(module)
    state = {**unused, **module.state_dict()}
    writer = ForwardWriter(module.graph)
    body = "".join(f"        {line}\n" if line else "\n" for line in writer.statements())
    tree = _members(module, state)
    layers = "".join(_declarations(tree))
    inputs = ", ".join(f"{name}: torch.Tensor" for name in writer.inputs)
    parts = [
        _docstring(class_name, metadata),
        _imports(body),
        _constants(metadata),
        _GROUP if any(isinstance(member, dict) for member in tree.values()) else "",
        f"\nclass {class_name}(nn.Module):\n"
        f'    """Takes {_takes(metadata)}; returns logits (B, K)."""\n\n'
        f"    def __init__(self) -> None:\n        super().__init__()\n{layers}\n"
        f"    def forward(self, {inputs}) -> torch.Tensor:\n{body}\n",
        _preprocess(metadata),
        _LOAD.format(name=class_name, weights=WEIGHTS_NAME),
    ]
    return "".join(parts)


def _members(module: fx.GraphModule, state: dict[str, Tensor]) -> Tree:
    """The layers and tensors that the graph uses or the state holds, nested by their dotted names, in order of use."""
    tree: Tree = {}
    layers = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}

    def is_in_a_layer(target: str) -> bool:
        return any(target.startswith(layer + ".") for layer in layers)

    for node in module.graph.nodes:
        target = str(node.target)
        if node.op == "call_module":
            _put(tree, target, layer_source(module.get_submodule(target), target))
        elif node.op == "get_attr" and not is_in_a_layer(target):
            if target not in state:
                remedy = "register it as a buffer of the network"
                raise ModelError(f"constant '{target}'", "must be in the state dict to be source", remedy=remedy)
            _put(tree, target, _tensor_source(module, target, state[target]))
    for target, value in state.items():  # counters and the like, that no operation reads
        if not is_in_a_layer(target):
            _put(tree, target, _tensor_source(module, target, value))
    return tree


def _put(tree: Tree, target: str, source: str) -> None:
    *owners, leaf = target.split(".")
    for owner in owners:
        tree = tree.setdefault(owner, {})
    tree[leaf] = source


def _tensor_source(module: fx.GraphModule, target: str, value: Tensor) -> str:
    zeros = f"torch.zeros({literal(tuple(value.shape))}"
    zeros += ")" if value.dtype == torch.float32 else f", dtype={value.dtype})"
    return f"nn.Parameter({zeros})" if target in dict(module.named_parameters()) else zeros


def _declarations(tree: Tree) -> Iterator[str]:
    """The statements of ``__init__``."""
    for name, member in tree.items():
        if isinstance(member, str) and member.startswith("torch.zeros"):
            yield f"        self.register_buffer({literal(name)}, {member})\n"
            continue
        text = _group_source(member, depth=2) if isinstance(member, dict) else member
        if name.isidentifier():
            yield f"        self.{name} = {text}\n"
        else:
            yield f"        self.add_module({literal(name)}, {text})\n"


def _group_source(tree: Tree, depth: int) -> str:
    indent = "    " * (depth + 1)
    lines = [
        f"{indent}{literal(name)}: {_group_source(member, depth + 1) if isinstance(member, dict) else member},\n"
        for name, member in tree.items()
    ]
    return "Layers({\n" + "".join(lines) + "    " * depth + "})"


def _docstring(class_name: str, metadata: ExportMetadata | None) -> str:
    lines = ['"""A network found by pgnas.', ""]
    if metadata is not None:
        numbers = f"{metadata.params:,} parameters, {metadata.macs:,} multiply-adds"
        lines = [f'"""A network for {len(metadata.class_names)} classes, found by pgnas: {numbers}.', ""]
    use = ["from model import CLASS_NAMES, load, preprocess", "", "network = load()"]
    axes = "B, C, H, W" if metadata is None else _axes(metadata.preprocessing)
    use += [f"logits = network(preprocess(images))  # images: ({axes}) uint8"]
    use += ["names = [CLASS_NAMES[label] for label in logits.argmax(1).tolist()]"]
    if metadata is None:
        use = [f"from model import {class_name}, load", "", "network = load()", "logits = network(images)"]
    lines += [f"It needs torch and, to load {WEIGHTS_NAME} from beside this file, safetensors:", ""]
    return "\n".join([*lines, *(f"    {line}".rstrip() for line in use), '"""', "", ""])


def _imports(body: str) -> str:
    lines = ["from __future__ import annotations", ""]
    lines += ["import math"] if "math." in body else []
    lines += ["from pathlib import Path", "", "import torch", "from torch import nn"]
    lines += ["from torch.nn import functional as F"] if "F." in body else []
    return "\n".join([*lines, "", ""])


def _constants(metadata: ExportMetadata | None) -> str:
    if metadata is None:
        return ""
    steps = metadata.preprocessing
    names = literal(list(metadata.class_names))
    if len(names) > _WIDTH:
        names = "[\n" + "".join(f"    {literal(name)},\n" for name in metadata.class_names) + "]"
    return (
        f"CLASS_NAMES = {names}\n"
        f"CHANNELS, {', '.join(name.upper() for name in _sizes(steps))} = {_dimensions(steps)}\n"
        f"MEAN = {literal(list(steps['mean']))}  # of pixel values scaled to 0..1, each channel\n"
        f"STD = {literal(list(steps['std']))}\n"
        f"ARCHITECTURE = {literal(metadata.architecture)}  # its digest\n"
        f"MADE_BY = {literal({'pgnas': metadata.version, 'torch': metadata.torch})}\n"
        f"SETTINGS = {literal(_plain(metadata.settings))}  # of the run\n\n"
    )


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as JSON would hold them."""
    found: dict[str, Any] = json.loads(to_json(settings))
    return found


def _takes(metadata: ExportMetadata | None) -> str:
    if metadata is None:
        return "normalised images (B, C, H, W), float32"
    return f"normalised images (B, {_dimensions(metadata.preprocessing)}), float32"


def _sizes(steps: Mapping[str, Any]) -> list[str]:
    """What a volume or an image has sizes of, past its channels."""
    return [name for name in ("depth", "height", "width") if steps.get(name) is not None]


def _dimensions(steps: Mapping[str, Any]) -> str:
    return ", ".join(str(int(steps[name])) for name in ("channels", *_sizes(steps)))


def _axes(steps: Mapping[str, Any]) -> str:
    return ", ".join(["B", "C", *(name[0].upper() for name in _sizes(steps))])


def _preprocess(metadata: ExportMetadata | None) -> str:
    if metadata is None:
        return ""
    steps = metadata.preprocessing
    sizes = _sizes(steps)
    return _PREPROCESS.format(
        what="Images" if len(sizes) == 2 else "Volumes or clips",
        axes=_axes(steps),
        size=" x ".join(name.upper() for name in sizes),
        ones=", 1" * len(sizes),
    )
