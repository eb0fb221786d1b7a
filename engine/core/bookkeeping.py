"""Puts a pass together when its device is done, and gives it to the ledger and to its requests.

    close    a pass is over: booked at once, or, of a decode graph, kept until the next one is under way
    settle   what was kept is booked: while a graph runs, or before anybody reads the ledger

What experts read follows from the choices of every layer, some microseconds of Python each. While a graph runs, Python
has nothing to do, so there they cost nothing. All of it counts: what is booked in a pass is within its time, what is
booked between two passes is added to the pass that it is about, what comes after that (sums, a ledger file) to the
next one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from ...kernels.passes.tally import Tally
from ..experts.counts import ExpertCounts
from ..ledger.ledger import Ledger
from ..ledger.passes import Bytes, Pass, Times, add_bytes
from ..ledger.summary import Account
from ..model.batch import Inputs
from ..model.decoder import Output
from ..traces.recorder import Recorder


class Closed(NamedTuple):
    """A pass that is over, and what is to be booked of it: what it read, what sampling took, the accounts of its
    requests; what went in, of which the first `decoding` tokens were generated."""

    done: Pass
    out: Output
    sampled: Bytes
    accounts: Sequence[Account]
    inputs: Inputs
    decoding: int


class Bookkeeping:
    """Of one model's passes, in their order. counts: of its experts. recorder: of a trace, if one is wanted."""

    def __init__(self, ledger: Ledger, counts: ExpertCounts, recorder: Recorder | None = None) -> None:
        self.ledger, self.counts, self.recorder = ledger, counts, recorder
        self.kept: Closed | None = None
        self.unwritten: list[Pass] = []
        self.after_s = 0.0
        self.lock = threading.RLock()  # a reader in another thread books too
        ledger.settle = self.settle

    @property
    def next_index(self) -> int:
        """Of the pass that comes."""
        return self.ledger.account.count + (self.kept is not None)

    def start(self) -> float:
        """The clock's reading at which a pass begins, what came after the one before included."""
        after_s, self.after_s = self.after_s, 0.0
        return time.perf_counter() - after_s

    def keep(self, closed: Closed) -> None:
        """Books a pass while the next one runs."""
        with self.lock:
            assert self.kept is None, "two passes at once"
            self.kept = closed

    def settle(self) -> None:
        """Books the pass that is kept, if one is, outside of any pass."""
        if self.kept is not None:
            with self.lock:
                closed, self.kept = self.kept, None
                if closed is not None:
                    self.book(closed)

    def settle_meanwhile(self) -> None:
        """The same while a pass runs, in whose time it is."""
        if self.kept is None:
            return
        with self.lock:
            closed, self.kept = self.kept, None
            if closed is not None:
                self._assemble(closed)
                self._enter(closed)

    def book(self, closed: Closed, times_of: Callable[[float], Times] | None = None) -> None:
        """Books a pass outside of any: its own time grows by what that takes. times_of: says what its seconds went to,
        if that was not asked yet."""
        start = time.perf_counter()
        self._assemble(closed)
        end = time.perf_counter()
        done, spent = closed.done, end - start
        done.measured_s += spent
        if times_of is not None:
            done.times = times_of(done.measured_s)
        elif done.times is not None and done.times.outside_s is not None:
            done.times = replace(done.times, outside_s=done.times.outside_s + spent)
        self._enter(closed)
        self.after_s += time.perf_counter() - end

    def _assemble(self, closed: Closed) -> None:
        """Adds up what the pass read, and counts what it chose."""
        done, out = closed.done, closed.out
        add_bytes(done.bytes, out.read)
        add_bytes(done.bytes, closed.sampled)
        done.layers, done.by_layer = out.layers(), out.by_layer
        for work in done.layers:
            add_bytes(done.bytes, work.bytes)
        chosen = out.chosen() if out.tally is None else out.tally
        if not isinstance(chosen, Tally):
            self.counts.add(chosen, closed.decoding)
        if self.recorder is not None:
            inputs = closed.inputs
            self.recorder.take(done.index, done.sequences, inputs.spans, closed.decoding, inputs.rows, chosen)

    def _enter(self, closed: Closed) -> None:
        self.ledger.add(closed.done)
        for account in closed.accounts:
            account.add(closed.done)
        self.unwritten.append(closed.done)

    def write(self) -> None:
        """Writes the lines of what was booked, if a file is open: what may raise (a full disk) comes last, so that it
        costs no request a token."""
        if not self.unwritten:
            return
        start, passes, self.unwritten = time.perf_counter(), self.unwritten, []
        for done in passes:
            self.ledger.write(done)
        self.after_s += time.perf_counter() - start
