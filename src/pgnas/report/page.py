"""The pieces of a self-contained HTML page that reads in light and dark, on paper, and on a phone.

Arguments called ``*_html`` are HTML; everything else is text and gets escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pgnas.report.values import text

PAGE_WIDTH = 1056
"""Pixels, 66rem."""
_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1b1f24; --muted: #5b6470; --rule: #d5dae0; --soft: #f3f5f7;
  --first: #1f5fae; --second: #b3540b; --third: #0d7a6b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --ink: #e4e7eb; --muted: #9aa4b0; --rule: #343b44; --soft: #1e2329;
    --first: #79b2f2; --second: #f2a35e; --third: #5fcab9;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 66rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .75rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
p, ul { max-width: 46rem; }
.lead { font-size: 1.15rem; }
.muted, figcaption, caption { color: var(--muted); }
.scroll { overflow-x: auto; margin-bottom: 1.5rem; }
caption span { display: inline-block; position: sticky; left: 0; max-width: min(46rem, 100vw - 2rem); }
.scroll:focus-visible { outline: 2px solid var(--first); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
caption, figcaption { text-align: left; font-size: .9rem; padding: 0 0 .5rem; }
th, td { padding: .35rem .9rem .35rem 0; text-align: left; border-bottom: 1px solid var(--rule); vertical-align: top; }
thead th { color: var(--muted); font-weight: 600; font-size: .9rem; vertical-align: bottom; }
tbody th { font-weight: 400; }
tr.found th, tr.found td { font-weight: 650; }
.number { text-align: right; white-space: nowrap; }
.bounds { font-size: .85em; }
.name { min-width: 6.5rem; }
.bar { display: block; width: 10rem; height: .7rem; margin: .45rem 0; background: var(--soft);
  border: 1px solid var(--rule); }
.bar span { display: block; height: 100%; background: var(--first); }
figure { margin: 0; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: inherit !important; }
.zoomable fieldset { border: 0; margin: 0 0 .5rem; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1rem; }
.zoomable legend { float: left; padding: 0; margin-right: 1rem; color: var(--muted); font-size: .9rem; }
.zoomable label { font-size: .9rem; }
.window { overflow: auto; max-height: 85vh; border: 1px solid var(--rule); }
.window:focus-visible { outline: 2px solid var(--first); }
figure .window svg { width: var(--natural); max-width: none; margin: 0 auto; }
.zoomable:has(.fit:checked) .window svg { width: 100%; height: 84vh; }
.zoomable:has(.wide:checked) .window svg { width: 100%; }
.zoomable:has(.two:checked) .window svg { width: calc(2 * var(--natural)); }
.zoomable:has(.four:checked) .window svg { width: calc(4 * var(--natural)); }
.window text { pointer-events: none; }
.operation path { pointer-events: all; }
.operation:hover path { stroke: var(--second) !important; stroke-width: 2.5 !important; }
.figures { display: grid; gap: 2rem; grid-template-columns: minmax(0, 1fr); }
pre { background: var(--soft); border: 1px solid var(--rule); padding: .75rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .92em; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) minmax(0, 1fr); gap: .2rem 1.25rem; margin: 0; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; }
@media (min-width: 56rem) { .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); align-items: start; } }
@media (max-width: 30rem) {
  .bar { width: 4.5rem; margin: .35rem 0; }
  table { font-size: .9rem; }
  th, td { padding-right: .6rem; }
  h1 { font-size: 1.35rem; }
}
"""


