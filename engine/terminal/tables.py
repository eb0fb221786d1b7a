"""How numbers and tables look in a terminal. Knows no model and no run, and imports no torch."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console, ConsoleDimensions, OverflowMethod
from rich.table import Table

LEAST = 40  # columns


class Screen(Console):
    """A terminal without markup: a path or a message that holds [brackets] or :colons: is printed as it is. Tables are
    never laid out narrower than LEAST, where cells would vanish; the terminal breaks their lines."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and lines."""
        found = super().size
        return found._replace(width=max(LEAST, found.width))

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size


class _Whole(Table):
    """A table whose cells lose nothing in a narrow terminal: what is too long goes on in the next line."""

    def add_column(self, *args: Any, overflow: OverflowMethod = "fold", **options: Any) -> None:
        """As that of any table."""
        super().add_column(*args, overflow=overflow, **options)


def new_table(title: str, *columns: str) -> Table:
    """Every table looks like this: no lines between columns, so that what there is to say fits into 80. Of `columns`
    the first is text, the others are numbers."""
    made = _Whole(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left")
    return made
