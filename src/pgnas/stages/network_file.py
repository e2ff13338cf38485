"""The found network as data: its description in the metadata of its tensors' file, and loaded from there.

``model.safetensors`` holds the description of the network (:mod:`pgnas.description`) in its metadata, so that the one
file is enough; ``network.json`` is the same description for people and other programs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pgnas.description import DescriptionError, build, parse
from pgnas.errors import FileError, RunFolderError
from pgnas.run_folder.admission import CONFIG_NAME
from pgnas.run_folder.tensors import load_tensors

NETWORK_NAME, WEIGHTS_NAME = "network.json", "model.safetensors"
_KEY, _DIGEST_KEY = "network", "network_sha256"
_OTHER_FORMATS = {
    ".pt2": "load it with torch.export.load if you know where it comes from",
    ".onnx": "run it with onnxruntime",
    ".py": "import it if you know where it comes from",
    ".json": f"give the folder or the {WEIGHTS_NAME} beside it",
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"), "it may hold code that runs when it is read"),
}


def description_metadata(description: Mapping[str, Any]) -> dict[str, str]:
    """The description as metadata of a safetensors file."""
    text = json.dumps(description, separators=(",", ":"))
    return {_KEY: text, _DIGEST_KEY: _digest(text)}


def load(path: str | Path) -> nn.Module:
    """The found network of a run, a plain module in eval mode on the CPU.

    It is built from its description and its safetensors: no code of the network's is needed, imported or run, and
    nothing is unpickled. A file is checked from end to end before it is used.

    Args:
        path: A run folder whose network has been exported, or its ``model.safetensors`` alone.

    Raises:
        RunFolderError: There is no run, or it has not exported a network.
        FileError: The file is not a whole one that pgnas wrote, or holds another network than it says.
    """
    path = Path(path)
    if os.path.isdir(path):  # False, not an error, where the system forbids to look
        return _load_folder(path)
    if path.suffix.lower() in _OTHER_FORMATS:
        remedy = f"{_OTHER_FORMATS[path.suffix.lower()]}; pgnas.load takes a run folder or a {WEIGHTS_NAME}"
        raise FileError(str(path), "must be a safetensors file: pgnas opens no others", remedy=remedy)
    return _load_file(path)[0]


def _load_folder(folder: Path) -> nn.Module:
    weights, readable = folder / WEIGHTS_NAME, folder / NETWORK_NAME
    if not weights.is_file():
        if not (folder / CONFIG_NAME).is_file():
            raise RunFolderError(str(folder), "must be a run folder", value=f"no {CONFIG_NAME} there")
        remedy = f"run pgnas export {folder} first"
        raise RunFolderError(str(folder), f"must hold {WEIGHTS_NAME}", value="no such file", remedy=remedy)
    network, description = _load_file(weights)
    if readable.exists() and _read(readable) != description:
        remedy = f"delete it, as {WEIGHTS_NAME} has its own copy, or export the network again"
        raise FileError(str(readable), f"must be the description that {WEIGHTS_NAME} holds", remedy=remedy)
    return network


def _load_file(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    tensors, metadata = load_tensors(path)
    text = metadata.get(_KEY)
    remedy = f"give a {WEIGHTS_NAME} that pgnas export wrote"
    if text is None:
        raise FileError(str(path), "must hold the description of a network", value="tensors alone", remedy=remedy)
    if metadata.get(_DIGEST_KEY) != _digest(text):
        raise FileError(str(path), "must hold a description that matches its digest", remedy=remedy)
    try:
        description = parse(text)
        return build(description, tensors), description
    except DescriptionError as problem:
        raise _refusal(path, problem) from problem


def _read(path: Path) -> dict[str, Any]:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except DescriptionError as problem:
        raise _refusal(path, problem) from problem
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(str(path), "must be a readable file of UTF-8", remedy="export the network again") from error


def _refusal(path: Path, problem: DescriptionError) -> FileError:
    return FileError(f"{path}: {problem.part}", problem.rule, value=problem.value, remedy="export the network again")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
