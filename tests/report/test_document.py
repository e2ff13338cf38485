from __future__ import annotations

import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import matplotlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnas.report import headline, render_report
from pgnas.report.values import duration, percent, short_count

VOID = {"meta", "link", "br", "wbr", "hr", "img", "input"}
HOSTILE = '<script src="http://evil.example/x.js">alert(1)</script>"\'&$x_1^2$\x00\udcff'


class Checker(HTMLParser):
    """Collects elements, text and ids; tags must nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    def named(self, *tags: str) -> Iterator[dict[str, str | None]]:
        return (attributes for tag, attributes in self.elements if tag in tags)


def checked(html: str) -> Checker:
    html.encode()
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    ids = [attributes["id"] for _, attributes in checker.elements if "id" in attributes]
    assert len(ids) == len(set(ids)), "an id occurs twice"
    assert not {tag for tag, _ in checker.elements} & {"script", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in checker.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
                assert value is not None
                assert value.startswith(("#", "data:")), f"{tag} asks for {value}"
            if name == "style":
                assert "url(" not in str(value).replace("url(#", "")
    assert "@import" not in html
    return checker


def repr_start(value: object) -> str:
    return repr(value)[:8]


def make_arguments() -> dict[str, Any]:
    candidates = [
        {
            "digest": f"d{i}",
            "params": 1000 + 10 * i,
            "macs": 400_000 - 1000 * i if i else 300_000,
            "accuracy": 0.8 + i / 100,
            "is_mode": i == 2,
        }
        for i in range(6)
    ]
    history = [
        {
            "stage": "search",
            "epoch": i,
            "loss": 2 / i,
            "accuracy": 0.5 + i / 20,
            "cost": 1 / i,
            "lambda": 0.1 * i,
            "lr": 0.1,
            "keep_by_gate": {"layer1.conv": 1 - i / 10, "fc": 1.0},
        }
        for i in range(1, 5)
    ]
    history += [{"stage": "train", "epoch": i, "loss": 1 / i, "accuracy": 0.9, "lr": 0.1} for i in range(5, 9)]
    result = {
        "full": {"params": 10_000, "macs": 1_000_000},
        "supernet": {"val_accuracy": 0.93, "test_accuracy": 0.92},
        "found": {"params": 1050, "macs": 395_000, "val_accuracy": 0.985, "test_accuracy": 0.979, "test_images": 400},
        "cap": {"macs": 400_000, "params": None},
        "candidates": {"count": 6, "val_mean": 0.82, "val_std": 0.02, "val_best": 0.85},
        "seed": 0,
        "seconds": {"search": 75.2, "sample": 3.0},
        "baselines": {
            "full": {"params": 10_000, "macs": 1_000_000, "val_accuracy": 0.97, "test_accuracy": 0.96, "epochs": 4}
        },
        "notes": ["no test split: one was made"],
        "settings": {"model": "tiny", "data": "digits", "epochs": 8, "baseline": ("full",), "weights": None},
        "environment": {"torch": "2.9", "command": "pgnas run --model tiny", "cuda_devices": []},
    }
    summary = {
        "gates": {"layer1.conv": {"units": 8, "kept": 3}, "fc": {"units": 16, "kept": 16, "keep": 0.9}},
        "ungated": [["stem", "it reads the network's input"]],
        "barriers": [["reshape_1", "it reshapes (2, 8) to (2, 4, 2)"]],
        "notes": ["functional dropout became a layer"],
    }
    operations = [
        drawn("input x", "input", [], makes=1),
        drawn("layer1.conv", "conv 3x3", [0], reads=8, kept_reads=3, makes=16, kept_makes=9),
        drawn("pruned.conv", "conv 1x1", [0], reads=8, kept_reads=0, makes=16, kept_makes=0),
        drawn("layer1: add()", "sum", [1, 2, 0], makes=16, kept_makes=9),
        drawn("output", "output", [3], makes=1),
    ]
    bins = [{"confidence": 0.1 * i, "accuracy": 0.1 * i - 0.05, "count": 10 * i} for i in range(1, 10)]
    return {
        "result": result,
        "history": history,
        "candidates": candidates,
        "supernet_summary": summary,
        "operations": {"operations": operations},
        "reliability": {"found": {"bins": bins}, "full": {"bins": bins[:2]}},
        "others": {"random": [{"accuracy": 0.3}, {"accuracy": 0.4}]},
    }


def drawn(name: str, kind: str, inputs: list[int], **channels: int) -> dict[str, Any]:
    counts = {"reads": 0, "kept_reads": 0, "kept_makes": channels.get("makes", 0)} | channels
    return {"name": name, "kind": kind, "inputs": inputs, "gate": name, **counts}


def test_the_report_says_what_was_found() -> None:
    page = checked(render_report(**make_arguments()))
    words = " ".join(" ".join(page.words).split()).replace("\u00a0", " ")
    for expected in (
        "Found network: 97.9 % on the test images with 39.5 % of the multiply-adds and 10.5 % of the parameters",
        "The cap of 400,000 multiply-adds is met: the network has 395,000.",
        "82.0 % ± 2.0 %",
        "Baseline: full",
        "3 of 8",
        "it reads the network's input",
        "it reshapes (2, 8) to (2, 4, 2)",
        "no test split: one was made",
        "functional dropout became a layer",
        "pgnas run --model tiny",
        "1 min 15 s",
        "posterior mode",
        "chosen",
        "front",
        "full network",
        "3 of 8",
        "dropped",
        "random (2)",
        "mean keep probability",
        "confidence, %",
        "validation accuracy, %",
        "multiplier λ",
    ):
        assert expected in words, expected


def test_the_operations_chosen_are_told_with_their_probabilities() -> None:
    arguments = make_arguments()
    arguments["supernet_summary"] |= {
        "choices": {"cell.edge": {"skip": 0.25, "conv": 0.75}, "side": {"pool": 0.125}},
        "chosen": {"cell.edge": ["conv"], "side": []},
    }
    words = " ".join(checked(render_report(**arguments)).words)
    assert "Which operations were chosen" in words
    assert all(part in words for part in ("conv", "skip 25", "conv 75", "pool 12", "nothing"))
    assert "Which operations" not in " ".join(checked(render_report(**make_arguments())).words)


def test_the_page_can_be_read_by_everyone() -> None:
    page = checked(render_report(**make_arguments()))
    assert next(page.named("html"))["lang"] == "en"
    assert any("width=device-width" in str(meta.get("content")) for meta in page.named("meta"))
    figures = [svg for svg in page.named("svg") if "role" in svg]
    assert len(figures) == len(list(page.named("figure"))) == len(list(page.named("figcaption"))) == 6
    assert all(svg["aria-label"] for svg in figures)
    assert len(list(page.named("title"))) == 1 + len(make_arguments()["operations"]["operations"])
    assert len(list(page.named("table"))) == len(list(page.named("caption")))
    assert all(head.get("scope") for head in page.named("th"))
    assert len(list(page.named("h1"))) == 1
    headings = {attributes["id"] for attributes in page.named("h2")}
    assert {attributes["aria-labelledby"] for attributes in page.named("section")} == headings
    assert "prefers-color-scheme: dark" in render_report(**make_arguments())


def test_the_same_run_gives_the_same_file_and_changes_no_settings() -> None:
    before = dict(matplotlib.rcParams)
    first = render_report(**make_arguments())
    assert first == render_report(**make_arguments())
    assert dict(matplotlib.rcParams) == before


def test_the_page_names_no_other_host() -> None:
    assert not re.search(r"(?:https?:)?//[a-z]", render_report(**make_arguments()))


def test_names_are_escaped_wherever_they_occur() -> None:
    def hostile(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: hostile(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [hostile(item) for item in value]
        return HOSTILE if isinstance(value, str) else value

    arguments = hostile(make_arguments())
    arguments["supernet_summary"]["gates"] = {HOSTILE: {"units": 8, "kept": 3}}
    arguments["supernet_summary"]["choices"] = {HOSTILE: {HOSTILE: 0.5}}
    arguments["supernet_summary"]["chosen"] = {HOSTILE: [HOSTILE]}
    arguments["result"]["baselines"] = {HOSTILE: {"macs": 1, "note": HOSTILE}}
    arguments["result"]["seconds"] = {HOSTILE: 1.0}
    arguments["result"]["settings"][HOSTILE] = [HOSTILE]
    arguments["history"][0]["stage"] = HOSTILE
    arguments["history"][3]["keep_by_gate"] = {HOSTILE: 0.5}
    arguments["reliability"] = {HOSTILE: arguments["reliability"]["found"]}
    arguments["others"] = {HOSTILE: arguments["others"]["random"]}
    html = render_report(**arguments)
    page = checked(html)
    assert "<script" not in html
    assert "\x00" not in html
    joined = "".join(page.words)
    assert joined.count('<script src="http://evil.example/x.js">alert(1)</script>') > 10


@pytest.mark.parametrize("empty", [None, math.nan, math.inf, "", [], {}, "text", True, [None], 10**400], ids=repr_start)
def test_any_value_may_be_missing_or_odd(empty: Any) -> None:
    def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in list(children)[:3] if isinstance(value, list) else children:
            yield (*path, key)
            yield from paths(item, (*path, key))

    for name in ("result", "supernet_summary"):
        for path in paths(make_arguments()[name]):
            arguments = make_arguments()
            owner = arguments[name]
            for key in path[:-1]:
                owner = owner[key]
            owner[path[-1]] = empty
            arguments["history"] = arguments["candidates"] = []  # drawing takes long; drawn in the test below
            arguments["operations"] = arguments["reliability"] = arguments["others"] = None
            checked(render_report(**arguments))


@pytest.mark.parametrize("empty", [None, math.nan, "text", 10**400], ids=repr_start)
def test_measurements_may_be_missing_or_odd(empty: Any) -> None:
    arguments = make_arguments()
    bins = arguments["reliability"]["found"]["bins"]
    for rows in (arguments["history"], arguments["candidates"], arguments["operations"]["operations"], bins):
        for index, key in enumerate(list(rows[0])):
            rows[index % len(rows)][key] = empty
    checked(render_report(**arguments))


def test_a_run_that_has_just_begun_has_a_report() -> None:
    html = render_report({}, [], [], None)
    checked(html)
    assert "has not found a network yet" in html
    checked(render_report({"found": {}}, [{}], [{}], {}))
    one = [{"macs": 5, "params": 5, "accuracy": 0.5}]
    checked(render_report({}, [{"stage": "search", "epoch": 1, "loss": 1.0}], one, None))


def test_a_sentence_of_the_result_is_the_headline() -> None:
    assert headline({"sentence": "found network: 81.2 %", "found": {"val_accuracy": 0.1}}) == "Found network: 81.2 %."


def test_a_cap_on_parameters_alone_decides_the_axis() -> None:
    arguments = make_arguments()
    arguments["result"]["cap"] = {"macs": None, "params": 1000}
    page = checked(render_report(**arguments))
    words = " ".join(page.words)
    assert "parameters, k" in words
    assert "is exceeded" in words


def test_headline_falls_back_on_validation() -> None:
    sentence = headline({"found": {"val_accuracy": 0.5, "macs": 1}, "full": {"macs": 4}}).replace("\u00a0", " ")
    assert (
        sentence
        == "Found network: 50.0 % on the validation images with 25.0 % of the multiply-adds of the full network."
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (1234567, "1.23 M"),
        (999_999, "1 M"),
        (999_400, "999 k"),
        (5e13, "50,000 G"),
        (None, "–"),
    ],
)
def test_short_counts(value: float | None, shown: str) -> None:
    assert short_count(value).replace("\u00a0", " ") == shown


@given(st.floats() | st.integers() | st.none() | st.text() | st.booleans())
@settings(deadline=None)
def test_formats_take_anything(value: Any) -> None:
    assert all(isinstance(show(value), str) for show in (short_count, percent, duration))
