from __future__ import annotations

from test_document import HOSTILE, checked, make_arguments

from pgnas.report.comparison import HEADS, ComparedRun, comparison_rows, differing_settings, render_comparison


def runs() -> list[ComparedRun]:
    result = make_arguments()["result"] | {"sentence": "found network: 97.9 %"}
    result["found"]["test_interval"] = [0.96, 0.99]
    settings = {"model": "tiny", "epochs": 8, "exclude": ["a", "b"], "out": "there"}
    candidates = make_arguments()["candidates"]
    return [
        ComparedRun("first", result, settings, candidates),
        ComparedRun(HOSTILE, result, settings | {"epochs": 4, "out": "here"}, candidates[:2]),
        ComparedRun("begun", {}),
    ]


def test_a_row_a_run_and_a_dash_for_what_is_not_known() -> None:
    first, _, begun = comparison_rows(runs())
    assert [cell.replace("\u00a0", " ") for cell in first] == [
        "first", "97.9 % [96.0 %, 99.0 %]", "98.5 %", "395,000", "39.5 %", "1,050", "10.5 %", "1 min 18 s",
    ]  # fmt: skip
    assert begun == ("begun", *["–"] * (len(HEADS) - 1))


def test_the_settings_that_differ_and_no_others() -> None:
    first, second, _ = runs()
    assert differing_settings([first, second]) == {"epochs": ["8", "4"]}
    assert differing_settings([first, first]) == {}


def test_the_page_is_whole_and_escaped() -> None:
    page = checked(render_comparison(runs()))
    assert len(list(page.named("figure"))) == 2
    assert "first: found network: 97.9 %" in "".join(page.words)
    checked(render_comparison([ComparedRun("a", {}), ComparedRun("b", {})]))
