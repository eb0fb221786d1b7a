"""A server with the demo model on a free port, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from serving import running

from headrace import LLM
from headrace.engine.server.service import Service
from headrace.engine.server.settings import ServerSettings

Serve = Callable[..., tuple[httpx.Client, Service]]


@contextmanager
def serving(llm: LLM, **options: Any) -> Iterator[tuple[httpx.Client, Service]]:
    """A client of a server, and its service."""
    settings = ServerSettings(port=0, **options)
    with running(settings, lambda _: Service(llm, settings, "demo")) as (server, url):
        assert server.service is not None
        with httpx.Client(base_url=url, timeout=30) as client:
            yield client, server.service


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", max_sequences=4, no_measure=True) as found:
        yield found


@pytest.fixture
def serve(llm: LLM) -> Iterator[Serve]:
    """Starts servers, which end with the test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(serving(llm, **options))
