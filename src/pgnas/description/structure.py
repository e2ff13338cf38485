"""The layers and tensors of a description, as a module without memory that holds them under their names."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from pgnas.description.errors import DescriptionError
from pgnas.description.layers import build_layer
from pgnas.description.operations import DTYPES
from pgnas.description.values import decode

MOST_ENTRIES = 20_000
"""Of nodes, layers and tensors."""
_PART = re.compile(r"(?!__)[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")
_DEEPEST = 20
_TAKEN = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))
"""What a module has already: a layer of such a name would take the place of a method."""

Listed = Mapping[str, Mapping[str, Any]]


def read_tensor_list(value: Any, tensors: Mapping[str, Tensor]) -> Listed:
    """The list of tensors, found to be that of ``tensors``: names, shapes and number types.

    Raises:
        DescriptionError: It is not.
    """
    listed = _objects(value, "tensors")
    for name in sorted(set(listed) ^ set(tensors)):
        where = "the file" if name in listed else "the description"
        raise DescriptionError(f"tensor {name!r}", f"must be in description and file alike; {where} lacks it")
    for name, entry in listed.items():
        part = f"tensor {name!r}"
        if not isinstance(entry, dict) or set(entry) - {"same_as"} != {"kind", "shape", "dtype"}:
            raise DescriptionError(part, "must have a kind, a shape and a dtype")
        dtype, shape = read_dtype(entry["dtype"], part), read_shape(entry["shape"], part)
        if entry["kind"] not in ("parameter", "buffer") or (
            entry["kind"] == "parameter" and not dtype.is_floating_point
        ):
            raise DescriptionError(part, "must be a parameter of floats or a buffer")
        found = tensors[name]
        if (shape, dtype) != (tuple(found.shape), found.dtype):
            raise DescriptionError(part, f"must be of {dtype} {shape}", f"{found.dtype} {tuple(found.shape)}")
        if "same_as" in entry:
            _require_same(name, entry, listed, tensors)
    return listed


def read_layers(value: Any) -> dict[str, nn.Module]:
    """The layers by name, on the meta device.

    Raises:
        DescriptionError: A layer cannot be built, or lies in another one.
    """
    layers = {name: build_layer(entry, name) for name, entry in _objects(value, "layers").items()}
    for name in layers:
        if _lies_in(name, layers):
            raise DescriptionError(f"layer {name!r}", "must not lie in another layer")
    return layers


def make_root(layers: Mapping[str, nn.Module], listed: Listed) -> nn.Module:
    """A module with these layers and, beside theirs, these tensors; all on the meta device.

    Raises:
        DescriptionError: The layers do not have the tensors that are listed.
    """
    root = nn.Module()
    for name, layer in layers.items():
        owner, leaf = _owner(root, name)
        owner.add_module(leaf, layer)
    for name, entry in listed.items():
        if _lies_in(name, layers):
            continue  # the layer has made it, or the comparison below says that it has not
        owner, leaf = _owner(root, name)
        if leaf in owner._modules or _lies_in(name, listed):
            raise DescriptionError(f"tensor {name!r}", "must have a place of its own")
        value = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]], device="meta")
        if entry["kind"] == "parameter":
            owner.register_parameter(leaf, nn.Parameter(value))
        else:
            owner.register_buffer(leaf, value)
    _require_state(root, listed)
    return root


def tie(module: nn.Module, listed: Listed) -> None:
    """Make tensors that are listed as the same one the same object, as for shared weights."""
    for name, entry in listed.items():
        if "same_as" in entry:
            (owner, leaf), (first, first_leaf) = _place(module, name), _place(module, str(entry["same_as"]))
            setattr(owner, leaf, getattr(first, first_leaf))


def read_shape(value: Any, part: str) -> tuple[int, ...]:
    """A tensor's shape.

    Raises:
        DescriptionError: It is none.
    """
    is_shape = isinstance(value, list) and len(value) <= 16 and all(type(n) is int and 0 <= n < 2**40 for n in value)
    if not is_shape:
        raise DescriptionError(part, "must have a shape", value)
    return tuple(value)


def read_dtype(value: Any, part: str) -> torch.dtype:
    """A number type.

    Raises:
        DescriptionError: It is none of the known ones.
    """
    dtype: torch.dtype = decode({"dtype": value}, part, {})
    return dtype


def _objects(value: Any, part: str) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > MOST_ENTRIES:
        raise DescriptionError(part, f"must be an object of at most {MOST_ENTRIES:,} members")
    for name in value:
        parts = name.split(".")
        is_plain = all(_PART.fullmatch(p) and p not in _TAKEN and not keyword.iskeyword(p) for p in parts)
        if len(parts) > _DEEPEST or not is_plain:
            raise DescriptionError(part, "must have plain names with dots that are free in a module", name)
    return value


def _require_same(name: str, entry: Mapping[str, Any], listed: Listed, tensors: Mapping[str, Tensor]) -> None:
    first = entry["same_as"]
    is_first = isinstance(first, str) and first in listed and "same_as" not in listed[first]
    is_alike = is_first and listed[first] == {key: value for key, value in entry.items() if key != "same_as"}
    if not is_alike or not torch.equal(tensors[name], tensors[first]):
        raise DescriptionError(f"tensor {name!r}", "must be the same as the tensor that it names", first)


def _lies_in(name: str, names: Mapping[str, Any]) -> bool:
    """Whether one of the names is that of a module which ``name`` would be a member of."""
    parts = name.split(".")
    return any(".".join(parts[:end]) in names for end in range(1, len(parts)))


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that ``name`` lies in, made if need be, and its last part."""
    *owners, leaf = name.split(".")
    for owner in owners:
        if owner not in root._modules:
            root.add_module(owner, nn.Module())
        root = root.get_submodule(owner)
    return root, leaf


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, leaf = name.rpartition(".")
    return module.get_submodule(owner), leaf


def _require_state(root: nn.Module, listed: Listed) -> None:
    """The layers must have exactly the tensors that are listed; their number types become those of the list."""
    made, parameters = root.state_dict(), dict(root.named_parameters())
    for name in sorted(set(made) ^ set(listed)):
        raise DescriptionError(f"tensor {name!r}", "must be listed, and be one of its layer's")
    for name, value in made.items():
        dtype, kind = DTYPES[listed[name]["dtype"]], "parameter" if name in parameters else "buffer"
        is_alike = value.is_floating_point() == dtype.is_floating_point and kind == listed[name]["kind"]
        if not is_alike or list(value.shape) != listed[name]["shape"]:
            wanted = f"must be a {kind} of shape {tuple(value.shape)}, as its layer has it"
            raise DescriptionError(f"tensor {name!r}", wanted, tuple(listed[name]["shape"]))
        if value.dtype != dtype:
            owner, leaf = _place(root, name)
            new = value.to(dtype)
            setattr(owner, leaf, nn.Parameter(new) if kind == "parameter" else new)
