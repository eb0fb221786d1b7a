"""A thread that dies and a clock that jumps: nobody waits for ever, and no answer is another one."""

from __future__ import annotations

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
