from __future__ import annotations

from pgnas.report.comparison import HEADS, ComparedRun, comparison_rows, differing_settings, render_comparison

HOSTILE = "<script>alert(1)</script>"


def runs() -> list[ComparedRun]:
    found = {"macs": 395_000, "params": 1050, "val_accuracy": 0.985, "test_accuracy": 0.979}
    result = {
        "found": found | {"test_interval": [0.96, 0.99]},
        "full": {"macs": 1_000_000, "params": 10_000},
        "seconds": {"search": 75.2, "sample": 3.0},
        "sentence": "found network: 97.9 %",
    }
    settings = {"model": "tiny", "epochs": 8, "exclude": ["a", "b"], "out": "there"}
    candidates = [{"accuracy": 0.5}, {"accuracy": 0.75}, {"accuracy": 0.8}]
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


def test_the_page_has_its_figures_and_is_escaped() -> None:
    html = render_comparison(runs())
    assert html.count("<figure>") == html.count('role="img"') == 2
    assert "first: found network: 97.9 %" in html
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<figure>" not in render_comparison([ComparedRun("a", {}), ComparedRun("b", {})])
