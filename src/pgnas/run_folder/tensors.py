"""Tensors on disk: checkpoints that never unpickle code, and safetensors whose bytes depend on their contents alone."""

from __future__ import annotations

import collections
import json
import logging
import stat
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pgnas.errors import FileError
from pgnas.run_folder.storage import atomic, write_bytes

KEPT_CHECKPOINTS = 2

_logger = logging.getLogger(__name__)
_PLAIN = (bool, int, float, str, type(None), torch.Size, torch.dtype, torch.device)
_MOST_HEADER = 2**25
_OTHER_FORMATS = {"an archive as torch.save writes it": b"PK", "a pickle": b"\x80"}
_CONTAINERS = (list, tuple, dict, collections.OrderedDict)


def save_checkpoint(folder: Path, name: str, state: Mapping[str, object], step: int) -> None:
    """Write ``<name>-<step>.pt`` and remove all but the last two of that name.

    Raises:
        TypeError: ``state`` holds something that is neither a tensor nor plain, which could not be loaded safely.
        StorageError: The disk refused the write; the earlier checkpoints are intact.
    """
    plain = dict(state)
    _require_plain(plain, name)
    with atomic(folder / f"{name}-{step:08d}.pt") as path, path.open("wb") as file:
        try:
            torch.save(plain, file)  # into a file of ours: given a path, torch does not tell why the disk refused
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch failed again while it closed the half-written archive
                raise error.__context__ from None
            raise
    for _, old in _checkpoints(folder, name)[KEPT_CHECKPOINTS:]:
        old.unlink(missing_ok=True)


def load_checkpoint(folder: Path, name: str) -> dict[str, object] | None:
    """The newest checkpoint of ``name`` that is intact, on the CPU; ``None`` if there is none.

    A damaged one is passed over with a logged warning.
    """
    for step, path in _checkpoints(folder, name):
        try:
            return _load(path)
        except Exception as error:  # damaged bytes make the readers raise anything at all
            _logger.warning("%s is damaged (%s): step %d is passed over", path, _first_line(error), step)
    return None


def delete_checkpoints(folder: Path, name: str) -> None:
    """Remove all checkpoints of ``name``."""
    for _, path in _checkpoints(folder, name):
        path.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; equal contents give equal bytes.

    Raises:
        StorageError: The disk refused the write; ``path`` is as it was before.
    """
    data = safetensors.torch.save(without_shared_memory(tensors), metadata=dict(metadata) or None)
    write_bytes(path, _in_order(data))


def without_shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU: the format refuses views that share memory."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and its metadata. Nothing is unpickled, whatever the file is.

    Raises:
        FileError: The file is missing, truncated or of another format.
    """
    remedy = "copy or make the file again"
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise FileError(str(path), "must exist", value=_first_line(error), remedy="check the path") from error
    if not stat.S_ISREG(mode):  # a pipe would be waited for
        raise FileError(str(path), "must be a whole safetensors file", value="a folder or device", remedy=remedy)
    try:
        _refuse_long_header(path)
        with safetensors.safe_open(path, framework="pt") as file:
            # Clones, as tensors that begin anywhere in the file's memory take other vector instructions, which round
            # otherwise: a network loaded would not be the network saved, bit for bit.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except Exception as error:  # damaged bytes make the reader raise anything at all
        kind, other = _other_format(path)
        raise FileError(
            str(path), "must be a whole safetensors file", value=kind or _first_line(error), remedy=other or remedy
        ) from error


def _checkpoints(folder: Path, name: str) -> list[tuple[int, Path]]:
    """The steps and paths of ``name``'s checkpoints, newest first."""
    found = []
    for path in folder.glob("*.pt"):
        stem, _, step = path.stem.rpartition("-")
        if stem == name and step.isdecimal():
            found.append((int(step), path))
    return sorted(found, reverse=True)


def _load(path: Path) -> dict[str, object]:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # torch.load does not compare checksums: a flipped bit would load
    if damaged is not None:
        raise ValueError(f"checksum of {damaged}")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise TypeError("not a checkpoint")
    return state


def _require_plain(value: object, place: str) -> None:
    kind = type(value)  # exact: numpy.float64 is a float to isinstance, and is refused by the safe loader
    if kind in _CONTAINERS:
        items = value.items() if isinstance(value, dict) else enumerate(value)  # type: ignore[arg-type]
        for key, item in items:
            _require_plain(key, f"a key of {place}")
            _require_plain(item, f"{place}[{key!r}]")
    elif kind not in _PLAIN and not isinstance(value, Tensor):
        raise TypeError(f"{place} must be a tensor or a plain value, got {kind.__module__}.{kind.__qualname__}")


def _in_order(data: bytes) -> bytes:
    """``data``, a safetensors file, with its metadata sorted: the library writes it in the order of a random hash."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    if "__metadata__" in header:
        header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _refuse_long_header(path: Path) -> None:
    """A header lists names and shapes: a huge one would fill the memory before anything of it is checked."""
    with path.open("rb") as file:
        start = file.read(8)
    if len(start) == 8 and struct.unpack("<Q", start)[0] > _MOST_HEADER:
        raise ValueError(f"a header of more than {_MOST_HEADER:,} bytes")


def _other_format(path: Path) -> tuple[str | None, str | None]:
    """What a file that is no safetensors file begins like, and what to do about it."""
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError:
        return None, None
    for kind, begins in _OTHER_FORMATS.items():
        if start.startswith(begins):
            return kind, "save the tensors alone, with safetensors.torch.save_file: this format may hold code"
    return ("an empty file" if not start else None), None


def _first_line(error: BaseException) -> str:
    """The beginning of a message, which may quote a damaged file: without control characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return "".join(letter if letter.isprintable() else "?" for letter in lines[0][:200])
