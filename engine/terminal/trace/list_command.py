"""`headrace trace list`: the traces that are kept for models; everything to standard output."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.table import Table

from ...traces import stored
from ...traces.stored import MOST_BYTES, Kept
from ...units import size
from ..tables import Screen, new_table

NONE = "no trace is kept: headrace trace record MODEL --prompts FILE"


def show(*, as_json: bool) -> int:
    """Prints all of them, the newest first."""
    found = stored.kept()
    if as_json:
        print(json.dumps({"folder": str(stored.folder()), "traces": list(map(_as_row, found))}))
        return 0
    out = Screen()
    if not found:
        out.print(NONE, soft_wrap=True)
        return 0
    out.print(line(found), soft_wrap=True)
    out.print(_table(found))
    for one in found:
        if one.problem:
            out.print(f"{one.path.name}: {one.problem}", soft_wrap=True)
    return 0


def line(found: list[Kept]) -> str:
    """How many, and how much they take."""
    total = sum(one.nbytes for one in found)
    many = "1 trace is" if len(found) == 1 else f"{len(found)} traces are"
    return f"{many} kept in {stored.folder()}: {size(total)}, of {size(MOST_BYTES)} at most"


def _as_row(one: Kept) -> dict[str, Any]:
    header = None if one.header is None else asdict(one.header)
    return {
        "path": str(one.path), "header": header, "tokens": one.tokens, "bytes": one.nbytes, "recorded": one.recorded,
        "problem": one.problem or None,
    }  # fmt: skip


def _table(found: list[Kept]) -> Table:
    shown = new_table("traces", "model", "experts in", "tokens", "size", "recorded", "file")
    for one in found:
        header = one.header
        shown.add_row(
            "-" if header is None else header.model, "-" if header is None else header.formats["experts"],
            "-" if one.tokens is None else str(one.tokens), size(one.nbytes),
            f"{datetime.fromtimestamp(one.recorded):%Y-%m-%d %H:%M}", one.path.name,
        )  # fmt: skip
    return shown
