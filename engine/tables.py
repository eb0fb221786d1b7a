"""How numbers and tables look in a terminal. Knows no model and no run, and imports no torch."""

from __future__ import annotations

from rich import box
from rich.table import Table

MB, GB = 1e6, 1e9


def size(count: float) -> str:
    """Bytes as a person reads them."""
    if count >= GB:
        return f"{count / GB:.2f} GB"
    return f"{count / MB:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def count(parameters: float) -> str:
    """Parameters as a person reads them."""
    return f"{parameters / 1e9:.3f} B" if parameters >= 1e8 else f"{parameters / 1e6:.2f} M"


def new_table(title: str, *columns: str) -> Table:
    """Every table looks like this: no lines between columns, so that what there is to say fits into 80. Of `columns`
    the first is text, the others are numbers."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left")
    return made
