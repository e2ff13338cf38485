"""Files of settings that no one should have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import example, given
from hypothesis import strategies as st

from pgnas.config import field_names

from .conftest import HOSTILE, RUN, Attempt

scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=8),
    st.datetimes(),
    st.just("40%"),
    st.just("never"),
)
soup = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
names = st.one_of(st.sampled_from(field_names()), st.text(max_size=6))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def judge(attempt: Attempt, data: bytes) -> None:
    file = Path("settings.toml")
    file.write_bytes(data)
    outcome = attempt([*RUN, "--out", "out", "--config", str(file)])
    assert outcome.code is None or outcome.complaint
    assert file.read_bytes() == data


@given(table=st.dictionaries(names, soup, max_size=4))
@HOSTILE
def test_settings_of_any_kind(attempt: Attempt, no_work: None, table: dict[str, Any]) -> None:
    judge(attempt, tomli_w.dumps(table).encode())


@given(data=st.binary(max_size=40) | st.text("[]{}=\".,'\n#a1-", max_size=40).map(str.encode))
@example(data=b"a = " + b"[" * 100_000)
@example(data=b"a = " + b"{b = " * 50_000)
@example(data=b"a." * 4_000 + b"a = 1")
@example(data=b"#" * 100_000)
@example(data=b"seed = " + b"9" * 10_000)
@HOSTILE
def test_files_that_are_no_toml(attempt: Attempt, no_work: None, data: bytes) -> None:
    judge(attempt, data)
