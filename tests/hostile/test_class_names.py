"""Classes, files and folders with names that are markup, or not what a terminal should print."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgnas.stages import finishing

from .conftest import MODEL, Attempt

NAMES = ["<script>alert(1)<", '"><img src=x onerror=alert(1)>', "&amp;'`${x}", "猫 \u202e"]


class Tags(HTMLParser):
    """Every attribute of a page by tag, and its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name) for name, _ in attrs]


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_names_of_classes_are_text(
    attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finishing, "FORMATS", {})  # exported files hold no report
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 8, 8), dtype=np.uint8)
    labels = np.arange(48) % len(NAMES)
    if kind == "npz":
        np.savez("data.npz", x_train=pixels, y_train=labels, classes=np.array(NAMES))
    else:
        for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            home = Path("data") / NAMES[label].replace("/", "⁄")
            home.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(home / f"{index}<b>.png")
    words = ["run", "--model", MODEL, "--data", "data.npz" if kind == "npz" else "data", "--epochs", "1"]
    outcome = attempt([*words, "--batch-size", "16", "--candidates", "2", "--out", "<i>run"])
    assert outcome.code == 0, outcome.err
    page = Path("<i>run/report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    tags = Tags()
    tags.feed(page)
    assert not [pair for pair in tags.attributes if pair[1].startswith("onerror")]
    assert "\x1b" not in outcome.out + outcome.err
