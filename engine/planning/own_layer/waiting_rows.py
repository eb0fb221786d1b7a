"""Hidden states that wait until the layer for multi-token prediction takes them in: how many, and their bytes. Imports
no torch."""

from __future__ import annotations

MANY = 64  # rows that are worth a pass of their own
MOST_ROWS = MANY + 16  # that may wait: those before, and what a pass with a draft brings


def nbytes(hidden: int, sequences: int) -> int:
    """Of so many sequences, float32 [MOST_ROWS, hidden] each."""
    return 4 * MOST_ROWS * sequences * hidden
