"""Describe the found network for its file, checked by building it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from pgnas.description import DescriptionError, build, describe, opened, parse
from pgnas.errors import ExportError, ModelError
from pgnas.run_folder.storage import write_bytes
from pgnas.stages.export_check import require_same
from pgnas.stages.network_file import NETWORK_NAME


def plain_network(module: nn.Module, example: Tensor) -> nn.Module:
    """A copy of ``module`` that consists of torch's layers and operations alone, or ``module`` if there is none.

    Args:
        module: The network, in eval mode on the CPU.
        example: Images as it takes them; only their shape and type are used.
    """
    if not isinstance(module, fx.GraphModule):
        return module
    found = opened(module)
    try:
        require_same(Path(NETWORK_NAME), found, module, example)
    except ExportError:  # a foreign layer did something that its operations do not show
        return module
    return found


def describe_network(module: nn.Module, example: Tensor, path: Path) -> dict[str, Any]:
    """The description of a network, checked by building the network from it again.

    Args:
        module: The network, in eval mode on the CPU; see :func:`plain_network`.
        example: Images as it takes them; only their shape and type are used.
        path: Where the description will be, for the errors.

    Raises:
        ModelError: It has a layer or an operation that a description cannot hold.
        ExportError: What the description builds does not reproduce the network.
    """
    remedy = "load model.pt2 or model.onnx instead"
    if not isinstance(module, fx.GraphModule):
        raise ModelError("network", "must be a traced one to be described", value=type(module).__name__, remedy=remedy)
    try:
        description = parse(json.dumps(describe(module, example)))
        again = build(description, module.state_dict())
    except DescriptionError as problem:
        raise ModelError(
            problem.part, f"{problem.rule} to be described", value=problem.value, remedy=remedy
        ) from problem
    require_same(path, again, module, example)
    return description


def write_description(path: Path, description: Mapping[str, Any]) -> None:
    """Write a description as JSON with a line for each node, layer and tensor.

    Raises:
        StorageError: The disk refused the write.
    """
    write_bytes(path, _readable(description).encode())


def _readable(description: Mapping[str, Any]) -> str:
    parts = []
    for name, value in description.items():
        if isinstance(value, list):
            lines = ",\n".join(f"    {json.dumps(item)}" for item in value)
            text = f"[\n{lines}\n  ]"
        elif name in ("layers", "tensors"):
            lines = ",\n".join(f"    {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
            text = f"{{\n{lines}\n  }}"
        else:
            text = json.dumps(value)
        parts.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
