"""What `headrace bench` says of drafts: what they are predicted to gain, and what those gained that were asked for."""

from __future__ import annotations

from rich.table import Table

from ...bench.bench import Row
from ...bench.decoding import InTurns
from ...ledger.passes import MEMORIES, Bytes
from ...planning.speed import ACCEPTED
from ...units import size
from ..tables import new_table


def table(rows: list[Row]) -> Table | None:
    """Tokens a second with drafts and without, a row for each test of decoding; None where nothing drafted."""
    measured = [(row, row.drafts) for row in rows if row.drafts is not None]
    if not measured:
        return None
    columns = ("test", "batch", "without", "with", "gain", "+-", "drafted", "accepted", "bytes without", "with")
    shown = new_table("the same new text without drafts and with them, in turns", *columns)
    for row, one in measured:
        shown.add_row(name(row), str(row.batch), *_cells(one))
    return shown


def _cells(one: InTurns) -> list[str]:
    share = f" ({one.accepted / one.drafted:.0%})" if one.drafted else ""
    spread = (max(one.gains) - min(one.gains)) / 2
    return [
        f"{one.tok_s_without:.1f}", f"{one.tok_s:.1f}", f"{one.gain:.2f}", f"{spread:.2f}", str(one.drafted),
        f"{one.accepted}{share}", read(one.bytes_per_token_without), read(one.bytes_per_token),
    ]  # fmt: skip


def predicted(rows: list[Row]) -> Table | None:
    """How many times as many tokens a second drafts are predicted to give, by how often a drafted token is right; None
    where no test's passes can be predicted."""
    known = [row for row in rows if row.gains]
    if not known:
        return None
    title = "predicted gain of drafts (and their length), by how often a drafted token is right"
    shown = new_table(title, "test", "batch", *(f"{rate:.0%}" for rate in ACCEPTED))
    for row in known:
        cells = (f"{one.gain:.2f} ({one.length})" if one.length else "none" for one in row.gains)
        shown.add_row(name(row), str(row.batch), *cells)
    return shown


def name(row: Row) -> str:
    """The test, its depth and placement."""
    return row.test + (f" @ {row.depth}" if row.depth else "") + (f" {row.placement}" if row.placement != "cpu" else "")


def read(per_token: Bytes) -> str:
    """Bytes of a token that were read from memories."""
    return size(sum(per_token.get(channel, {}).get("total", 0) for channel in MEMORIES))


def medians(one: InTurns) -> dict[str, float]:
    """What a result says beside the rounds."""
    return {"tok_s": one.tok_s, "tok_s_without": one.tok_s_without, "gain": one.gain}
