"""Images, arrays and weights whose bytes were changed, cut or invented."""

from __future__ import annotations

import contextlib
import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from pgnas.errors import FileError
from pgnas.run_folder.tensors import load_tensors

from .conftest import HOSTILE, MODEL, Attempt

PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8)


def encoded(format: str, mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, format)
    return file.getvalue()


def arrays(**values: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **values)
    return file.getvalue()


IMAGES = {
    "png": encoded("PNG"),
    "palette.png": encoded("PNG", "P"),
    "rgba.png": encoded("PNG", "RGBA"),
    "sixteen.png": encoded("PNG", "I;16"),
    "jpg": encoded("JPEG", "RGB"),
    "gif": encoded("GIF"),
    "bmp": encoded("BMP"),
    "tiff": encoded("TIFF"),
    "webp": encoded("WEBP", "RGB"),
    "ppm": encoded("PPM", "RGB"),
}
LABELS = np.arange(40) % 2
BIG = np.lib.format.header_data_from_array_1_0(np.zeros((1, 8, 8), np.uint8)) | {"shape": (10**9, 8, 8)}


def bomb() -> bytes:
    """An archive whose array promises 64 GB and holds nothing."""
    header, file = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, BIG)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", header.getvalue() + b"\0" * 10_000_000)
        archive.writestr("y_train.npy", header.getvalue())
    return file.getvalue()


WHOLE = arrays(x_train=np.tile(PIXELS, (40, 1, 1)), y_train=LABELS)
ARRAYS = {
    "whole": WHOLE,
    "bomb": bomb(),
    "nan": arrays(x_train=np.full((40, 8, 8), np.nan), y_train=LABELS),
    "inf": arrays(x_train=np.full((40, 8, 8), np.inf), y_train=LABELS),
    "complex": arrays(x_train=np.ones((40, 8, 8), complex), y_train=LABELS),
    "text": arrays(x_train=np.full((40, 8, 8), "x"), y_train=LABELS),
    "dates": arrays(x_train=np.zeros((40, 8, 8), "M8[s]"), y_train=LABELS),
    "flat": arrays(x_train=np.ones((40, 8)), y_train=LABELS),
    "no pixels": arrays(x_train=np.ones((40, 0, 8)), y_train=LABELS),
    "no images": arrays(x_train=np.ones((0, 8, 8)), y_train=LABELS[:0]),
    "fewer labels": arrays(x_train=np.ones((40, 8, 8)), y_train=LABELS[:9]),
    "labels of two axes": arrays(x_train=np.ones((40, 8, 8)), y_train=LABELS.reshape(2, 20)),
    "labels below 0": arrays(x_train=np.ones((40, 8, 8)), y_train=LABELS - 1),
    "one class": arrays(x_train=np.ones((40, 8, 8)), y_train=LABELS * 0),
    "a class an image": arrays(x_train=np.ones((40, 8, 8)), y_train=np.arange(40)),
    "labels that are nan": arrays(x_train=np.ones((40, 8, 8)), y_train=np.full(40, np.nan)),
    "one pixel": arrays(x_train=np.ones((40, 1, 1)), y_train=LABELS),
    "two-dimensional names": arrays(x_train=np.ones((40, 8, 8)), y_train=LABELS, classes=np.array([["a"], ["b"]])),
    "names too few": arrays(x_train=np.ones((40, 8, 8)), y_train=LABELS, classes=np.array(["a"])),
    "test of other size": arrays(x_train=PIXELS[None], y_train=LABELS[:1], x_test=PIXELS[None, 1:], y_test=LABELS[:1]),
}  # fmt: skip


@st.composite
def changed(draw: st.DrawFn, data: bytes) -> bytes:
    """``data`` with a few bytes changed, or cut, or with something behind it."""
    made = bytearray(data)
    for place in draw(st.lists(st.integers(0, len(made) - 1), max_size=4)):
        made[place] = draw(st.integers(0, 255))
    return bytes(made[: draw(st.integers(0, len(made)) | st.just(len(made)))]) + draw(st.binary(max_size=4))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def judge(attempt: Attempt, data: str) -> None:
    outcome = attempt(
        ["run", "--model", MODEL, "--data", data, "--out", "out", "--image-size", "8", "--batch-size", "8"]
    )
    assert outcome.code is None or outcome.complaint
    shutil.rmtree("out", ignore_errors=True)


@given(data=st.data(), name=st.sampled_from(sorted(IMAGES)), option=st.sampled_from(["", ":broken=skip", ":stream=on"]))
@HOSTILE
def test_images(attempt: Attempt, no_work: None, data: st.DataObject, name: str, option: str) -> None:
    for label in ("猫", "b c"):
        Path("images", label).mkdir(parents=True, exist_ok=True)
        for number in range(12):
            Path("images", label, f"{number}.png").write_bytes(IMAGES["png"])
    victim = Path("images", "猫", f"x.{name}")
    victim.write_bytes(data.draw(changed(IMAGES[name])))
    judge(attempt, f"folder:images{option}")
    victim.unlink()


@given(data=changed(WHOLE))
@HOSTILE
def test_changed_arrays(attempt: Attempt, no_work: None, data: bytes) -> None:
    Path("data.npz").write_bytes(data)
    judge(attempt, "data.npz")


@pytest.mark.parametrize("name", sorted(ARRAYS))
def test_arrays(attempt: Attempt, no_work: None, name: str) -> None:
    Path("data.npz").write_bytes(ARRAYS[name])
    judge(attempt, "data.npz")


def tensors() -> bytes:
    save_file(
        {"a": torch.arange(6.0), "b": torch.ones(2, 3, dtype=torch.int64)}, "made.safetensors", metadata={"k": "v"}
    )
    return Path("made.safetensors").read_bytes()


@given(data=st.data())
@HOSTILE
def test_tensors(data: st.DataObject) -> None:
    path = Path("some.safetensors")
    path.write_bytes(data.draw(changed(tensors())))
    with contextlib.suppress(FileError):  # and nothing else
        found, _ = load_tensors(path)
        assert all(value.numel() < 100 for value in found.values())
