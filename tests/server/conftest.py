"""The demo model behind a server, once for a file, and OpenAI's client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI
from serving import Served, serving


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as found:
        yield found


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    """It leaves no request behind."""
    served.says(None)
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as found:
        yield found
    assert not served.service.open
