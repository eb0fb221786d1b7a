"""The thread that runs passes while there are requests. Handlers leave commands and read what was left for them: none
waits for a pass.

Passes are announced once each (`on_pass`), not token by token. An error in a pass ends the requests that were open,
each with the error; the thread goes on, and stops for good only when the model is closed.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable

from ..core.loop import Loop
from ..generation.request import Request

SWITCH_S = 2e-4  # a pass that wants Python back waits for that long at most while handlers run
log = logging.getLogger("headrace")


class EngineThread:
    """Runs the passes of a loop. on_pass is called after each, and after cancelled requests, from the thread."""

    def __init__(self, loop: Loop, on_pass: Callable[[], None]) -> None:
        self.loop, self.on_pass = loop, on_pass
        self.open: dict[int, Request] = {}
        self.failure: BaseException | None = None  # of the newest pass, if it failed
        self.is_running = False
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="headrace-engine", daemon=True)

    def start(self) -> None:
        """Lets it run."""
        sys.setswitchinterval(SWITCH_S)
        self.is_running = True
        self._thread.start()

    def stop(self, timeout: float = 30.0) -> None:
        """Ends it after the pass that is under way."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def submit(self, request: Request) -> None:
        """Lets a request run from the next pass on."""
        self.open[request.sequence.id] = request
        self.loop.start(request)
        self._wake.set()

    def cancel(self, request: Request) -> None:
        """Ends a request before the next pass."""
        self.loop.cancel(request)
        self._wake.set()

    def _run(self) -> None:
        try:
            while not self._stopping:
                if not self._has_work():
                    self._wake.wait()
                    self._wake.clear()
                    continue
                self._pass()
        except BaseException as error:  # whatever it is, nobody may wait for ever
            log.exception("the engine has stopped")
            self._fail(error)
        finally:
            self.is_running = False
            self._fail(RuntimeError("the server is stopping"))

    def _has_work(self) -> bool:
        return bool(self.loop.commands or self.loop.scheduler.running or self.loop.scheduler.waiting)

    def _pass(self) -> None:
        try:
            with self.loop.lock:
                self.loop.carry_out()
                if self.loop.scheduler.running or self.loop.scheduler.waiting:
                    self.loop.step()
            self.failure = None
        except Exception as error:
            log.exception("a pass has failed")
            self.failure = error
            self._fail(error)
        self._forget_ended()
        self.on_pass()

    def _forget_ended(self) -> None:
        """Lets go of requests that have ended."""
        for request in [one for one in list(self.open.values()) if not one.is_open]:
            del self.open[request.sequence.id]
            self.loop.cancel(request)

    def _fail(self, error: BaseException) -> None:
        """Ends every open request with an error, unless it has one that says more."""
        for request in list(self.open.values()):
            request.error = request.error or error
            self.loop.cancel(request)
        with self.loop.lock:
            self.loop.carry_out()
        self._forget_ended()
        self.on_pass()
