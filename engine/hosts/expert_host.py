"""A host of experts: joins a coordinator, loads its share, and answers rows until the connection ends; then it joins
again.

    main thread    receives a request, computes it, sends the answer in pieces while it computes the next ones
    pulse          says every quarter of a second that the host is at work, so that slow is told from dead
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch

from ...errors import DeviceError, MemoryNeeded
from ...kernels import Ops
from ...loaders.files.safetensors import ReadInto
from ...loaders.weights.checkpoint import Checkpoint
from ..bandwidth_model.network.wire_sizes import PIECE
from ..experts.disk.files import ExpertFiles
from ..placement.tier_memory import of_free
from ..units import size
from .answers import answers
from .joining import address as addresses
from .joining import link_rate, meeting
from .layers import layer_host
from .layers.held import HeldLayers
from .messages import frames, greeting, rows
from .messages.frames import Broken, Kind, Refused
from .messages.incoming import Incoming
from .messages.terms import Terms
from .shelf import Shelf

PULSE = 0.25  # seconds
GREETING = 10.0  # seconds that a step of the greeting may take
log = logging.getLogger("headrace")


class Opened(NamedTuple):
    """A model as a coordinator's terms have it. free: bytes of RAM that may be taken; rate: bytes a second that this
    machine's RAM was read with; experts: those of the model's experts, by tokens that one serves at once; read: how
    bytes come from the files, None: as ever."""

    checkpoint: Checkpoint
    files: ExpertFiles
    ops: Ops
    fingerprint: str
    free: int
    rate: float
    experts: dict[int, float]
    facts: dict[str, Any]
    read: ReadInto | None = None


class ExpertHost:
    """One process. open_model: opens its model for terms, once for the same ones; or asks_always: at every connection,
    and gives what it gave before where nothing has changed. say: tells a person."""

    def __init__(
        self,
        name: str,
        address: tuple[str, int],
        secret: bytes,
        open_model: Callable[[Terms], Opened],
        say: Callable[[str], None],
        asks_always: bool = False,
    ) -> None:
        self.name, self.address, self.secret, self.open_model, self.say = name, address, secret, open_model, say
        self.asks_always = asks_always
        self.terms: Terms | None = None
        self.opened: Opened | None = None
        self.shelf: Shelf | None = None
        self.layers: HeldLayers | None = None
        self.is_over, self.was_ready = threading.Event(), False
        self.sock: socket.socket | None = None
        self.lock = threading.Lock()

    def run(self, once: bool = False) -> None:
        """Until it is ended, from outside or, when a connection has ended, by `is_over`; once: or a coordinator has
        worked with it and left. Raises DeviceError where the coordinator does not want it."""
        while (sock := meeting.join(*self.address, lambda: not self.is_over.is_set(), self._waits)) is not None:
            self.sock = sock
            with sock:
                try:
                    self._serve(sock)
                except Refused as refused:
                    if not refused.again:
                        raise
                    self.say(f"{refused}; trying again")
                except (Broken, OSError) as error:
                    if self.is_over.is_set() or (once and self.was_ready):
                        return
                    self.say(f"the connection ended ({error}); joining again")
            time.sleep(meeting.STEP)

    def stop(self) -> None:
        """Ends it, from another thread."""
        self.is_over.set()
        if self.sock is not None:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)

    def _waits(self, why: str) -> None:
        self.say(f"no coordinator at {addresses.shown(*self.address)} yet ({why}); waiting for one")

    def _serve(self, sock: socket.socket) -> None:
        """One connection, to its end."""
        sock.settimeout(GREETING)
        frames.tune(sock)
        terms = Terms.read(greeting.answer(sock, self.secret, self.name))
        sock.settimeout(None)
        with self._pulse(sock):
            opened = self._open(terms)
        shelf = self.shelf
        assert shelf is not None
        free = opened.free + shelf.nbytes
        rates = {"rate": opened.rate, "experts": opened.experts}
        said = {"fingerprint": opened.fingerprint, "free": free, **rates, **opened.facts}
        frames.send_json(sock, Kind.MODEL, said)
        share = frames.as_json(link_rate.receive(sock, Kind.SHARE))
        if "layers" in share:
            self._serve_layers(sock, terms, share)
        if self.layers is not None:
            self.layers.segments.clear()
        with self._pulse(sock):
            self._load(shelf, share, free)
        frames.send_json(sock, Kind.READY, {"bytes": shelf.nbytes})
        self.was_ready = True
        self.say(f"at work with {len(shelf.own)} experts, {size(shelf.nbytes)}")
        incoming = Incoming(sock)
        with self._pulse(sock, at_once=False) as busy:
            while True:
                header, body = incoming.receive(Kind.WORK, limit=terms.limit)
                busy.set()
                self._answer(sock, shelf, terms.wire, header.call, body)
                busy.clear()

    def _serve_layers(self, sock: socket.socket, terms: Terms, share: dict[str, Any]) -> NoReturn:
        """The same with whole layers."""
        opened, shelf = self.opened, self.shelf
        assert opened is not None, "a share before the model is open"
        assert shelf is not None
        with self._pulse(sock):
            shelf.take(())
            free = int(of_free(opened.free))
            self.layers = layer_host.hold(share, opened.checkpoint, opened.ops, free, self.layers, opened.read)
        frames.send_json(sock, Kind.READY, {"bytes": self.layers.nbytes})
        held = ", ".join(f"{first} to {last - 1}" for first, last in self.layers.segments) or "none"
        self.was_ready = True
        self.say(f"at work with layers {held}, {size(self.layers.nbytes)}")
        talk = layer_host.Talk(sock, partial(self._send, sock), partial(self._pulse, sock))
        layer_host.LayerHost(self.layers, terms, talk).run()

    def _open(self, terms: Terms) -> Opened:
        """The model, for the terms of this connection."""
        before = self.opened
        found = (
            before if before is not None and terms == self.terms and not self.asks_always else self.open_model(terms)
        )
        if found is not before:
            if self.shelf is not None:
                self.shelf.close()
            self.layers, self.shelf = None, Shelf(found.files, found.ops)
        self.opened, self.terms = found, terms
        return found

    def _load(self, shelf: Shelf, share: dict[str, Any], free: int) -> None:
        """Takes its share into RAM. Raises MemoryNeeded before any is taken."""
        layouts, counts = shelf.files.layouts, shelf.files.stored.experts
        try:
            own = [[frames.count(expert, "an expert") for expert in experts] for experts in share["experts"]]
        except (KeyError, TypeError) as error:
            raise frames.no_share(error) from error
        keys = [(layer, expert) for layer, experts in enumerate(own) for expert in experts]
        if len(own) != len(counts) or any(expert >= counts[layer] for layer, expert in keys):
            raise Broken("the share names experts that the model does not have: install the same headrace everywhere")
        need, room = sum(layouts[layer].bytes for layer, _ in keys), int(of_free(free))
        if need > room:
            raise MemoryNeeded(f"the share of {self.name} is {size(need)}, {size(room)} of RAM can be taken here")
        shelf.take(keys)
        shelf.room = room - need

    def _answer(self, sock: socket.socket, shelf: Shelf, wire: rows.WireFormat, call: int, body: bytearray) -> None:
        """Computes a request, in pieces of whole experts: an expert sees all of its rows at once."""
        counts, hidden = shelf.files.stored.experts, shelf.files.layouts[0].hidden
        work = rows.read_work(body, wire, counts, hidden)
        found = answers(shelf, work, wire)
        while True:
            with torch.inference_mode():
                try:
                    piece = next(found, None)
                except DeviceError:
                    raise
                except Exception as error:
                    greeting.refuse(sock, f"its experts cannot be read or computed: {error}")
                    raise
                if piece is None:
                    return
                parts = rows.answer_parts(piece.rows_ND, piece.first, wire, call)
            self._send(sock, parts)

    def _send(self, sock: socket.socket, parts: list[memoryview]) -> None:
        with self.lock:
            if sum(map(len, parts)) < PIECE // 8:
                sock.sendall(b"".join(parts))
                return
            for part in parts:
                sock.sendall(part)

    @contextmanager
    def _pulse(self, sock: socket.socket, at_once: bool = True) -> Iterator[threading.Event]:
        """Says that the host is at work while the event is set."""
        busy, over = threading.Event(), threading.Event()
        if at_once:
            busy.set()

        def beat() -> None:
            while not over.wait(PULSE):
                if busy.is_set():
                    try:
                        self._send(sock, [memoryview(frames.head(Kind.ALIVE, 0))])
                    except OSError:
                        return

        thread = threading.Thread(target=beat, name="headrace-pulse", daemon=True)
        thread.start()
        try:
            yield busy
        finally:
            over.set()
            thread.join()
