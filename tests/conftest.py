from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pgnas.config import RunConfig
from pgnas.run_folder import RunFolder

torch.set_num_threads(1)  # the networks of the tests are tiny: threads would only wait for each other


@pytest.fixture(autouse=True, scope="session")
def heeds_ctrl_c() -> Iterator[None]:
    """A job in the background of a shell ignores Ctrl-C, and so do its children; some tests press it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., RunConfig]:
    """A valid configuration whose run folder, not yet made, lies in ``tmp_path``."""

    def make(**changes: Any) -> RunConfig:
        settings: dict[str, Any] = {"model": "tiny", "data": "digits", "out": str(tmp_path / "run")}
        return RunConfig(**settings | changes)

    return make


@pytest.fixture
def folder(make_config: Callable[..., RunConfig]) -> Iterator[RunFolder]:
    """A new run folder."""
    with RunFolder.create_or_resume(make_config()) as folder:
        yield folder


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder, by its relative path."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return read
