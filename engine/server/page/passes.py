"""Passes of the ledger as rows of numbers, for charts: what each read by tier and group, took, and should have taken.

A row is [index, phase, tokens, sequences, context, measured ms, predicted ms or null, bytes ...], the bytes by
`columns`, which only ever grow. What each layer's experts read goes beside the rows, as a share of all of the layer's
experts in steps of 1/255.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Sequence
from itertools import islice, takewhile
from typing import Any

from ...ledger.pass_bytes import EXPERTS, GROUPS, UNCHOSEN
from ...ledger.passes import CHANNELS, MEMORIES, Pass, all_ms, ms
from ...ledger.summary import PHASES, Summary, summarise

HISTORY = 600  # passes that a new viewer gets
Row = list[float | int | None]


def newest(recent: deque[Pass], since: int, most: int) -> list[Pass]:
    """Passes from index `since` on, oldest first, the last `most` of them. For any thread: another may add to `recent`
    meanwhile."""
    while True:
        try:
            found = list(islice(takewhile(lambda one: one.index >= since, reversed(recent)), most))
        except RuntimeError:  # a pass came while it was read
            continue
        return found[::-1]


class Rows:
    """Passes to rows. experts: bytes of all routed experts of each layer."""

    def __init__(self, experts: Sequence[int]) -> None:
        self.experts = list(experts)
        self.columns: list[str] = []

    def of(self, passes: Sequence[Pass]) -> list[Row]:
        """Rows; works out what each pass should have taken, some 0.1 ms for one that was not asked before."""
        known = {f"{tier}.{group}" for one in passes for tier, groups in one.bytes.items() for group in groups}
        self.columns += sorted(known - set(self.columns), key=_order)
        return [self._row(one) for one in passes]

    def _row(self, one: Pass) -> Row:
        row: Row = [
            one.index, PHASES.index(one.phase), one.tokens, len(one.sequences), one.context,
            ms(one.measured_s), ms(one.predicted_s),
        ]  # fmt: skip
        for column in self.columns:
            tier, _, group = column.partition(".")
            row.append(one.bytes.get(tier, {}).get(group, 0))
        return row

    def heat(self, passes: Sequence[Pass]) -> str:
        """One byte for each pass and layer, in base64: the share of the layer's experts that was read, of 255."""
        return base64.b64encode(b"".join(map(self._shares, passes))).decode()

    def _shares(self, one: Pass) -> bytes:
        read = list(one.by_layer) if one.by_layer else [0] * len(self.experts)
        for work in one.layers:
            read[work.layer] = sum(
                work.bytes.get(tier, {}).get(group, 0) for tier in MEMORIES for group in (EXPERTS, UNCHOSEN)
            )
        return bytes(
            min(255, round(255 * size / whole)) if whole else 0 for size, whole in zip(read, self.experts, strict=True)
        )


def _order(column: str) -> tuple[int, int, str]:
    """Memories first, then links; experts first in each."""
    tier, _, group = column.partition(".")
    return (
        CHANNELS.index(tier) if tier in CHANNELS else len(CHANNELS),
        GROUPS.index(group) if group in GROUPS else len(GROUPS),
        column,
    )


def window(passes: Sequence[Pass], tokens: int) -> Summary | None:
    """The last decode passes that hold so many tokens, added up; None before there are any."""
    found: list[Pass] = []
    left = tokens
    for one in reversed(passes):
        if left > 0 and one.phase == "decode":
            found.append(one)
            left -= one.tokens
    return summarise(found, "decode") if found else None


def as_json(found: Summary) -> dict[str, Any]:
    """Sums of a phase, times in milliseconds."""
    return {
        "phase": found.phase,
        "passes": found.passes,
        "tokens": found.tokens,
        "bytes": found.bytes,
        "measured_ms": ms(found.measured_s),
        "predicted_ms": ms(found.predicted_s),
        "predicted_time_ms": None if found.predicted is None else all_ms(found.predicted.terms),
        "time_ms": None if found.times is None else all_ms(found.times.busy),
    }
