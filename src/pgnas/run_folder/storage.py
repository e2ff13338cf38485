"""Writing that a kill or a full disk cannot leave half done, and JSON lines that survive both."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from pgnas.errors import FileError, StorageError

TEMPORARY_PREFIX = ".pgnas-tmp-"

_RULES: dict[int | None, tuple[str, str]] = {
    errno.ENOSPC: ("needs more room than the disk has left", "free some space and run the same command again"),
    errno.EDQUOT: ("needs more room than your disk quota leaves", "free some space and run the same command again"),
    errno.EFBIG: ("is larger than the system lets a file grow", "raise the limit (ulimit -f) and run again"),
    errno.EROFS: ("must be on a writable disk", "choose another --out or remount the disk"),
    errno.EACCES: ("must be writable", "correct its permissions or choose another --out"),
    errno.EPERM: ("must be writable", "correct its permissions or choose another --out"),
}


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` while writing ``path`` into one clear line.

    Raises:
        StorageError: The disk is full, read-only or refuses the write for another reason.
    """
    try:
        yield
    except OSError as error:
        rule, remedy = _RULES.get(error.errno, ("could not be written", "see to the disk and run again"))
        raise StorageError(str(path), rule, value=error.strerror or str(error), remedy=remedy) from error


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that becomes ``path`` when the block ends well and vanishes when it does not.

    Raises:
        StorageError: The disk refused a write; ``path`` is as it was before.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{path.name}")
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, whole or not at all.

    Raises:
        StorageError: The disk refused the write; ``path`` is as it was before.
    """
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def require_target(path: Path) -> None:
    """Check, before the work whose result it shall hold, that a file can be where the user wants it.

    Raises:
        FileError: ``path`` is a folder, or lies below a file.
    """
    above = next((parent for parent in path.parents if os.path.lexists(parent)), path.parent)
    if os.path.isdir(path) or (os.path.lexists(above) and not os.path.isdir(above)):
        found = "a folder" if os.path.isdir(path) else f"{above} is a file"
        raise FileError(str(path), "must be a file that can be made", value=found, remedy="choose another name")


def remove_temporaries(folder: Path) -> None:
    """Remove the files that a killed writer left behind in ``folder`` and below.

    A folder stays: it is a copy that is being made, or that its command begins again.
    """
    for path in folder.rglob(TEMPORARY_PREFIX + "*"):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)


def to_json(value: object, *, indent: int | None = None) -> str:
    """``value`` as standard JSON; NaN and infinities, which JSON lacks, become ``null``."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def append_line(path: Path, row: Mapping[str, object]) -> None:
    """Add one JSON line; on a full disk the half-written line is taken back.

    Raises:
        StorageError: The disk refused the write; the earlier lines are intact.
    """
    data = (to_json(row) + "\n").encode()
    with explained(path), path.open("ab", buffering=0) as file:
        start = file.tell()
        try:
            written = file.write(data)
            while written < len(data):  # a nearly full disk takes a part first and refuses the rest
                written += file.write(data[written:])
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(start)
            raise


def read_lines(path: Path) -> list[dict[str, object]]:
    """The rows of a JSON-lines file; no file is no rows, and a half-written last line does not count.

    Raises:
        FileError: Another line than the last is not JSON, or the file cannot be read.
    """
    rows = []
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise FileError(f"{path} line {number}", "must be a JSON object", remedy="restore or delete the file")
        rows.append(row)
    return rows


def read_json(path: Path) -> object:
    """The value of a JSON file.

    Raises:
        FileError: It cannot be read, or is damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(
            str(path),
            "must be readable JSON",
            value=error,
            remedy="restore the file, or repeat the stage that wrote it",
        ) from error


def truncate_lines(path: Path, rows: int | None = None) -> None:
    """Keep the first ``rows`` lines (``None``: all whole ones); more than there are keeps them all.

    Raises:
        StorageError: The disk refused the write.
    """
    if not path.exists():
        return
    kept = sum(len(line) for line in _whole_lines(path)[:rows])
    with explained(path):
        os.truncate(path, kept)


def _whole_lines(path: Path) -> list[bytes]:
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise FileError(
            str(path), "must be a readable file", value=error.strerror, remedy="restore or delete it"
        ) from error
    return [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; some file systems cannot sync a folder, and lose nothing but durability."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
