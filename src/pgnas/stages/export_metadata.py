"""What an exported file says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pgnas.errors import FileError
from pgnas.run_folder.environment import version
from pgnas.run_folder.storage import to_json

FORMAT = "pgnas.export/1"

_TEXTS = ("architecture", "version", "torch")


@dataclass(frozen=True)
class ExportMetadata:
    """What whoever gets the file alone must know to use it, and where it comes from; all of it JSON values.

    Attributes:
        class_names: The name of each logit.
        preprocessing: channels, height, width, mean and std, as of ``Preprocessing.to_dict``.
        architecture: The architecture's digest.
        params: The number of parameters.
        macs: Multiply-adds an image.
        settings: What the run was asked for.
        version: The version of pgnas that made it.
        torch: The version of torch that made it.
    """

    class_names: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    architecture: str
    params: int
    macs: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    version: str = field(default_factory=lambda: version("pgnas") or "unknown")
    torch: str = field(default_factory=lambda: version("torch") or "unknown")

    def to_strings(self) -> dict[str, str]:
        """As safetensors and ONNX hold it: the digest and the versions as they are, the others as JSON."""
        values = {key: value for key, value in vars(self).items() if key not in _TEXTS}
        texts = {key: str(getattr(self, key)) for key in _TEXTS}
        return {"format": FORMAT, **texts, **{key: _text(value) for key, value in values.items()}}

    def to_json(self) -> str:
        """One JSON object."""
        values = {
            key: text if key in ("format", *_TEXTS) else json.loads(text) for key, text in self.to_strings().items()
        }
        return to_json(values, indent=2)

    @classmethod
    def from_strings(cls, strings: Mapping[str, str], *, subject: str) -> ExportMetadata:
        """The inverse of :meth:`to_strings`; ``subject`` is the file's name, for the error.

        Raises:
            FileError: These are not the strings of an export.
        """
        remedy = "use a file that pgnas export wrote"
        if strings.get("format") != FORMAT:
            raise FileError(subject, f"must hold metadata of format {FORMAT}", remedy=remedy)
        try:
            names = (entry.name for entry in fields(cls))
            values = {name: strings[name] if name in _TEXTS else json.loads(strings[name]) for name in names}
            return cls(**values | {"class_names": tuple(values["class_names"])})
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(subject, "must hold whole metadata", value=repr(error), remedy=remedy) from error


def _text(value: object) -> str:
    """JSON that UTF-8 can hold: a folder's name, which becomes a class's, may hold bytes that are no text."""
    return to_json(value).encode("utf-8", "replace").decode()
