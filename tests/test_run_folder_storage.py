from __future__ import annotations

import errno
import json
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnas.config import RunConfig
from pgnas.errors import FileError, RunFolderError, StorageError
from pgnas.run_folder import RunFolder, storage

Make = Callable[..., RunConfig]
Contents = Callable[[Path], dict[str, bytes]]


# Whole or absent


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "more room"),
        (errno.EROFS, "writable disk"),
        (errno.EACCES, "must be writable"),
        (errno.EIO, "could not be written"),
    ],
)
@pytest.mark.parametrize("where", ["replace", "fsync"])
def test_a_refused_write_leaves_what_was(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, code: int, words: str, where: str, contents: Contents
) -> None:
    folder.write_text("a.txt", "old")
    before = contents(folder.path)

    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    writes: list[Callable[[], None]] = [
        lambda: folder.write_text("a.txt", "new"),
        lambda: folder.write_json("b.json", {}),
        lambda: folder.save_tensors("c.safetensors", {"x": torch.ones(1)}),
        lambda: folder.save_checkpoint("d", {"x": torch.ones(1)}, 1),
        lambda: folder.mark_done("search", 1.0),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(os, where, refuse)
        for write in writes:
            with pytest.raises(StorageError, match=words) as caught:
                write()
            assert "\n" not in str(caught.value)
    assert contents(folder.path) == before
    assert not folder.stage_done("search")


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """A disk that really refuses: no file may grow past ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_in_the_middle_of_a_write(folder: RunFolder, contents: Contents) -> None:
    folder.append_metrics({"epoch": 1})
    folder.save_checkpoint("search", {"x": torch.ones(1)}, 1)
    before = contents(folder.path)
    big = torch.ones(100_000)
    with file_size_limit(3000):
        for write in (
            lambda: folder.append_metrics({"text": "x" * 5000}),
            lambda: folder.save_checkpoint("search", {"x": big}, 2),
            lambda: folder.save_tensors("x.safetensors", {"x": big}),
            lambda: folder.write_text("x.txt", "x" * 5000),
        ):
            with pytest.raises(StorageError):
                write()
    assert contents(folder.path) == before


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_place_that_may_not_be_written(make_config: Make, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunFolderError, match="can be made"):
        RunFolder.create_or_resume(make_config())


def test_an_exception_in_the_block_leaves_no_trace(folder: RunFolder, contents: Contents) -> None:
    before = contents(folder.path)

    def write_half() -> None:
        with folder.atomic("model.pt2") as path:
            assert path.suffix == ".pt2"
            path.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert contents(folder.path) == before


def test_names_stay_inside(folder: RunFolder) -> None:
    for name in ("../x", "/etc/x", "a/../../x"):
        with pytest.raises(ValueError, match="leads out"):
            folder.write_text(name, "")


def test_what_a_stage_needs_is_named(folder: RunFolder) -> None:
    with pytest.raises(RunFolderError, match=r"must hold posterior\.safetensors.*pgnas search"):
        folder.require("posterior.safetensors", stage="search")


def test_json_is_standard_even_when_the_loss_is_not_finite(folder: RunFolder) -> None:
    folder.write_json("a.json", {"loss": float("nan"), "all": [1.5, float("inf")]})
    assert json.loads(folder.file("a.json").read_text()) == {"loss": None, "all": [1.5, None]}


# Metrics

rows = st.lists(
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3), max_size=6
)


@settings(max_examples=50, deadline=None)
@given(rows, st.data())
def test_a_cut_file_reads_as_its_whole_lines(written: list[dict[str, object]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "metrics.jsonl")
        for row in written:
            storage.append_line(path, row)
        assert storage.read_lines(path) == written
        whole = path.read_bytes() if path.exists() else b""
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        count = whole[:cut].count(b"\n")
        assert storage.read_lines(path) == written[:count]
        storage.truncate_lines(path)
        storage.append_line(path, {"next": 1})
        assert storage.read_lines(path) == [*written[:count], {"next": 1}]
        storage.truncate_lines(path, 1)
        assert storage.read_lines(path) == [*written[:count], {"next": 1}][:1]


def test_resuming_does_not_repeat_rows(make_config: Make) -> None:
    with RunFolder.create_or_resume(make_config()) as folder:
        for epoch in range(3):
            folder.append_metrics({"epoch": epoch})
        with folder.file("metrics.jsonl").open("a") as file:
            file.write('{"epoch": ')  # killed here, the checkpoint of epoch 1 being the last
    with RunFolder.create_or_resume(make_config()) as folder:
        folder.truncate_metrics(2)
        folder.append_metrics({"epoch": 2})
        assert [row["epoch"] for row in folder.read_metrics()] == [0, 1, 2]


def test_a_damaged_line_in_the_middle_is_an_error(folder: RunFolder) -> None:
    folder.write_text("metrics.jsonl", '{"a": 1}\n{"a"\n{"a": 3}\n')
    with pytest.raises(FileError, match="line 2"):
        folder.read_metrics()
