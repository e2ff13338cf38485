"""Image folders that the tests write themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgnas.errors import DataError


def write_image(path: Path, seed: int = 0, *, size: tuple[int, int] = (10, 8), mode: str = "RGB") -> Path:
    """A random image; ``size`` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = rgba if mode == "RGBA" else rgba.convert("RGB").convert(mode)
    image.save(path)
    return path


def write_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 10, **options: object) -> Path:
    """``count`` images for each of ``classes``."""
    for label, name in enumerate(classes):
        for i in range(count):
            write_image(root / name / f"{i:03}.png", 1000 * label + i, **options)  # type: ignore[arg-type]
    return root


@pytest.fixture
def image() -> Callable[..., Path]:
    return write_image


@pytest.fixture
def folder() -> Callable[..., Path]:
    return write_folder


@pytest.fixture
def complaint() -> Callable[[Callable[[], object]], str]:
    """The message of the DataError that a call must raise: one line with a remedy."""

    def of(call: Callable[[], object]) -> str:
        with pytest.raises(DataError) as caught:
            call()
        message = str(caught.value)
        assert "\n" not in message
        assert caught.value.remedy
        return message

    return of
