"""Every error that pgnas raises on purpose.

    PgnasError                 something pgnas can explain
    +-- InputError             what the user handed in breaks a rule (CLI exit code 2)
    |   +-- ConfigError        a setting, flag or config file
    |   +-- ModelError         a network that cannot be found, built, traced or gated
    |   |   +-- RuleError      a user's channel rule that is registered wrongly or does not hold for its layer
    |   +-- DataError          a data set, an image, a label
    |   +-- ArchitectureError  an architecture that does not belong to this supernet
    |   +-- FileError          a file that is not what its name says
    |   +-- RunFolderError     a run folder that is locked, foreign or incomplete
    +-- RunError               a run that started well and went wrong (CLI exit code 1)
        +-- DivergedError      the loss became NaN or infinite
        +-- ExportError        an exported file does not reproduce the network
        +-- StorageError       the disk is full or read-only

Each message is one line with four parts: the subject, the rule, the value found, and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class PgnasError(Exception):
    """An error with a subject, the rule it breaks, the value found and what to do about it.

    Args:
        subject: What the error is about, named as the user knows it (``"--max-macs"``, a path, a layer).
        rule: What must hold for the subject, as a phrase that follows it (``"must be in (0 %, 100 %]"``).
        value: What was found instead; ``None`` when the rule already says it.
        remedy: What the user can do, as an imperative phrase.
    """

    exit_code = 1

    def __init__(self, subject: str, rule: str, *, value: object = None, remedy: str | None = None) -> None:
        self.subject = subject
        self.rule = rule
        self.value = value
        self.remedy = remedy
        message = f"{subject} {rule}"
        if value is not None:
            message += f", got {value}"
        if remedy is not None:
            message += f"; {remedy}"
        super().__init__(" ".join(message.split()))

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by fields, so that errors cross process boundaries (DataLoader workers) intact."""
        return _rebuild, (type(self), self.subject, self.rule, self.value, self.remedy)


def _rebuild(kind: type[PgnasError], subject: str, rule: str, value: object, remedy: str | None) -> PgnasError:
    return kind(subject, rule, value=value, remedy=remedy)


class InputError(PgnasError):
    """What the user handed in breaks a rule; nothing was started."""

    exit_code = 2


class ConfigError(InputError):
    """A setting, a flag or a config file breaks a rule."""


class ModelError(InputError):
    """A network cannot be found, built, traced or gated."""


class RuleError(ModelError):
    """A channel rule of the user's is registered wrongly, or does not hold for its layer."""


class DataError(InputError):
    """A data set cannot be read or breaks a rule."""


class ArchitectureError(InputError):
    """An architecture does not belong to the supernet it is used with."""


class FileError(InputError):
    """A file is not what it is taken for: truncated, of another format, or of another model."""


class RunFolderError(InputError):
    """A run folder is in use, holds another run, or lacks what a stage needs."""


class RunError(PgnasError):
    """A run that started well went wrong."""


class DivergedError(RunError):
    """The training loss became NaN or infinite; the last good checkpoint is kept."""


class ExportError(RunError):
    """An exported file does not reproduce the network that it was made of; it was not kept."""


class StorageError(RunError):
    """The disk refused a write; what was saved before is intact."""


@contextmanager
def told_under(flag: str, *, instead_of: str) -> Iterator[None]:
    """Tell an error about one flag under the flag by which the user gave its value, here one of a list."""
    try:
        yield
    except ConfigError as error:
        if error.subject != instead_of:
            raise
        raise ConfigError(flag, error.rule, value=error.value, remedy=error.remedy) from error


def first_line(error: BaseException) -> str:
    """The first line of what somebody else's error says, or else its type, to be told in one of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
