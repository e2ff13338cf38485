"""The flags of ``pgnas run``, made from :class:`~pgnas.config.RunConfig`: each setting is documented once, there."""

from __future__ import annotations

import dataclasses
import re
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from cyclopts import Parameter, Token

from pgnas.config import RunConfig

Number = TypeVar("Number", int, float)
Flags = Any  # an instance of the class that make_flags_class makes


def setting_help(config_class: type = RunConfig) -> dict[str, str]:
    """What the ``Attributes:`` section of the docstring says of each setting, on one line each."""
    section = textwrap.dedent((config_class.__doc__ or "").partition("Attributes:\n")[2])
    entries = re.findall(r"^(\w+): (.*(?:\n[ \t]+\S.*)*)", section, flags=re.MULTILINE)
    return {name: _for_the_terminal(" ".join(text.split())) for name, text in entries}


def make_flags_class(config_class: type = RunConfig) -> type:
    """A class with a field for each setting, ``None`` while its flag is not given.

    ``None`` rather than the default is what lets a flag win over a config file even when it repeats the default.
    """
    hints = typing.get_type_hints(config_class)
    help_texts = setting_help(config_class)
    fields = []
    for field in dataclasses.fields(config_class):
        parameter = Parameter(
            help=help_texts[field.name],
            show_default=_default_text(field.default),
            converter=_converter(hints[field.name]),
            negative=(),
        )
        fields.append((field.name, Annotated[hints[field.name] | None, parameter], dataclasses.field(default=None)))
    made = dataclasses.make_dataclass("Flags", fields, kw_only=True, frozen=True)
    made.__module__ = __name__  # make_dataclass says "types", which cyclopts takes for a builtin
    return made


def given(flags: Flags | None) -> dict[str, object]:
    """The settings whose flags were given."""
    if flags is None:
        return {}
    values = {field.name: getattr(flags, field.name) for field in dataclasses.fields(flags)}
    return {name: value for name, value in values.items() if value is not None}


def _for_the_terminal(text: str) -> str:
    """Without markup, and in the words of the command line, which cannot write ``None``."""
    return re.sub(r"``None``: |None: ", "not given: ", text).replace("``", "")


def _default_text(default: object) -> Any:
    if default is dataclasses.MISSING or default is None or default == ():
        return False
    return lambda _: str(default)


def _converter(hint: object) -> Any:
    """How to read the words of a flag, where cyclopts' own way is too lenient or too narrow."""
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if int in members:
        return whole_number
    for member in members:
        if typing.get_origin(member) is tuple:
            return numbers if float in typing.get_args(member) else comma_separated
    return None


def whole_number(_: object, tokens: Sequence[Token]) -> int:
    """Read a whole number; cyclopts alone would round 3.5 to 4."""
    value = tokens[0].value
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"must be a whole number, got {value!r}") from None


def comma_separated(_: object, tokens: Sequence[Token]) -> tuple[str, ...]:
    """``--baseline full,uniform`` or ``--baseline full --baseline uniform``; RunConfig checks the names."""
    return tuple(dict.fromkeys(parts(tokens)))


def numbers(_: object, tokens: Sequence[Token]) -> tuple[float, ...]:
    """``--milestones 30,60`` or ``--milestones 30 --milestones 60``."""
    return _parsed(tokens, float, "numbers")


def wholes(_: object, tokens: Sequence[Token]) -> tuple[int, ...]:
    """``--seeds 0,1,2`` or ``--seeds 0 --seeds 1``."""
    return _parsed(tokens, int, "whole numbers")


def parts(tokens: Sequence[Token]) -> tuple[str, ...]:
    """What stands between the commas of all tokens, without spaces around it; empty parts are left out."""
    return tuple(part.strip() for token in tokens for part in token.value.split(",") if part.strip())


def _parsed(tokens: Sequence[Token], number: Callable[[str], Number], kind: str) -> tuple[Number, ...]:
    try:
        return tuple(map(number, parts(tokens)))
    except ValueError:
        text = ",".join(part.strip() for token in tokens for part in token.value.split(","))
        raise ValueError(f"must be {kind} with commas between them, got {text!r}") from None


def flag_names() -> Mapping[str, str]:
    """Each setting's flag: ``{"max_macs": "--max-macs", ...}``."""
    return {field.name: "--" + field.name.replace("_", "-") for field in dataclasses.fields(RunConfig)}
