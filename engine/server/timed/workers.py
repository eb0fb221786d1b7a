"""Threads for work that is a stranger's, such as chat templates: it has its time, and is stopped when that is over.

A thread that was in time waits for more work, since to start one holds up the event loop until the system runs it. One
that was told to stop takes no more. Two wait at most, and none for longer than ten seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ....errors import HeadraceError, TokenizerError
from ..wire.errors import ApiError

T = TypeVar("T")
Work = Callable[[], None]
BUSY, SPARE = "headrace-prompt", "headrace-spare"  # names of threads
MOST_SPARE, SPARE_S = 2, 10.0
AGAIN_S = 0.2  # until a thread is told once more to stop: libraries may lose what is raised in what they call


@dataclass
class Doing:
    """What a piece of work does now, and what to do where that takes too long; the work itself may change it."""

    what: str = "the chat template"
    remedy: str = "give other messages"


class Worker:
    """One thread; it has a piece of work at a time. spare, lock: those that wait, of all."""

    spare: list[Worker] = []
    lock = threading.Lock()

    def __init__(self) -> None:
        self.work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name=BUSY, daemon=True)
        self.ended = threading.Event()

    @classmethod
    def begin(cls, work: Work) -> Worker:
        """One that does this work: a spare one, or a new one."""
        with cls.lock:
            found = cls.spare.pop() if cls.spare else None
        worker = cls() if found is None else found
        worker.work.put(work)
        if found is None:
            worker.thread.start()
        return worker

    def give_back(self) -> None:
        """Its work is done, and it was not told to stop."""
        with self.lock:
            if len(self.spare) < MOST_SPARE:
                self.spare.append(self)
                return
        self.work.put(None)

    def stop(self) -> None:
        """Raises an error in the thread, if it runs Python code, again and again until it ends."""
        self.work.put(None)
        self._raise()
        threading.Thread(target=self._insist, name="headrace-stop", daemon=True).start()

    def _insist(self) -> None:
        while not self.ended.wait(AGAIN_S):
            self._raise()

    def _raise(self) -> None:
        if self.thread.ident is not None and self.thread.is_alive() and not self.ended.is_set():
            error = ctypes.py_object(TimeoutError)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread.ident), error)

    def _run(self) -> None:
        try:
            while (work := self._next()) is not None:
                self.thread.name = BUSY
                work()
                del work  # while it waits it keeps nothing alive: work knows the model
                self.thread.name = SPARE
        except TimeoutError:
            return  # told to stop when the work had just ended
        finally:
            self.ended.set()

    def _next(self) -> Work | None:
        while True:
            try:
                return self.work.get(timeout=SPARE_S)
            except queue.Empty:
                with self.lock:
                    if self in self.spare:
                        self.spare.remove(self)
                        return None


async def in_time(work: Callable[[], T], seconds: float, doing: Doing | None = None) -> T:
    """The result of work in a thread, which is told to stop when its time is over; raises ApiError then. doing: what it
    is about when that happens; None: a template. Python code stops at its next step; a call of the tokenizer ends by
    itself."""
    doing = doing or Doing()
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    found: list[Any] = [None, None]

    def run() -> None:
        try:
            found[0] = work()
        except BaseException as error:  # given to whoever waits
            found[1] = error
        with contextlib.suppress(RuntimeError):  # the loop has ended, and who waited with it
            loop.call_soon_threadsafe(done.set)

    worker = Worker.begin(run)
    try:
        await asyncio.wait_for(done.wait(), seconds)
    except asyncio.TimeoutError:
        raise ApiError(400, f"{doing.what} took longer than {seconds:g} s: {doing.remedy}") from None
    finally:
        if done.is_set():
            worker.give_back()
        else:
            worker.stop()
    if isinstance(found[1], (HeadraceError, ApiError)):
        raise found[1]
    if found[1] is not None:
        raise TokenizerError(f"the prompt cannot be made: {type(found[1]).__name__}: {found[1]}") from found[1]
    result: T = found[0]
    return result
