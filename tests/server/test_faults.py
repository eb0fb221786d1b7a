"""Clients that leave, are slow, or too many; a model that fails: nothing hangs, and nothing is left behind."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest
from serving import Served, raw, serving

from headrace import HeadraceError
from headrace.engine.server import generation, security, service

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello there"}]
LONG: dict[str, Any] = {"messages": HELLO, "max_tokens": 900, "ignore_eos": True}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(parallel=2, max_queue=3) as found:
        yield found


@pytest.fixture(autouse=True)
def _nothing_is_left(served: Served) -> Iterator[None]:
    yield
    served.says(None)
    assert until(lambda: not served.service.open), "a request is still open"
    assert until(lambda: not served.llm.loop.requests)
    pages = served.llm.loop.pages
    assert pages.available == len(pages.owners)
    assert httpx.get(f"{served.url}/health").status_code == 200


def until(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


def connect(served: Served, path: str, body: bytes, stream: bool = True) -> socket.socket:
    """A client that has sent its request."""
    host, port = served.url.removeprefix("http://").split(":")
    found = socket.create_connection((host, int(port)), timeout=10)
    found.sendall(request("POST", path, "content-type: application/json", f"content-length: {len(body)}", body=body))
    return found


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/completions", "/v1/responses"])
def test_a_client_that_leaves_ends_its_request(path: str, stream: bool, served: Served) -> None:
    body: dict[str, Any] = {**LONG, "prompt": "Hello", "input": "Hello", "max_output_tokens": 900, "stream": stream}
    connection = connect(served, path, httpx.Request("POST", "http://x", json=body).content)
    assert until(lambda: len(served.service.open) == 1)
    assert until(lambda: any(g.request.sequence.completion for g in served.service.open.values()))
    start = time.monotonic()
    connection.close()
    assert until(lambda: not served.service.open)
    assert time.monotonic() - start < 1.0


def test_clients_that_leave_while_they_wait(served: Served) -> None:
    body = httpx.Request("POST", "http://x", json={**LONG, "stream": True}).content
    connections = [connect(served, "/v1/chat/completions", body) for _ in range(5)]
    assert until(lambda: len(served.service.open) == 5)
    for connection in connections[2:]:
        connection.close()
    assert until(lambda: len(served.service.open) == 2)
    for connection in connections:
        connection.close()


def test_more_than_may_wait_are_told_to_come_back(served: Served) -> None:
    body = httpx.Request("POST", "http://x", json={**LONG, "stream": True}).content
    connections = [connect(served, "/v1/chat/completions", body) for _ in range(5)]
    assert until(lambda: len(served.service.open) == 5)
    one = httpx.post(f"{served.url}/v1/chat/completions", json=LONG)
    other = httpx.post(f"{served.url}/v1/messages", json=LONG)
    assert (one.status_code, other.status_code) == (429, 529)
    assert one.headers["retry-after"]
    assert "x-should-retry" not in one.headers
    slots = httpx.get(f"{served.url}/slots").json()
    assert len(slots) == 5
    assert sum(s["phase"] == "waiting" for s in slots) == 3
    for connection in connections:
        connection.close()


def test_several_answers_are_all_taken_or_none(served: Served) -> None:
    answer = httpx.post(f"{served.url}/v1/chat/completions", json={**LONG, "n": 8})
    assert answer.status_code == 429


def test_a_reader_that_does_not_read_is_let_go(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "MOST_UNREAD", 40)
    body = httpx.Request(
        "POST", "http://x", json={**LONG, "stream": True, "logprobs": True, "top_logprobs": 20}
    ).content
    connection = connect(served, "/v1/chat/completions", body)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    assert until(lambda: len(served.service.open) == 1)
    assert until(lambda: not served.service.open, 30)
    connection.close()


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize(
    ("path", "sign"), [(CHAT, ":\n\n"), ("/v1/responses", ":\n\n"), ("/v1/messages", "event: ping")]
)
def test_a_stream_that_waits_shows_that_it_lives(
    path: str, sign: str, silent: bool, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a pass takes long; not where clients cannot read it (--no-keep-alive)."""
    monkeypatch.setattr(generation, "SILENT_S", 0.02)
    settings = dataclasses.replace(served.service.settings, no_keep_alive=silent)
    monkeypatch.setattr(served.service, "settings", settings)
    body = {"messages": HELLO, "input": "Hello", "max_tokens": 2, "max_output_tokens": 2, "stream": True}
    with ThreadPoolExecutor(1) as pool:
        with served.llm.loop.lock:
            answer = pool.submit(httpx.post, f"{served.url}{path}", json=body, timeout=60)
            assert until(lambda: len(served.service.open) == 1)
            time.sleep(0.3)
        text = answer.result().text
    assert text.count(sign) == 0 if silent else text.count(sign) > 1


