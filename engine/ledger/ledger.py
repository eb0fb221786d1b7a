"""The ledger: takes every pass that is done, says what it should have taken, and writes it to a file if one is open.

It keeps a bounded number of passes and the sums of all (`summary.py`). What a pass read is put together by those who
ran it (`core/loop.py`); nothing is booked here while a pass runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ...errors import OptionError
from .. import writable
from .passes import Pass, Prediction
from .summary import KEPT, Account, Summary


class Ledger:
    """Keeps passes. `predict` says what a pass should take, or is None where no bandwidth is known; `watch` sees every
    pass when it is done; `settle` is called before anybody reads: it books a pass that is over and was put off."""

    def __init__(self, predict: Callable[[Pass], Prediction | None] | None = None, kept: int = KEPT) -> None:
        self.predict = predict
        self.watch: Callable[[Pass], None] | None = None
        self.account = Account(kept)
        self.sink: IO[str] | None = None
        self.recordings: list[list[Pass]] = []
        self.listeners: list[Callable[[Pass], None]] = []  # told of every pass that is booked, by who booked it
        self.settle: Callable[[], None] = lambda: None

    @property
    def passes(self) -> list[Pass]:
        """The last passes, oldest first; of a long run not all (`recording` keeps those of a part)."""
        self.settle()
        return list(self.account.recent)

    @property
    def last(self) -> Pass:
        """The newest pass; IndexError before the first."""
        self.settle()
        return self.account.recent[-1]

    @property
    def count(self) -> int:
        """Passes so far: the index of the one that runs now, or comes next."""
        self.settle()
        return self.account.count

    def summary(self, phase: str) -> Summary:
        """Sums of all passes of a phase."""
        self.settle()
        return self.account.summary(phase)

    @contextmanager
    def recording(self) -> Iterator[list[Pass]]:
        """A list that grows by every pass that is done in the block."""
        self.settle()
        found: list[Pass] = []
        self.recordings.append(found)
        try:
            yield found
        finally:
            self.settle()
            self.recordings = [one for one in self.recordings if one is not found]

    def open(self, path: Path) -> None:
        """Writes a JSON line for every pass from now on; raises OptionError if the file cannot be written."""
        try:
            self.sink = Path(path).open("w", encoding="utf-8")  # noqa: SIM115  # closed by close()
        except OSError as error:
            raise writable.refusal(path, "the ledger", error) from error

    @staticmethod
    def check_path(path: Path) -> None:
        """Raises OptionError if a ledger cannot be written there: before a model is loaded, not after. What the file
        holds stays."""
        writable.check(Path(path), "the ledger")

    def close(self) -> None:
        if self.sink is not None:
            self.sink.close()
            self.sink = None

    def add(self, done: Pass) -> None:
        """Takes in a pass that is over."""
        if self.predict is not None:
            done.expect = self.predict
        self.account.add(done)
        for found in self.recordings:
            found.append(done)
        for told in self.listeners:
            told(done)
        if self.watch is not None:
            self.watch(done)

    def write(self, done: Pass) -> None:
        """Writes the line of a pass, if a file is open; raises OptionError when it cannot be written any more."""
        if self.sink is None:
            return
        try:
            self.sink.write(json.dumps(done.as_json()) + "\n")
            self.sink.flush()
        except OSError as error:
            path, self.sink = self.sink.name, None
            raise OptionError(f"the ledger {path} cannot be written any more: {error.strerror}; make room") from error
