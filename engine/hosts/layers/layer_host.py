"""A host's side of layers: it loads those that it is given, runs passes through them, and takes or gives up others when
the coordinator says so."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, NoReturn

from ....errors import HeadraceError
from ....kernels import Ops
from ....loaders.files.safetensors import ReadInto
from ....loaders.weights.checkpoint import Checkpoint
from ...model.segment import Room, Run, row_width
from ..messages import frames, greeting, passes
from ..messages.frames import Broken, Kind
from ..messages.incoming import Incoming
from ..messages.terms import Terms
from .held import HeldLayers


class Talk(NamedTuple):
    """How a host answers. pulse: within it the other side is told that the host is at work, while the event is set."""

    sock: socket.socket
    send: Callable[[list[memoryview]], None]
    pulse: Callable[[bool], AbstractContextManager[threading.Event]]


def hold(
    share: dict[str, Any],
    checkpoint: Checkpoint,
    ops: Ops,
    free: int,
    before: HeldLayers | None,
    read: ReadInto | None = None,
) -> HeldLayers:
    """Loads the layers of a share. before: those of the last coordinator, whose weights serve again where they are the
    same; read: as of `HeldLayers`. Raises Broken, MemoryNeeded, CheckpointError."""
    try:
        runs, room = _runs(share["layers"]), Room.read(share["room"])
        work = frames.count(share["work"], "work")
    except (KeyError, TypeError, ValueError) as error:
        raise frames.no_share(error) from error
    held = HeldLayers(checkpoint, ops, room, max(0, free - work), read)
    kept = {} if before is None else {run: one.whole_weights for run, one in before.segments.items()}
    if before is not None:
        before.segments.clear()
    for run in runs:
        if run in kept:
            held.put(run, kept[run])
    kept.clear()
    held.hold(runs)
    return held


def _runs(said: Any) -> list[Run]:
    return [(frames.count(first, "a layer"), frames.count(last, "a layer")) for first, last in said]


class LayerHost:
    """One connection's work, until it ends."""

    def __init__(self, held: HeldLayers, terms: Terms, talk: Talk) -> None:
        self.held, self.terms, self.talk = held, terms, talk
        self.width = row_width(held.spec)

    def run(self) -> NoReturn:
        """Raises Broken, OSError at its end."""
        incoming = Incoming(self.talk.sock)
        with self.talk.pulse(False) as busy:
            while True:
                header, body = incoming.receive(Kind.PASS, Kind.HOLD, limit=self.terms.limit)
                busy.set()
                if header.kind is Kind.HOLD:
                    self._hold(header.call, body)
                else:
                    self._pass(header.call, body)
                busy.clear()

    def _hold(self, call: int, body: bytearray) -> None:
        """Other layers than before; those that are the same keep their cache."""
        try:
            self.held.hold(_runs(frames.as_json(body).get("layers", [])))
            said: dict[str, Any] = {"bytes": self.held.nbytes}
        except (HeadraceError, OSError, TypeError, ValueError) as error:
            said = {"error": str(error)}
        self.talk.send(frames.json_parts(Kind.HELD, said, call))

    def _pass(self, call: int, body: bytearray) -> None:
        task = passes.read_task(body, self.terms.wire, self.width)
        self.held.check(task)
        try:
            done = self.held.run(task)
        except Broken:
            raise
        except Exception as error:
            greeting.refuse(self.talk.sock, f"its layers cannot be computed: {error}")
            raise
        self.talk.send(passes.answer_parts(done, self.terms.wire, call))
