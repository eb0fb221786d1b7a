"""The coordinator's door: hosts that come are greeted, and given a share; at the start, and again after one was lost.

A host that comes back has its old name, or takes the place of one that is gone. While it loads, the others go on with
what they have; when it is ready it lies in `arrivals`, and the next pass takes it in.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ....errors import DeviceError
from ..files.served import ServedFiles
from ..link import Link
from ..messages import frames, greeting
from ..messages.frames import Broken, Kind
from ..messages.terms import Terms
from . import link_rate
from .figures import Figures
from .meeting import Meeting

GREETING = 10.0  # seconds that a step of the greeting may take
OPENING = 120.0  # seconds of silence of a host that opens its model, or loads
log = logging.getLogger("headrace")


class Candidate(NamedTuple):
    """A host that has the token and the model, and no share yet."""

    sock: socket.socket
    name: str
    generation: int
    free: int
    figures: Figures

    @property
    def rate(self) -> float:
        """Bytes a second of its RAM."""
        return self.figures.ram_bytes_s


Share = dict[str, Any]  # what a host is told of what it is to hold
Place = Callable[[Candidate], "tuple[int, Share] | str"]


class Gathering:
    """Greets whoever comes, a thread each."""

    def __init__(
        self, meeting: Meeting, secret: bytes, terms: Terms, fingerprint: str, files: ServedFiles | None = None
    ) -> None:
        self.meeting, self.secret, self.terms, self.fingerprint = meeting, secret, terms, fingerprint
        self.files = files
        self.candidates = queue.Queue[Candidate]()
        self.arrivals = queue.Queue[tuple[int, Link]]()
        self.place: Place | None = None  # of one that comes late: its number and share, or why there is none
        self.gave_up: Callable[[int], None] = lambda number: None
        self.generation, self.is_closed = 0, False
        self.refused: list[str] = []
        self.readers: list[socket.socket] = []  # of files
        self.lock, self.measuring = threading.Lock(), threading.Lock()
        self.thread = threading.Thread(target=self._accept, name="headrace-door", daemon=True)
        self.thread.start()

    def first(self, count: int, wait: float, joining: Callable[[int, int], None] | None = None) -> list[Candidate]:
        """So many hosts, in the order of their names. joining: called with those that are here, and with all. Raises
        DeviceError where they do not come in time."""
        found: list[Candidate] = []
        end = time.monotonic() + wait
        tell = joining or (lambda here, all: None)
        tell(0, count)
        while len(found) < count:
            try:
                found.append(self.candidates.get(timeout=max(0.0, end - time.monotonic())))
                if len(found) < count:
                    log.warning("host %s is here, %d more to come", found[-1].name, count - len(found))
                tell(len(found), count)
            except queue.Empty:
                more = f"; turned away: {self.refused[-1]}" if self.refused else ""
                raise DeviceError(
                    f"{len(found)} of {count} hosts joined {self.meeting.shown} within {wait:g} s{more}: start "
                    f"headrace host MODEL --join {self.meeting.shown} on the others, or give more --host-wait"
                ) from None
        found.sort(key=lambda one: (one.name, one.generation))
        names: list[str] = []
        for one in found:
            names.append(one.name if one.name not in names else f"{one.name}-{one.generation}")
        return [one._replace(name=name) for one, name in zip(found, names, strict=True)]

    def _accept(self) -> None:
        while True:
            try:
                sock, peer = self.meeting.listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._greet, args=(sock, peer[0]), name="headrace-greeting", daemon=True).start()

    def _greet(self, sock: socket.socket, address: str) -> None:
        """From the first word to the model's fingerprint, and for one that comes late to the end."""
        try:
            candidate = self._candidate(sock)
            if candidate is None:
                return
            with self.lock:
                is_early = self.place is None
                if is_early:
                    self.candidates.put(candidate)
            if not is_early:
                self._late(candidate)
        except (Broken, OSError) as error:
            with contextlib.suppress(OSError):
                sock.close()
            with self.lock:
                self.refused.append(str(error))
            log.warning("a host at %s did not come in: %s", address, error)

    def open_places(self, place: Place, gave_up: Callable[[int], None]) -> None:
        """From now on those who come take places that are free; gave_up: told of one that was to come and did not."""
        with self.lock:
            self.place, self.gave_up = place, gave_up
        while not self.candidates.empty():  # more than were wanted
            candidate = self.candidates.get()
            greeting.refuse(candidate.sock, "there are enough hosts", again=True)
            candidate.sock.close()

    def _candidate(self, sock: socket.socket) -> Candidate | None:
        """None: somebody who read files, until he had them."""
        sock.settimeout(GREETING)
        frames.tune(sock)
        name, proof = greeting.challenge(sock, self.secret)
        frames.send_json(sock, Kind.TERMS, {"proof": proof, **self.terms.as_json()})
        sock.settimeout(OPENING)
        header, body = frames.receive(sock, Kind.MODEL, Kind.FILES)
        if header.kind is Kind.FILES:
            self._serve_files(sock)
            return None
        said = frames.as_json(body)
        if said.get("fingerprint") != self.fingerprint:
            reason = f"{name} has another model, or other files of it: give it the same files as the coordinator"
            greeting.refuse(sock, reason)
            raise Broken(reason)
        with self.measuring:  # one at a time: they share this machine's link
            link = link_rate.measure(sock)
        figures = Figures.read(said, link)
        with self.lock:
            self.generation += 1
            generation = self.generation
        if others := self.terms.differing(said.get("rounding")):
            log.warning("%s rounds otherwise: %s; its rows may differ in bits", name, "; ".join(others))
        return Candidate(sock, name, generation, frames.whole(said, "free"), figures)

    def _serve_files(self, sock: socket.socket) -> None:
        with self.lock:
            self.readers.append(sock)
        if self.files is not None and not self.is_closed:
            with contextlib.suppress(Broken, OSError):  # it has all that it wanted
                self.files.serve(sock, self.fingerprint)
        sock.close()

    def _late(self, candidate: Candidate) -> None:
        """Gives a host a place that is free, waits until it is ready, and announces it."""
        assert self.place is not None
        found = self.place(candidate)
        if isinstance(found, str):
            greeting.refuse(candidate.sock, found, again=True)
            raise Broken(found)
        number, share = found
        try:
            self.give(candidate, share)
            self.arrivals.put((number, self.ready(candidate)))
        except BaseException:
            self.gave_up(number)
            raise

    def give(self, candidate: Candidate, share: Share) -> None:
        """Tells a host what is its own. Raises OSError."""
        frames.send_json(candidate.sock, Kind.SHARE, share)

    def ready(self, candidate: Candidate) -> Link:
        """Waits until they are loaded. Raises Broken, OSError."""
        said = frames.as_json(frames.receive(candidate.sock, Kind.READY)[1])
        room = max(0, candidate.free - frames.whole(said, "bytes"))
        return Link(candidate.sock, candidate.name, room, candidate.figures)

    def loaded(self, candidate: Candidate, what: str) -> Link:
        """`ready` at the start, which ends where a host does not load its `what`: raises DeviceError."""
        try:
            return self.ready(candidate)
        except (OSError, DeviceError) as error:
            self.close()
            raise DeviceError(
                f"host {candidate.name} did not load its {what} ({error}): see what it says, and start again"
            ) from error

    def close(self) -> None:
        """Lets nobody in any more."""
        if not self.is_closed:
            self.is_closed = True
            with contextlib.suppress(OSError):
                self.meeting.listener.shutdown(socket.SHUT_RDWR)
            self.meeting.close()
            for reader in self.readers:
                with contextlib.suppress(OSError):
                    reader.shutdown(socket.SHUT_RDWR)
            while not self.arrivals.empty():
                self.arrivals.get()[1].close()
