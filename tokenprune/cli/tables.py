"""Tables for every width of screen: where one does not fit, its rows stand below each other, with nothing cut off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Column:
    """What stands below each other.

    Attributes:
        name: in the head; an empty one is the rows' names.
        group: of neighbouring columns; it stands once above their names.
        left: whether cells begin at the left, as words do; numbers end at the right.
    """

    name: str
    group: str = ""
    left: bool = False


@dataclass(frozen=True)
class Listing:
    """A table that finds its form when it is shown.

    Attributes:
        title: above it.
        columns: what each cell of a row is.
        rows: a cell for each column.
        caption: below it.
        keys: how many columns name a row; of all but the last of them a table shows what differs from the row above.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    keys: int = 1

    def fitted(self, width: int) -> RenderableType:
        """The form for a screen of so many letters: a table, if need be with heads of more lines, or a list."""
        for heads in (self._heads(" "), self._heads("\n")):
            widths = [
                max(cell_len(line) for text in (head, *(row[place] for row in self.rows)) for line in text.split("\n"))
                for place, head in enumerate(heads)
            ]
            if sum(widths) + len(widths) + 1 <= width:
                return self._table(heads, widths)
        return self._list()

    def _heads(self, space: str) -> list[str]:
        groups = [""] + [column.group for column in self.columns]
        grouped, heads = any(groups), []
        for before, column in zip(groups, self.columns, strict=False):
            group = "" if column.group == before else column.group
            heads.append((f"{group}\n" if grouped else "") + column.name.replace(" ", space))
        return heads

    def _table(self, heads: Sequence[str], widths: Sequence[int]) -> Table:
        table = Table(title=self.title, caption=self.caption or None, box=SIMPLE_HEAD, padding=0)
        for column, head, width in zip(self.columns, heads, widths, strict=True):
            table.add_column(head, justify="left" if column.left else "right", width=width, vertical="bottom")
        before: Sequence[str] = ()
        for row in self.rows:
            above = self.keys - 1 if list(row[: self.keys - 1]) == list(before[: self.keys - 1]) else 0
            table.add_row(*[""] * above, *row[above:])
            before = row
        return table

    def _list(self) -> Group:
        names = [f"{column.group} {column.name}".strip() for column in self.columns]
        lengths = [max(cell_len(row[place]) for row in self.rows) for place in range(self.keys, len(names))]
        parts: list[RenderableType] = [Text(self.title, style="italic")]
        for row in self.rows:
            cells = list(zip(self.columns, names, row, strict=True))
            parts.append(
                Text(", ".join(cell if column.left else f"{name} {cell}" for column, name, cell in cells[: self.keys]))
            )
            facts = [
                f"{name} {cell:<{length}}" for (_, name, cell), length in zip(cells[self.keys :], lengths, strict=True)
            ]
            parts.append(Padding(Columns(facts, padding=(0, 2)), (0, 0, 0, 4)))
        return Group(*parts, *([Text(self.caption, style="dim")] if self.caption else []))


def show(listing: Listing) -> None:
    """Print it as the screen's width allows, or as that of what stands in for a screen."""
    console = Console(highlight=False)
    console.print(listing.fitted(console.width))
