"""Finished runs of which one file is damaged, gone, or another run's."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import pgnas
from pgnas.errors import InputError
from pgnas.run_folder import RunFolder
from pgnas.stages import STAGES

from .conftest import HOSTILE, RUN, Attempt

DEEP = "PGNAS_HOSTILE_EXAMPLES" in os.environ


def truncated(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def gone(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) // 2] ^= 4
    path.write_bytes(data)


def of_other_shape(path: Path) -> None:
    path.write_text('{"a": [1, null], "b": {"c": "d"}}\n' if path.suffix != ".toml" else "a = 1\n")


def a_list(path: Path) -> None:
    path.write_text("[1]\n")


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


SPOILS = [truncated, emptied, garbage, gone, a_folder, a_loop, flipped, of_other_shape, a_list, deep]
FILES = [
    "architecture.json", "candidates.jsonl", "config.toml", "env.json", "extracted.safetensors",
    "found.safetensors", "metrics.jsonl", "model.safetensors", "momentum.safetensors", "network.json",
    "operations.json", "posterior.safetensors", "predictions.safetensors", "reliability.json", "result.json",
    "stages.json", "supernet.json", "temperatures.json",
]  # fmt: skip
WRITTEN_AGAIN = {
    "metrics.jsonl",
    "model.onnx",
    "model.pt2",
    "model.py",
    "model.safetensors",
    "network.json",
    "result.json",
}
"""By fine-tuning: the network that they hold is another one then, or they get longer."""
REFUSED_BY_THE_DISK = (a_folder, a_loop)  # where pgnas wants to write: a disk's fault, exit code 1


@pytest.fixture
def copy_of(finished: Path, tmp_path: Path) -> Callable[[], contextlib.AbstractContextManager[Path]]:
    """A copy of the finished run for each example."""

    @contextlib.contextmanager
    def make() -> Iterator[Path]:
        run = tmp_path / "run"
        shutil.copytree(finished, run)
        try:
            yield run
        finally:
            shutil.rmtree(run)

    return make


def contents(run: Path, *, besides: str) -> dict[str, bytes]:
    notes = {besides, ".pgnas.lock", "env.json", "progress.json", "stages.json", "report.html"}
    return {p.name: p.read_bytes() for p in run.iterdir() if p.is_file() and p.name not in notes}


def judge(attempt: Attempt, words: list[str], run: Path, name: str, spoil: Callable[[Path], None]) -> None:
    spoil(run / name)
    before = contents(run, besides=name)
    outcome = attempt(words)
    if outcome.code == 1 and spoil in REFUSED_BY_THE_DISK:
        assert outcome.err.count("pgnas: error: ") == 1
    elif outcome.code:
        assert outcome.complaint
    after = contents(run, besides=name)
    if words[0] == "finetune" and outcome.code == 0:
        assert before.keys() <= after.keys()
        assert after.get("metrics.jsonl", b"").startswith(before.get("metrics.jsonl", b""))
        before = {file: data for file, data in before.items() if file not in WRITTEN_AGAIN}
    assert before.items() <= after.items()  # nothing saved is lost


@given(
    name=st.sampled_from(FILES),
    spoil=st.sampled_from(SPOILS),
    stage=st.sampled_from([*(name for name in STAGES if name != "report"), "status"]),
    forget=st.booleans(),
    whole=st.booleans(),
)
@HOSTILE
def test_stages(
    attempt: Attempt,
    no_work: None,
    copy_of: Callable[[], contextlib.AbstractContextManager[Path]],
    name: str,
    spoil: Callable[[Path], None],
    stage: str,
    forget: bool,
    whole: bool,
) -> None:
    with copy_of() as run:
        if forget:
            with RunFolder.open(run) as opened:
                opened.forget_from(stage)
        words = [*RUN, "--max-macs", "60%", "--decide-at", "50%", "--out", str(run)] if whole else [stage, str(run)]
        judge(attempt, words, run, name, spoil)


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("name", ["model.safetensors", "network.json"])
def test_loading(
    copy_of: Callable[[], contextlib.AbstractContextManager[Path]], name: str, spoil: Callable[[Path], None]
) -> None:
    with copy_of() as run:
        spoil(run / name)
        if name == "network.json" and spoil in (gone, a_loop):  # the one file is enough
            pgnas.load(run)
        else:
            with pytest.raises(InputError, match=re.escape(str(run))):
                pgnas.load(run)


@given(name=st.sampled_from(FILES), spoil=st.sampled_from(SPOILS))
@HOSTILE
@pytest.mark.skipif(not DEEP, reason="set PGNAS_HOSTILE_EXAMPLES to try commands that work on finished runs")
def test_commands_that_work(
    attempt: Attempt,
    copy_of: Callable[[], contextlib.AbstractContextManager[Path]],
    tmp_path: Path,
    name: str,
    spoil: Callable[[Path], None],
) -> None:
    image = tmp_path / "image.png"
    Image.new("L", (8, 8), 100).save(image)
    for words in (
        ["predict", "RUN", str(image), "--samples", "2"],
        ["report", "RUN"],
        ["finetune", "RUN", "--epochs", "1"],
        ["compare", "RUN", "RUN", "--out", str(tmp_path / "compare.html")],
    ):
        with copy_of() as run:
            judge(attempt, [str(run) if word == "RUN" else word for word in words], run, name, spoil)


@pytest.mark.parametrize("field", ["value", "interval", "runner_up", "params", "temperature"])
@pytest.mark.parametrize("words", [["finetune", "RUN", "--epochs", "1"], ["status", "RUN"], ["report", "RUN"]])
def test_a_result_with_a_field_renamed_is_refused_or_told_without_it(
    attempt: Attempt,
    copy_of: Callable[[], contextlib.AbstractContextManager[Path]],
    no_work: None,
    words: list[str],
    field: str,
) -> None:
    def rename(path: Path) -> None:
        path.write_text(path.read_text().replace(f'"{field}"', '"x"'))

    with copy_of() as run:
        judge(attempt, [str(run) if word == "RUN" else word for word in words], run, "result.json", rename)
