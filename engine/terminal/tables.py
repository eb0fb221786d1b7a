"""How numbers and tables look in a terminal. Knows no model and no run, and imports no torch."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions, ConsoleOptions, OverflowMethod, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

LEAST, WIDE = 40, 120  # columns
WHOLE = 12  # columns of a cell that stays on one line: a number with its unit


class Screen(Console):
    """A terminal without markup: a path or a message that holds [brackets] or :colons: is printed as it is. Tables are
    never laid out narrower than LEAST, where cells would vanish; the terminal breaks their lines. A file or a pipe has
    no width of its own, and gets WIDE unless COLUMNS says another."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and lines."""
        found = super().size
        has_width = self._width is not None or self.file.isatty()
        return found._replace(width=max(LEAST, found.width) if has_width else WIDE)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size


class _Whole(Table):
    """A table whose cells lose nothing in a narrow terminal, and whose title is as wide as the terminal. What is too
    long goes on in the next line; where words would be torn, each row becomes lines of its own: header and value."""

    def add_column(self, *args: Any, overflow: OverflowMethod = "fold", **options: Any) -> None:
        """As that of any table."""
        super().add_column(*args, overflow=overflow, **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        title, self.title = self.title, None
        yield Text(str(title), style="table.title")
        try:
            yield from self._laid_out(console, options)
        finally:
            self.title = title

    def _laid_out(self, console: Console, options: ConsoleOptions) -> RenderResult:
        texts = [[_plain(cell) for cell in (column.header, *column.cells)] for column in self.columns]
        most = [max(map(cell_len, "\n".join(cells).split("\n"))) for cells in texts]
        least = [wide if column.no_wrap else max(map(_least, cells))
                 for column, cells, wide in zip(self.columns, texts, most, strict=True)]  # fmt: skip
        for column in self.columns:
            column.width = None
        room = options.max_width - Measurement.get(console, options.update(width=10_000), self).maximum + sum(most)
        if sum(least) > room and len(texts) > 2:
            yield _records(texts)
            return
        if sum(most) > room:
            for column, width in zip(self.columns, _widths(least, most, room), strict=True):
                column.width = width
        yield from super().__rich_console__(console, options)


def _plain(cell: Any) -> str:
    return cell if isinstance(cell, str) else str(getattr(cell, "plain", cell))


def _least(text: str) -> int:
    """Columns that a cell needs so that neither a word nor a number with its unit is torn."""
    return cell_len(text) if cell_len(text) <= WHOLE else max(map(cell_len, text.split()), default=0)


def _widths(least: list[int], most: list[int], room: int) -> list[int]:
    """Widths of columns that fill `room`: the widest give way first, none to less than it needs."""
    found = list(most)
    while sum(found) > room:
        can = [i for i, width in enumerate(found) if width > least[i]]
        if not can:
            break
        found[max(can, key=found.__getitem__)] -= 1
    return found


def _records(texts: list[list[str]]) -> Table:
    """Rows below each other: the first cell, then a line for each of the others that holds something."""
    grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    for _ in range(2):
        grid.add_column(overflow="fold")
    headers = [cells[0] for cells in texts]
    for row in zip(*(cells[1:] for cells in texts), strict=True):
        grid.add_row("", "")
        grid.add_row(headers[0], row[0].strip())
        for header, cell in zip(headers[1:], row[1:], strict=True):
            if cell.strip():
                grid.add_row(f"  {header}", cell.strip())
    grid.add_row("", "")
    return grid


TEXT = ("bound by", "made of")  # columns that hold words


def new_table(title: str, *columns: str) -> Table:
    """Every table looks like this: no lines between columns, so that what there is to say fits into 80. Of `columns`
    the first is text, as are those of TEXT; the others are numbers."""
    made = _Whole(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i and column not in TEXT else "left")
    return made
