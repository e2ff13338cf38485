"""Sections of tables as text: fitted to the width of a terminal, or plain and aligned, one line a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pgnas.stages.inspection_tables import Column, Section

_INDENT = 2
_GAP = 2
_LEAST_OPTIONAL = 30  # characters that an optional column needs, or it is left out


def fancy(sections: Iterable[Section], width: int) -> RenderableType:
    """For a terminal ``width`` characters wide."""
    return Group(*(part for section in sections for part in _fancy(section, width)))


def _fancy(section: Section, width: int) -> Iterator[RenderableType]:
    style = "dim" if section.quiet else ""
    yield Text(f"\n{section.title}", style="dim" if section.quiet else "bold")
    if section.rows:
        yield _table(section, width)
    for head, body in section.entries:
        yield Padding(Text(head, style=style or "cyan"), (0, 0, 0, _INDENT))
        if body:
            yield Padding(Text(body, style=style), (0, 0, 0, 2 * _INDENT))


def _table(section: Section, width: int) -> RenderableType:
    shown = _fitting(section, width)
    has_titles = any(section.columns[place].title for place in shown)
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_header=has_titles)
    for place in shown:
        column = section.columns[place]
        table.add_column(
            column.title,
            justify="right" if column.numeric else "left",
            no_wrap=column.numeric or place == 0,
            overflow="fold",
            header_style="italic",
        )
    for row in section.rows:
        heading = len(row) == 1
        cells = (row[0], *[""] * (len(shown) - 1)) if heading else [row[place] for place in shown]
        table.add_row(*(Text(cell, style="cyan" if heading else "") for cell in cells))
    return Padding.indent(table, _INDENT)


def _fitting(section: Section, width: int) -> list[int]:
    """The columns that there is room for."""
    widths = _widths(section)
    needed = _INDENT + sum(
        size + _GAP for size, column in zip(widths, section.columns, strict=True) if not column.optional
    )
    room = needed + _LEAST_OPTIONAL <= width
    return [place for place, column in enumerate(section.columns) if room or not column.optional]


def plain(sections: Iterable[Section]) -> Iterator[str]:
    """For a file or a pipe."""
    for number, section in enumerate(sections):
        if number:
            yield ""
        yield section.title
        if section.rows:
            yield from _plain_table(section)
        for head, body in section.entries:
            yield " " * _INDENT + head
            if body:
                yield " " * 2 * _INDENT + body


def _plain_table(section: Section) -> Iterator[str]:
    widths = _widths(section)
    titles = tuple(column.title for column in section.columns)
    for row in (titles, *section.rows) if any(titles) else section.rows:
        cells = [_aligned(*of) for of in zip(row, widths, section.columns, strict=False)]
        yield (" " * _INDENT + (" " * _GAP).join(cells)).rstrip()


def _aligned(cell: str, width: int, column: Column) -> str:
    return cell.rjust(width) if column.numeric else cell.ljust(width)


def _widths(section: Section) -> list[int]:
    rows = [row for row in section.rows if len(row) > 1]
    cells = zip(*rows, strict=True) if rows else [() for _ in section.columns]
    return [max(map(len, [column.title, *of])) for column, of in zip(section.columns, cells, strict=True)]
