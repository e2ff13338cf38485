from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnas.architecture import Architecture, format_ranges, parse_ranges, space_digest, unique
from pgnas.errors import ArchitectureError


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    sizes = draw(st.dictionaries(st.text(max_size=8), st.integers(1, 40), max_size=4))
    kept = {name: tuple(sorted(draw(st.sets(st.integers(0, size - 1))))) for name, size in sizes.items()}
    return Architecture(sizes, kept)


SMALL = Architecture({"a": 4, "b": 3}, {"a": (0, 1, 3), "b": ()})


@given(architectures())
def test_json_round_trip(architecture: Architecture) -> None:
    written = json.loads(json.dumps(architecture.to_json()))
    read = Architecture.from_json(written)
    assert read == architecture
    assert dict(read.kept) == dict(architecture.kept)
    assert dict(read.sizes) == dict(architecture.sizes)
    assert pickle.loads(pickle.dumps(architecture)) == architecture


def test_json_can_be_read_by_people() -> None:
    assert SMALL.to_json()["gates"] == {"a": {"size": 4, "kept": "0-1,3"}, "b": {"size": 3, "kept": ""}}


@given(architectures(), architectures())
def test_digest_is_the_identity(a: Architecture, b: Architecture) -> None:
    same = dict(a.sizes) == dict(b.sizes) and dict(a.kept) == dict(b.kept)
    assert (a.digest == b.digest) == same == (a == b)
    assert hash(a) == hash(Architecture(dict(reversed(a.sizes.items())), a.kept))
    assert a != a.digest


@given(architectures())
def test_flags_and_share_say_what_is_kept(architecture: Architecture) -> None:
    for name, size in architecture.sizes.items():
        flags = architecture.flags(name)
        assert [unit for unit, kept in enumerate(flags) if kept] == list(architecture.kept[name])
        assert architecture.share(name) == sum(flags) / size


@given(st.sets(st.integers(0, 60)))
def test_ranges_round_trip(indices: set[int]) -> None:
    assert parse_ranges(format_ranges(sorted(indices)), 61) == tuple(sorted(indices))


@pytest.mark.parametrize(("indices", "text"), [([], ""), ([5], "5"), ([0, 1, 2, 7, 9, 10], "0-2,7,9-10")])
def test_ranges(indices: list[int], text: str) -> None:
    assert format_ranges(indices) == text


@pytest.mark.parametrize("text", ["3", "2-3", "1,1", "1,0", "2-1", "-1", "1-", "a", "0,,1", "0;1", " "])
def test_malformed_ranges_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_ranges(text, 3)


@pytest.mark.parametrize(
    ("sizes", "kept", "message"),
    [
        ({"a": 2}, {}, r"^architecture gate 'a' must have both a size and kept units; .+$"),
        ({}, {"a": ()}, r"^architecture gate 'a' must have both a size and kept units; .+$"),
        ({"a": 2}, {"a": (0, 2)}, r"^architecture gate 'a' must keep ascending units in 0\.\.1, got 0,2; .+$"),
        ({"a": 2}, {"a": (-1,)}, r"^architecture gate 'a' must keep ascending units in 0\.\.1, got -1; .+$"),
        ({"a": 2}, {"a": (1, 0)}, r"^architecture gate 'a' must keep ascending units in 0\.\.1, got 1,0; .+$"),
        ({"a": 2}, {"a": (1, 1)}, r"^architecture gate 'a' must keep ascending units in 0\.\.1, got 1,1; .+$"),
        ({"a": 0}, {"a": ()}, r"^architecture gate 'a' must have at least one unit, got 0; .+$"),
    ],
)
def test_impossible_values_are_refused(sizes: dict[str, int], kept: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        Architecture(sizes, kept)


def test_space_does_not_depend_on_the_order() -> None:
    assert space_digest({"a": 1, "b": 2}) == space_digest({"b": 2, "a": 1}) != space_digest({"a": 2, "b": 1})
    SMALL.require_space({"b": 3, "a": 4})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"a": 4, "b": 5}, r"^architecture gate 'b' must have the supernet's size 5, got 3; use it with .+$"),
        ({"a": 4}, r"^architecture gate 'b' must have the supernet's size \(no such gate\), got 3; use it with .+$"),
        ({"a": 4, "b": 3, "c": 1}, r"^architecture gate 'c' must have the supernet's size 1, got no such gate; .+$"),
    ],
)
def test_another_search_space_is_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        SMALL.require_space(sizes)


def changed(**changes: Any) -> dict[str, Any]:
    return SMALL.to_json() | changes


@pytest.mark.parametrize(
    "value",
    [
        None, [], "text", {}, changed(format="other/1"), changed(gates=None), changed(gates=[1]),
        changed(gates={"a": {"size": 4}}), changed(gates={"a": {"size": 4, "kept": None}}),
        changed(gates={"a": {"size": 4, "kept": "0-9"}}), changed(gates={"a": {"size": "x", "kept": ""}}),
        changed(gates={"a": {"size": -4, "kept": ""}}), changed(gates={"a": 3}), changed(digest="0" * 16),
        changed(gates={"a": {"size": 4, "kept": "0"}, "b": {"size": 3, "kept": ""}}),
        changed(gates={"a": {"size": 10**12, "kept": "0-999999999999"}}),
    ],
)  # fmt: skip
def test_malformed_json_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(ArchitectureError) as caught:
        Architecture.from_json(value, subject="best.json")
    assert "\n" not in str(caught.value)


def test_the_file_is_named() -> None:
    with pytest.raises(ArchitectureError, match=r"^best.json must be of format pgnas.architecture/1; use an arch"):
        Architecture.from_json({}, subject="best.json")
    with pytest.raises(ArchitectureError, match=r"^best.json must match its own digest, got 0000; use an arch"):
        Architecture.from_json(changed(digest="0000"), subject="best.json")


def test_unique_keeps_the_order() -> None:
    other = Architecture(SMALL.sizes, {"a": (), "b": ()})
    twin = Architecture(dict(SMALL.sizes), dict(SMALL.kept))
    assert unique([SMALL, other, twin, other]) == [SMALL, other]
