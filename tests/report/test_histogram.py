"""Figure 1: both groups in the same bins."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from pgnas.report.histogram import draw_histogram, histogram_figure


@pytest.mark.parametrize("random", [[0.1, 0.2, 0.2, 0.4], [0.9] * 5])
def test_every_candidate_is_counted_once_and_the_dashed_lines_are_the_means(random):
    guided = [0.9, 0.9, 0.9]
    axes = Figure().add_subplot()
    draw_histogram(axes, {"guided": guided, "random": random}, colours=("#111111", "#222222"))
    heights = [sum(bar.get_height() for bar in bars) for bars in axes.containers]
    assert heights == [len(guided), len(random)]
    assert [line.get_xdata()[0] for line in axes.lines] == pytest.approx([90, 100 * sum(random) / len(random)])


def test_the_page_has_it_only_where_there_are_both():
    figure = histogram_figure([0.8, 0.9], [0.5])
    assert figure.startswith("<svg")
    assert "2 guided by the posterior, 85.0" in figure
    assert "1 random, 50.0" in figure
    assert histogram_figure([0.8], []) == histogram_figure([], [0.8]) == ""
