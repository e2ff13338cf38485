"""What the user wrote after ``--data``: a name, a path, or ``kind:PATH:option=value,...``."""

from __future__ import annotations

import difflib
import os
import re

from pgnas.data.sources import Request, Source, registered_sources
from pgnas.errors import DataError

_CHAINED = re.compile(r"(?P<path>.*?)(?P<options>(?:[:,][\w-]+=[^,=:/\\]*)+)", re.DOTALL)  # by colons, too
_OPTIONS = re.compile(r"(?P<path>.*):(?P<options>[\w-]+=[^,=:/\\]*(?:,[\w-]+=[^,=:/\\]*)*)", re.DOTALL)


def resolve(spec: str, image_size: int | None) -> tuple[Source, Request]:
    """The source that ``spec`` names, and what it is asked for.

    A name wins over a folder of that name; a plain folder is read as ``folder:PATH`` and a plain ``.npz`` file as
    ``npz:PATH``.

    Raises:
        DataError: It is none of these, or an option is unknown or breaks its rule.
    """
    sources = {source.name: source for source in registered_sources()}
    if spec in sources and not sources[spec].takes_path:
        return sources[spec], Request(image_size)
    kind, colon, rest = spec.partition(":")
    if colon and kind in sources:
        return sources[kind], _request(spec, sources[kind], rest, image_size)
    path = os.path.expanduser(spec)
    if plain := _plain_kind(path):
        return sources[plain], Request(image_size, path)
    _require_kind(spec)
    raise _unknown(spec, path, sources)


def _request(spec: str, source: Source, rest: str, image_size: int | None) -> Request:
    if not source.takes_path:
        remedy = f"write {source.name}"
        raise DataError(
            f"data {spec!r}", f"must not have anything after {source.name}", value=repr(rest), remedy=remedy
        )
    found = _OPTIONS.fullmatch(rest)
    path = os.path.expanduser(found["path"] if found else rest)
    if not os.path.exists(path):
        _require_commas(spec, source, rest)
        value = repr(path) if path else "no path"
        remedy = f"write {source.name}:PATH" + (":option=value" if source.options else "")
        raise DataError(f"data {spec!r}", "must name a path that exists", value=value, remedy=remedy)
    options: dict[str, object] = {}
    for part in found["options"].split(",") if found else ():
        name, _, text = part.partition("=")
        options[name] = _value(spec, source, name, text)
    return Request(image_size, path, options)


def _plain_kind(path: str) -> str | None:
    """What a path of which no kind is named is read as, if it can be."""
    if os.path.isdir(path):
        return "folder"
    return "npz" if os.path.isfile(path) and path.lower().endswith(".npz") else None


def _require_commas(spec: str, source: Source, rest: str) -> None:
    path, options = _chained(rest)
    if path and options.startswith(":") and os.path.exists(os.path.expanduser(path)):
        written = options[1:].replace(":", ",")
        remedy = f"write {source.name}:{path}:{written}"
        raise DataError(f"data {spec!r}", "must have commas between its options", value=repr(options), remedy=remedy)


def _require_kind(spec: str) -> None:
    path, options = _chained(spec)
    kind = _plain_kind(os.path.expanduser(path))
    if path and options.startswith(":") and kind:
        written = options[1:].replace(":", ",")
        rule = "must name the kind of data before a path with options"
        raise DataError(f"data {spec!r}", rule, value=repr(path), remedy=f"write {kind}:{path}:{written}")


def _chained(text: str) -> tuple[str, str]:
    """A path and the options after it, with whatever separates them; none: empty."""
    found = _CHAINED.fullmatch(text)
    return (found["path"], found["options"]) if found else (text, "")


def _value(spec: str, source: Source, name: str, text: str) -> object:
    if name not in source.options:
        rule = f"must be {_listed(list(source.options))}" if source.options else "must not be given: there are none"
        raise DataError(
            f"option of data {spec!r}", rule, value=repr(name), remedy=f"see {source.name} in pgnas list data"
        )
    try:
        return source.options[name](text)
    except ValueError as error:
        subject = f"option {name} of data {spec!r}"
        raise DataError(subject, f"must be {error}", value=repr(text), remedy="choose a value inside") from error


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"one of {', '.join(words)}"


def _unknown(spec: str, path: str, sources: dict[str, Source]) -> DataError:
    names = [name for name, source in sources.items() if not source.takes_path]
    kinds = [f"{name}:PATH" for name, source in sources.items() if source.takes_path]
    listed = f"one of {', '.join([*names, *kinds])}, or a folder of images or a .npz file"
    if os.path.isfile(path):
        return DataError(f"data {spec!r}", f"must be {listed}", value="another kind of file", remedy="unpack it first")
    if spec in sources:
        return DataError(f"data {spec!r}", "must name a path", value="none", remedy=f"write {spec}:PATH")
    if os.path.basename(path) != path or path.startswith(".") or path.lower().endswith(".npz"):
        return DataError(f"data {spec!r}", "must exist", value="no such file or folder", remedy="check the path")
    close = difflib.get_close_matches(spec.lower().replace("_", "-").partition(":")[0], sources, n=1)
    remedy = f"did you mean {close[0]!r}?" if close else "see pgnas list data"
    return DataError(f"data {spec!r}", f"must be {listed}", value="neither", remedy=remedy)
