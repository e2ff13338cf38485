"""Any flags, any values: accepted, or refused in one line before the work begins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnas.cli.flags import flag_names
from pgnas.cli.main import app

from .conftest import HOSTILE, RUN, Attempt

NUMBERS = ["0", "-1", "1", "2.5", "nan", "inf", "-inf", "1e999", "1e-320", "9" * 400, "٣", "1_0", "0x10", "+1", "40%"]
AMOUNTS = [
    "0%",
    "-1%",
    "100.1%",
    "%",
    "nan%",
    "1e400%",
    "2M",
    "1KB",
    "8ms",
    "-8ms",
    "infms",
    "30min",
    "never",
    "99.999999%",
]
TEXTS = [
    "",
    " ",
    "\x00",
    "\x1b[31m",
    "\udc80",
    "é\n",
    "--epochs",
    "-",
    "=",
    "a=b",
    ",",
    "1,,2",
    "[",
    "{}",
    "*",
    "../x",
    "%s",
]
MODELS = [
    "",
    ":",
    "multibranch-resnet",
    "multibranch-resnet:",
    "multibranch-resnet:width",
    "multibranch-resnet:width=",
    "multibranch-resnet:width=0",
    "multibranch-resnet:width=-4",
    "multibranch-resnet:width=x",
    "multibranch-resnet:wide=4",
    "multibranch-resnet:width=4,width=8",
    "multibranch-resnet:stages=0",
    "multibranch-resnet:width=1e9",
    "torchvision:",
    "torchvision:nope",
    "torchvision:resnet18:x=1",
    "timm:",
    "timm:nope",
    "nosuch:thing",
    "os:getcwd",
    "builtins:int",
    "json:loads",
    "a.b.c:d",
    "..:x",
    "os:nope",
    "x" * 5000,
    "multibranch-resnet:" + "width=4," * 50,
]
DATA = [
    "",
    ":",
    "digits:",
    "digits:stream=on",
    "nope",
    "npz:",
    "npz:none.npz",
    "folder:",
    "folder:none",
    "folder:.:broken=skip",
    "folder:.:stream=maybe",
    "folder:.:stream",
    "imagenet:.",
    "clips:.",
    "clips:.:frames=0",
    "clips:.:frames=x",
    "clips:.:frames=-1",
    "npz:none.npz:up=q",
    "cifar10:x=1",
    "x" * 5000,
    "\x00",
    "npz:\x00.npz",
    "\udc80",
    "none.npz",
    "/dev/null",
    "npz:/dev/null",
]

values = st.one_of(
    st.sampled_from(NUMBERS + AMOUNTS + TEXTS), st.text(max_size=12), st.integers().map(str), st.floats().map(str)
)
flags = st.sampled_from(sorted(flag_names().values()))
pairs = st.one_of(
    st.tuples(flags.filter(lambda flag: flag not in ("--out", "--model", "--data")), values),
    st.tuples(st.just("--model"), st.sampled_from(MODELS)),
    st.tuples(st.just("--data"), st.sampled_from(DATA)),
    st.tuples(st.just("--out"), st.sampled_from([*TEXTS, "out", "file/below", "."])),
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")


def judge(attempt: Attempt, words: list[str]) -> None:
    before = set(Path().iterdir())
    outcome = attempt(words)
    if outcome.code != 0 and outcome.code is not None:
        assert outcome.complaint
    if outcome.code == 2:
        assert set(Path().iterdir()) == before  # a refusal leaves nothing behind
    for path in set(Path().iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@given(chosen=st.lists(pairs, min_size=1, max_size=3))
@HOSTILE
def test_flags_of_a_run(attempt: Attempt, no_work: None, chosen: list[tuple[str, str]]) -> None:
    words = [*RUN, "--out", "out"]
    given_flags = {flag for flag, _ in chosen}
    kept = [
        word
        for flag, value in zip(words[1::2], words[2::2], strict=True)
        if flag not in given_flags
        for word in (flag, value)
    ]
    judge(attempt, ["run", *kept, *(word for pair in chosen for word in pair)])


COMMANDS = sorted(name for name in app if not name.startswith("-"))


@given(
    words=st.lists(
        st.one_of(
            values,
            flags,
            st.sampled_from(["--samples", "--caps", "--points", "--scale", "--preset", "--seeds", "--json", "--until"]),
        ),
        max_size=5,
    ),
    command=st.sampled_from(COMMANDS),
)
@HOSTILE
def test_words_after_any_command(attempt: Attempt, no_work: None, command: str, words: list[str]) -> None:
    judge(attempt, [command, *words])
