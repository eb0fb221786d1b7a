"""How numbers and tables look in a terminal. Knows no model and no run, and imports no torch."""

from __future__ import annotations

from rich import box
from rich.table import Table


def new_table(title: str, *columns: str) -> Table:
    """Every table looks like this: no lines between columns, so that what there is to say fits into 80. Of `columns`
    the first is text, the others are numbers."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left")
    return made