def page(title: str, body_html: str) -> str:
    """A whole document; it asks for nothing from outside, and forbids itself to."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">\n"
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body_html}</main>\n</body>\n"
        "</html>\n"
    )


def part(title: str, body_html: str) -> str:
    """A section under a heading; nothing if it is empty."""
    if not body_html:
        return ""
    anchor = "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())
    return f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{text(title)}</h2>\n{body_html}</section>\n'


def cell(value: object) -> str:
    """A table cell of text."""
    return f"<td>{text(value)}</td>"


def number_cell(shown: str) -> str:
    """A table cell of a number, aligned right."""
    return f'<td class="number">{text(shown)}</td>'


def measured_cell(shown: str, bounds: str) -> str:
    """A table cell of a number with what it lies between below it."""
    return f'<td class="number">{text(shown)}<br><span class="muted bounds">{text(bounds)}</span></td>'


def bar_cell(share: float | None) -> str:
    """A table cell with a bar of ``share`` in [0, 1]; hidden from screen readers, as other cells hold the numbers."""
    width = 0.0 if share is None else 100 * min(1.0, max(0.0, share))
    return f'<td aria-hidden="true"><span class="bar"><span style="width:{width:.1f}%"></span></span></td>'


def table(caption: str, heads: Sequence[str], rows_html: Sequence[str], *, numbers: Sequence[int] = ()) -> str:
    """A table that scrolls by itself where it is too wide; nothing without rows.

    Args:
        caption: What it shows.
        heads: Its columns.
        rows_html: Its rows, from :func:`row`.
        numbers: Which columns hold numbers.
    """
    if not rows_html:
        return ""
    shown = [
        f'<th scope="col" class="{"number" if index in numbers else "text"}">{text(head)}</th>' if head else "<td></td>"
        for index, head in enumerate(heads)
    ]
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">\n<table>\n'
        f"<caption><span>{text(caption)}</span></caption>\n<thead><tr>{''.join(shown)}</tr></thead>\n"
        f"<tbody>\n{''.join(rows_html)}</tbody>\n</table>\n</div>\n"
    )


def row(head: object, cells_html: Sequence[str], *, kind: str = "") -> str:
    """A table row whose first cell is its heading."""
    opening = f'<tr class="{kind}">' if kind else "<tr>"
    name = text(head).replace(".", ".<wbr>")  # where a long dotted name may break
    return f'{opening}<th scope="row" class="name">{name}</th>{"".join(cells_html)}</tr>\n'


def figure(svg_html: str, caption: str) -> str:
    """A figure; nothing without a picture."""
    return f"<figure>\n<figcaption>{text(caption)}</figcaption>\n{svg_html}\n</figure>\n" if svg_html else ""


def figures(figures_html: Iterable[str]) -> str:
    """Figures side by side where there is room; nothing without any."""
    shown = "".join(figures_html)
    return f'<div class="figures">\n{shown}</div>\n' if shown else ""


def zoomable(name: str, svg_html: str, *, width: float) -> str:
    """A picture in a window of its own that scrolls, with a choice of sizes; it needs no script.

    Args:
        name: Tells its controls from those of others.
        svg_html: The picture.
        width: Its natural width in pixels.
    """
    sizes = (("fit", "whole"), ("wide", "page width"), ("one", "100 %"), ("two", "200 %"), ("four", "400 %"))
    first = "one" if width <= PAGE_WIDTH else "wide"  # or the window might show an empty corner
    choices = "".join(
        f'<label><input type="radio" name="{name}" class="{kind}"{" checked" * (kind == first)}> {shown}</label>\n'
        for kind, shown in sizes
    )
    return (
        f'<div class="zoomable" style="--natural:{width:.0f}px">\n<fieldset>\n<legend>Size</legend>\n{choices}'
        f'</fieldset>\n<div class="window" tabindex="0" role="region" aria-label="Drawing, scrolls">\n{svg_html}\n'
        "</div>\n</div>"
    )


def definitions(values: Sequence[tuple[object, object]]) -> str:
    """Terms and what they are; nothing if there are none."""
    items = "".join(f"<dt>{text(term)}</dt><dd>{text(value)}</dd>\n" for term, value in values)
    return f"<dl>\n{items}</dl>\n" if items else ""


def details(summary: str, body_html: str) -> str:
    """Something to unfold; nothing if it is empty."""
    return f"<details>\n<summary>{text(summary)}</summary>\n{body_html}</details>\n" if body_html else ""


def items(values: Sequence[object]) -> str:
    """A list; nothing if there are none."""
    return "<ul>\n" + "".join(f"<li>{text(value)}</li>\n" for value in values) + "</ul>\n" if values else ""
