"""The property that every hostile input must have: no traceback, no hang, and one clear line where it is refused."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from pgnas import stages
from pgnas.cli import main
from pgnas.config import RunConfig
from pgnas.stages import pipeline
from pgnas.stages.context import Context

MODEL = "multibranch-resnet:width=4,stages=2"
RUN = ["run", "--model", MODEL, "--data", "digits", "--epochs", "2", "--batch-size", "512", "--candidates", "2"]

settings.register_profile(
    "hostile",
    max_examples=int(os.environ.get("PGNAS_HOSTILE_EXAMPLES", "40")),
    deadline=None,
    derandomize="PGNAS_HOSTILE_EXAMPLES" not in os.environ,  # a gate must not fail by chance; bench/hostile.py explores
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    database=None,
)
HOSTILE = settings.get_profile("hostile")


@dataclass(frozen=True)
class Outcome:
    """What a command came to.

    Attributes:
        code: Its exit code; ``None`` if it began to work and was stopped there.
        out: What it wrote to stdout.
        err: What it wrote to stderr.
    """

    code: int | None
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line that says why it was refused."""
        assert self.code == 2, self
        lines = [line for line in self.err.splitlines() if line.startswith("pgnas: error: ")]
        assert len(lines) == 1, self.err
        assert self.err.endswith(lines[0] + "\n"), self.err  # nothing after it
        assert lines[0].isprintable(), lines[0]
        assert "Traceback" not in self.err
        return lines[0]


class Begun(BaseException):
    """Raised in place of long work."""


Attempt = Callable[[Sequence[str]], Outcome]


@pytest.fixture
def attempt() -> Attempt:
    """Run a command line in this process; an exception that is no error of pgnas's fails the test."""

    def run(words: Sequence[str]) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(list(words))
            except Begun:
                code = None
        return Outcome(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that pass every check stop where the work would begin."""

    def begin(context: Context, name: str, *_: object, **__: object) -> None:
        if not context.folder.stage_done(name):
            raise Begun

    monkeypatch.setattr(pipeline, "do_stage", begin)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("hostile") / "run"
    config = RunConfig(
        model=MODEL,
        data="digits",
        out=str(out),
        epochs=2,
        decide_at="50%",
        candidates=2,
        max_macs="60%",
        batch_size=512,
    )
    return stages.run(config).path
