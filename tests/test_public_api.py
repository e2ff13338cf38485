"""The one public door."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pgnas

PUBLIC = [
    "AnyOf", "Architecture", "Counts", "DataSet", "InputError", "Inspection", "OneOf", "PgnasError", "RunConfig",
    "RunError", "RunResult", "SearchResult", "Supernet", "channel_rule", "extract", "inspect", "load", "load_data",
    "measure", "measure_device", "predict", "run", "search", "supernet",
]  # fmt: skip


def test_the_public_names_are_these():
    assert sorted(pgnas.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(pgnas))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(pgnas, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_like_this"):
        pgnas.nothing_like_this  # noqa: B018


def test_importing_pgnas_is_cheap():
    code = "import sys, pgnas; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
