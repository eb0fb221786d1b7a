"""A server that runs for long keeps nothing of a request that ended, but what has a bound: objects are counted, none is
waited for."""

from __future__ import annotations

import gc
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from busy import HANG_S
from serving import Served, serving

import headrace
from headrace.engine.ledger.summary import Account

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
EACH = 4  # requests of a kind in a batch
SCHEMA = {"enum": ["house", "river"]}


@pytest.fixture
def served() -> Iterator[Served]:
    """What has a bound has a small one, so that it is full soon."""
    with serving(parallel=4) as found:
        found.llm.ledger.account = Account(kept=8)
        own = found.llm.admission.own_answers
        assert own is not None
        own.most = 2000
        tracemalloc.start()
        yield found
        tracemalloc.stop()


def ask(served: Served, client: httpx.Client, luck: random.Random) -> int:
    """One request of every kind, none of which was made before; how many."""
    text = " ".join(luck.choices(("house", "river", "in", "the", "was", "never", "light"), k=12))
    chat = {"messages": [{"role": "user", "content": text}], "max_tokens": 3, "max_output_tokens": 3}
    kinds: list[tuple[str, dict[str, Any], int]] = [
        (CHAT, chat, 200),
        (CHAT, {**chat, "stream": True, "return_progress": True}, 200),
        (CHAT, {**chat, "n": 2, "logprobs": True, "top_logprobs": 3}, 200),
        (CHAT, {**chat, "json_schema": SCHEMA, "max_tokens": 20}, 200),
        (CHAT, {**chat, "temperature": -1}, 400),
        (TEXT, {"prompt": text, "max_tokens": 3}, 200),
        (RESPONSES, {**chat, "input": text, "stream": True}, 200),
        (MESSAGES, {**chat, "stream": True}, 200),
        ("/v1/embeddings", {}, 404),
    ]
    for path, body, status in kinds:
        assert client.post(f"{served.url}{path}", json=body).status_code == status, (path, body)
    with client.stream("POST", f"{served.url}{CHAT}", json={**chat, "stream": True, "max_tokens": 900}) as left:
        next(left.iter_lines())
    return len(kinds) + 1


def blocks_of_ours() -> int:
    """Blocks of memory that code of headrace took and did not give back, since they are traced."""
    found = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, f"{Path(headrace.__file__).parent}/*")])
    return sum(one.count for one in found.statistics("filename"))


def growth(served: Served, batches: int) -> tuple[Counter[str], int, int]:
    """Of objects by type, and of blocks of memory: what each batch of requests added at least. And how many these
    were: what is kept of each request comes again in every batch, what a cache or a thread takes does not."""
    luck, seen, count = random.Random(1), list[tuple[Counter[str], int]](), 0
    with httpx.Client(timeout=60) as client:
        for _ in range(batches + 2):  # the first ones fill what has a bound
            count = sum(ask(served, client, luck) for _ in range(EACH))
            end = time.monotonic() + HANG_S
            while served.service.open:
                assert time.monotonic() < end, "a request whose client left goes on"
                time.sleep(0.01)
            gc.collect()
            kinds = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())
            seen.append((kinds, blocks_of_ours()))
    pairs = list(pairwise(seen[1:]))
    least = {name: min(new[0][name] - old[0][name] for old, new in pairs) for name in seen[-1][0]}
    blocks = min(new[1] - old[1] for old, new in pairs)
    return Counter({name: more for name, more in least.items() if more > 0}), blocks, count


def test_of_requests_that_ended_nothing_is_kept(served: Served) -> None:
    kinds, blocks, count = growth(served, batches=6)
    assert not {name: more for name, more in kinds.items() if more >= EACH}, kinds
    assert blocks < count, "a block of memory for each request"


def test_what_is_kept_would_be_seen(served: Served) -> None:
    kept: list[Any] = []
    served.service.ended.append(kept.append)
    kinds, blocks, count = growth(served, batches=2)
    assert kinds["headrace.engine.server.generation.Generation"] >= EACH
    assert blocks > count