def test_a_pass_that_fails_ends_its_requests_and_no_others(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    step = served.llm.loop.step
    monkeypatch.setattr(served.llm.loop, "step", lambda: 1 / 0)
    whole = httpx.post(f"{served.url}/v1/chat/completions", json=LONG)
    stream = httpx.post(f"{served.url}/v1/chat/completions", json={**LONG, "stream": True})
    message = httpx.post(f"{served.url}/v1/messages", json={**LONG, "stream": True})
    monkeypatch.setattr(served.llm.loop, "step", step)
    assert whole.status_code == 500
    assert "ZeroDivisionError" in whole.json()["error"]["message"]
    assert '"error"' in stream.text
    assert "[DONE]" not in stream.text
    assert "event: error" in message.text
    assert httpx.post(f"{served.url}/v1/chat/completions", json={**LONG, "max_tokens": 2}).status_code == 200


def test_a_models_own_failure_is_not_the_clients(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise HeadraceError("the model gave logits that are not finite")

    monkeypatch.setattr(served.llm.loop, "step", fail)
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=LONG)
    assert answer.status_code == 500
    assert "not finite" in answer.json()["error"]["message"]


def test_a_template_that_never_ends_is_stopped(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PREPARE_S", 0.3)
    loop = "{% for a in range(9999) %}" * 3 + "{% endfor %}" * 3
    monkeypatch.setattr(served.service, "template", loop)
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=LONG)
    assert answer.status_code == 400
    assert "took longer" in answer.json()["error"]["message"]
    assert until(lambda: not any(t.name == "headrace-prompt" for t in threading.enumerate()))


def test_a_template_that_the_model_has_not_is_refused_at_the_start(served: Served) -> None:
    with pytest.raises(HeadraceError, match=r"'chatml' is no template of .*there are default"):
        service.Service(served.llm, dataclasses.replace(served.service.settings, chat_template="chatml"), "demo")


def test_a_tokenizer_that_takes_long_is_named(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(text: str) -> None:
        while True:
            time.sleep(0.001)

    monkeypatch.setattr(service, "PREPARE_S", 0.5)
    monkeypatch.setattr(served.llm.admission, "chat_ids", slow)
    monkeypatch.setattr(served.llm.admission, "encode", slow)
    for path, body in (("chat/completions", LONG), ("completions", {"prompt": "a"})):
        answer = httpx.post(f"{served.url}/v1/{path}", json=body)
        assert answer.status_code == 400
        assert "the tokenizer took longer" in answer.json()["error"]["message"]


def test_connections_that_come_and_go(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")

    def drop(i: int) -> None:
        with socket.create_connection((host, int(port)), timeout=10) as one:
            one.sendall(
                [
                    b"",
                    b"GET /he",
                    b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{",
                ][i % 3]
            )

    process = psutil.Process()
    files = process.num_fds()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(drop, range(2000)))
    assert until(lambda: process.num_fds() <= files + 2), "connections are still open"


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    """A request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", "connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request("POST", CHAT, "content-length: 999999999"), 413),
        (request("POST", CHAT, "content-length: 3", body=b"{{{"), 400),
        (request("POST", CHAT, "content-length: 4", body=b"\xff\xfe{}"), 400),
        (request("GET", CHAT), 405),
        (request("GET", "/api/tags"), 404),
        (b"nonsense\r\n\r\n", 400),
    ],
)
def test_bad_requests(sent: bytes, status: int, served: Served) -> None:
    assert f" {status} ".encode() in raw(served.url, sent).split(b"\r\n")[0]


def test_a_body_that_never_arrives(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "BODY_S", 0.3)
    assert b" 408 " in raw(served.url, request("POST", CHAT, "content-length: 9", body=b"{")).split(b"\r\n")[0]


def test_deeply_nested_bodies_are_refused(served: Served) -> None:
    body = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert httpx.post(f"{served.url}/v1/chat/completions", content=body).status_code == 400


def test_health_does_not_wait_for_a_pass(served: Served) -> None:
    """While the engine is in a pass, everything that only looks answers."""
    with served.llm.loop.lock:
        for path in ("/health", "/slots", "/v1/models", "/props"):
            assert httpx.get(f"{served.url}{path}", timeout=2).status_code == 200
