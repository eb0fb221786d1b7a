"""A server with the demo model on a free port, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from headrace import LLM
from headrace.engine.server import run
from headrace.engine.server.service import Service
from headrace.engine.server.settings import ServerSettings

Serve = Callable[..., tuple[httpx.Client, Service]]


@contextmanager
def serving(llm: LLM, **options: Any) -> Iterator[tuple[httpx.Client, Service]]:
    """A client of a server, and its service."""
    settings = ServerSettings(port=0, **options)
    server, ready = run.Server(settings), threading.Event()
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    listening = run.listen(settings)

    async def main() -> None:
        await server.run_with(lambda _: Service(llm, settings, "demo"), listening, lambda _: ready.set())

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        assert server.service is not None
        with httpx.Client(base_url=run.address_of(listening), timeout=30) as client:
            yield client, server.service
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
        assert not thread.is_alive(), "the server did not end"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", max_sequences=4, no_measure=True) as found:
        yield found


@pytest.fixture
def serve(llm: LLM) -> Iterator[Serve]:
    """Starts servers, which end with the test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(serving(llm, **options))
