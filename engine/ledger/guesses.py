"""What models that draft read: their passes stand in no pass of the ledger, and are added up beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Guesses:
    """Sums over passes that said a token. rows: of the head, which these tokens were chosen among; nbytes: read
    from memory, whichever it was."""

    passes: int = 0
    rows: int = 0
    nbytes: int = 0

    def __add__(self, other: Guesses) -> Guesses:
        return Guesses(self.passes + other.passes, self.rows + other.rows, self.nbytes + other.nbytes)

    def __sub__(self, other: Guesses) -> Guesses:
        return Guesses(self.passes - other.passes, self.rows - other.rows, self.nbytes - other.nbytes)

    @property
    def mean_rows(self) -> int:
        """Of a guess."""
        return round(self.rows / max(1, self.passes))

    @property
    def mean_bytes(self) -> int:
        """Of a guess."""
        return round(self.nbytes / max(1, self.passes))

    def as_json(self) -> dict[str, Any]:
        """Sums."""
        return {"guesses": self.passes, "guess_rows": self.rows, "guess_bytes": self.nbytes}


NONE = Guesses()
