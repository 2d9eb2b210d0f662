"""Small tables for notebooks, where objects show themselves by `_repr_html_`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

LONGEST = 300
"""Most letters of a cell; settings such as masks may have any number."""


def in_short(value: object) -> str:
    """A value's `repr` in one line, cut off where it is very long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."


def facts(title: str, rows: Iterable[tuple[str, object]], *further: str) -> str:
    """Names with values under a title, and further HTML below; names, values and title are text."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(str(value))}</td></tr>"
        for name, value in rows
    )
    return f"<b>{escape(title)}</b><table>{cells}</table>{''.join(further)}"


def folded(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table that is folded up until its title is clicked; all cells are text."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<details><summary>{escape(title)}</summary><table><tr>{head}</tr>{body}</table></details>"
