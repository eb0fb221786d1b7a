"""A thread that dies and a clock that jumps: nobody waits for ever, and no answer is another one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import Served, serving

ASKED: dict[str, Any] = {"prompt": "In the beginning", "max_tokens": 6, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def served() -> Iterator[Served]:
    with serving(parallel=2) as found:
        yield found


def ask(served: Served) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/completions", json=ASKED, timeout=60)


def test_the_thread_of_the_engine_dies(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends a thread is no Exception: requests that are open end with an error, and so do those that come later."""
    assert ask(served).status_code == 200

    def die() -> None:
        raise SystemExit("the thread was ended")

    monkeypatch.setattr(served.llm.loop, "step", die)
    assert ask(served).status_code == 500
    assert ask(served).status_code >= 500
    assert httpx.get(f"{served.url}/health", timeout=10).status_code >= 500


@pytest.mark.parametrize("jump", [-4e8, -3600.0, 3600.0, 4e8])
def test_a_clock_that_jumps(jump: float, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ask(served).json()["choices"][0]["text"]
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + jump)
    after = ask(served)
    assert after.status_code == 200
    assert after.json()["choices"][0]["text"] == before
    assert abs(after.json()["created"] - clock() - jump) < 60
    assert httpx.get(f"{served.url}/health", timeout=10).status_code == 200


def test_who_is_cut_off_by_the_end_is_told_to_come_back(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the pass that is under way ends after the server has."""
    step, loop = served.llm.loop.step, served.service._loop
    assert loop is not None

    def slow() -> None:
        time.sleep(0.2)
        step()

    monkeypatch.setattr(served.llm.loop, "step", slow)
    body = {**ASKED, "max_tokens": 900, "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        asyncio.run_coroutine_threadsafe(served.service.stop(0.1), loop)
        rest = "".join(lines)
    assert "the server is stopping; ask again" in rest
    assert "[DONE]" not in rest
