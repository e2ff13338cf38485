"""A look at every image file before the work begins: its size, its colours, and whether it can be read at all."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from pgnas.errors import DataError

In = TypeVar("In")
Out = TypeVar("Out")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # not EPS and others that start programs
SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow reads 16-bit grey as one of these
MIXED_SIZE = 224
_GREY = ("1", "L", "LA", "La", *SIXTEEN_BIT)
_NAMED = 3  # broken images named in a message
_CHUNK = 128  # images a task
_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}


@dataclass(frozen=True)
class Header:
    """What the beginning of an image file says.

    Attributes:
        size: (width, height) in pixels.
        grey: Whether it has no colours.
    """

    size: tuple[int, int]
    grey: bool


@dataclass(frozen=True, eq=False)
class Inspection:
    """The headers of many image files.

    Attributes:
        good: By position in the list of files.
        broken: Likewise, in a few words why the file cannot be read.
    """

    good: dict[int, Header]
    broken: dict[int, str]

    @property
    def channels(self) -> int:
        """1 if all images are grey, else 3."""
        return 1 if all(header.grey for header in self.good.values()) else 3

    def target_size(self, image_size: int | None) -> tuple[tuple[int, int], str | None]:
        """The (width, height) that images shall have, and a note if that was a choice.

        Args:
            image_size: Side of a square; ``None``: as they are if all have one size, else 224.
        """
        if image_size is not None:
            return (image_size, image_size), None
        sizes = {header.size for header in self.good.values()}
        if len(sizes) == 1:
            return next(iter(sizes)), None
        note = f"images of {len(sizes):,} sizes: shorter side resized to {MIXED_SIZE}, centre square cropped"
        return (MIXED_SIZE, MIXED_SIZE), note


def inspect_images(root: str, paths: Sequence[str], *, whole: bool = False) -> Inspection:
    """Read the headers of the images ``root/path``, in threads.

    Args:
        root: The folder that ``paths`` are relative to.
        paths: At least one.
        whole: Also look whether the file is there to its end; what does not end as its format ends is decoded.
    """
    look = partial(_read_header, whole=whole)
    with quiet_pillow():
        found = in_threads(lambda path: attempt(look, os.path.join(root, path)), paths)
    good = {i: header for i, header in enumerate(found) if isinstance(header, Header)}
    return Inspection(good, {i: trouble for i, trouble in enumerate(found) if isinstance(trouble, str)})


def broken_skipped(
    root: str, paths: Sequence[str], broken: dict[int, str], *, skip: bool, kind: str = "folder"
) -> list[str]:
    """A note on the broken images, if they are to be skipped; ``kind`` is that of the data, as the user names it.

    Raises:
        DataError: They are not.
    """
    if not broken:
        return []
    if not skip:
        raise DataError(
            f"folder {shown(root)}",
            "must have no image that cannot be read",
            value=f"{len(broken):,} of {len(paths):,}: {listed(paths, broken)}",
            remedy=f"repair or remove them, or leave them out: {kind}:PATH:broken=skip",
        )
    return [f"{counted(len(broken), 'image')} skipped, unreadable: {listed(paths, broken)}"]


def require_readable(root: str, count: int) -> None:
    """Check that the images that are not broken are any.

    Raises:
        DataError: There is none.
    """
    if count == 0:
        raise DataError(f"folder {shown(root)}", "must hold readable images", value="none", remedy="check it")


def counted(number: int, noun: str) -> str:
    """``"1 image"``, ``"2 images"``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def shown(path: str) -> str:
    """A path that can be printed, whatever bytes are in it."""
    return os.fsencode(path).decode("utf-8", "replace")


def listed(paths: Sequence[str], broken: dict[int, str]) -> str:
    """The first few broken images by name, each with its reason."""
    first = [f"{shown(paths[i])} ({broken[i]})" for i in sorted(broken)[:_NAMED]]
    return ", ".join(first) + (", ..." if len(broken) > _NAMED else "")


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Pillow's warning of a huge image as an error, its warnings of odd metadata, of no consequence, not at all."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        yield


def in_threads(work: Callable[[In], Out], items: Sequence[In]) -> list[Out]:
    """``work`` of each item, in order; Pillow releases the GIL while it decodes."""
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(chain.from_iterable(pool.map(lambda chunk: [work(item) for item in chunk], chunks)))


def attempt(work: Callable[[str], Out], path: str) -> Out | str:
    """What ``work`` makes of the file, or in a few words why it cannot be read."""
    try:
        mode = os.stat(path)
        if not stat.S_ISREG(mode.st_mode):  # opening a pipe would wait for ever
            return "not a file"
        return "empty" if mode.st_size == 0 else work(path)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    except UnidentifiedImageError:
        return "not an image"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except Exception as error:  # a decoder that meets a broken file may raise anything
        return f"{type(error).__name__}: {error}"


_header = lru_cache(maxsize=4096)(Header)  # a million images have few different headers


def _read_header(path: str, *, whole: bool) -> Header:
    with Image.open(path, formats=FORMATS) as image:
        if image.mode == "F":
            raise ValueError("float pixels, whose range is unknown")
        if whole and not _ends_well(path, image.format or ""):
            image.load()
        return _header(image.size, image.mode in _GREY)


def _ends_well(path: str, kind: str) -> bool:
    """Whether the last bytes are those of a complete file of this format; some complete files end otherwise."""
    with open(path, "rb") as file:
        head = file.read(12)
        size = file.seek(0, os.SEEK_END)
        if kind == "WEBP":
            return int.from_bytes(head[4:8], "little") + 8 <= size
        ending = _ENDINGS.get(kind, b"")
        file.seek(-min(size, len(ending)), os.SEEK_END)
        return bool(ending) and file.read() == ending
