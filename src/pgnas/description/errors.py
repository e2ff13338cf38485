"""What is wrong with a description, before it is known which file or which network to name."""

from __future__ import annotations

_LONGEST = 80


class DescriptionError(ValueError):
    """A part of a description breaks a rule.

    Args:
        part: The part, as ``"node 'conv1'"``.
        rule: What must hold for it, as a phrase.
        value: What was found instead, if the rule does not say it; anything, as only its shortened ``repr`` is kept.
    """

    def __init__(self, part: str, rule: str, value: object = None) -> None:
        self.part, self.rule = part, rule
        self.value = None if value is None else shown(value)
        super().__init__(f"{part} {rule}" + (f", got {self.value}" if self.value else ""))


def shown(value: object) -> str:
    """A value of a file in a message: short, on one line and without control characters."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
