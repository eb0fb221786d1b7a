"""Work in threads of its own: threads are used again, those that overran are not, and none waits for long."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref

import pytest

from headrace.engine.server.timed import workers
from headrace.engine.server.timed.workers import SPARE, Doing, Worker, in_time
from headrace.engine.server.wire.errors import ApiError
from headrace.errors import TokenizerError


@pytest.fixture(autouse=True)
def none_spare() -> None:
    while Worker.spare:
        Worker.spare.pop().work.put(None)


def test_a_thread_that_was_in_time_is_used_again() -> None:
    async def asked() -> list[int]:
        return [await in_time(threading.get_ident, 5) for _ in range(5)]

    assert len(set(asyncio.run(asked()))) == 1


def test_a_thread_that_waits_keeps_nothing_of_its_work_alive() -> None:
    class Model:
        pass

    model = Model()
    gone = threading.Event()
    weakref.finalize(model, gone.set)

    async def asked(model: Model) -> None:
        await in_time(lambda: id(model), 5)

    asyncio.run(asked(model))
    del model
    gc.collect()
    assert gone.wait(5)
    assert Worker.spare


def test_one_that_overran_is_stopped_and_takes_no_more() -> None:
    ends: list[str] = []

    def long() -> int:
        try:
            while True:
                time.sleep(0.001)
        finally:
            ends.append(threading.current_thread().name)

    async def asked() -> tuple[threading.Thread, threading.Thread]:
        before = await in_time(threading.current_thread, 5)
        with pytest.raises(ApiError, match=r"the work took longer than 0\.05 s: give less"):
            await in_time(long, 0.05, Doing("the work", "give less"))
        return before, await in_time(threading.current_thread, 5)

    before, after = asyncio.run(asked())
    assert before is not after
    until = time.monotonic() + 5
    while not ends and time.monotonic() < until:
        time.sleep(0.01)
    assert ends == ["headrace-prompt"]


def test_one_that_loses_what_is_raised_is_told_again() -> None:
    """As a library does that catches whatever its callbacks raise."""
    told: list[float] = []
    threads: list[threading.Thread] = []

    def deaf() -> None:
        threads.append(threading.current_thread())
        while True:
            try:
                while True:
                    time.sleep(0.001)
            except TimeoutError:
                told.append(time.monotonic())
                if len(told) == 3:
                    raise

    async def asked() -> None:
        with pytest.raises(ApiError, match="took longer"):
            await in_time(deaf, 0.05)

    asyncio.run(asked())
    threads[0].join(30)
    assert not threads[0].is_alive()
    assert len(told) == 3
    until = time.monotonic() + 30
    while stoppers() and time.monotonic() < until:
        time.sleep(0.01)
    assert stoppers() == 0


def test_the_error_says_what_was_slow() -> None:
    doing = Doing("the first step", "a")

    def work() -> None:
        doing.what, doing.remedy = "the second step", "b"
        while True:
            time.sleep(0.001)

    async def asked() -> None:
        with pytest.raises(ApiError, match=r"the second step took longer than 0\.2 s: b"):
            await in_time(work, 0.2, doing)

    asyncio.run(asked())


def test_many_at_once_leave_two_that_wait_and_these_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SPARE_S", 0.2)

    async def asked() -> None:
        await asyncio.gather(*(in_time(lambda: time.sleep(0.02), 5) for _ in range(6)))

    asyncio.run(asked())
    assert len(Worker.spare) == 2
    until = time.monotonic() + 5
    while (Worker.spare or spare_threads()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not Worker.spare
    assert spare_threads() == 0


def stoppers() -> int:
    return sum(one.name == "headrace-stop" for one in threading.enumerate())


def spare_threads() -> int:
    return sum(one.name == SPARE for one in threading.enumerate())


def test_what_is_raised_is_told() -> None:
    def wrong() -> None:
        raise ApiError(418, "tea")

    async def asked() -> None:
        with pytest.raises(ApiError, match="tea"):
            await in_time(wrong, 5)
        with pytest.raises(TokenizerError, match="ZeroDivisionError"):
            await in_time(lambda: 1 // 0, 5)
        assert await in_time(lambda: 7, 5) == 7

    asyncio.run(asked())


def test_work_that_ends_when_the_loop_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stops while a prompt is made: nobody is told, and nothing is said."""
    said: list[object] = []
    monkeypatch.setattr(threading, "excepthook", said.append)
    may_end, threads = threading.Event(), list[threading.Thread]()

    def work() -> None:
        threads.append(threading.current_thread())
        while not may_end.is_set():
            try:
                time.sleep(0.001)
            except TimeoutError:  # as C code that does not stop
                continue

    async def asked() -> None:
        with pytest.raises(ApiError, match="took longer"):
            await in_time(work, 0.05)

    asyncio.run(asked())
    may_end.set()
    threads[0].join(5)
    assert not threads[0].is_alive()
    assert not said
