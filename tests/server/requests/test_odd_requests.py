"""Requests as clients at the edge send them: halves of characters, packed bodies, old HTTP, empty contents, headers of
vendors' clients in a browser."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import pytest
from serving import Served, raw

from headrace.engine.server.app import client_of

CHAT = "/v1/chat/completions"
HELLO: list[Any] = [{"role": "user", "content": "Hello there"}]
JSON = {"content-type": "application/json"}


def rendered(served: Served, body: bytes) -> httpx.Response:
    return httpx.post(f"{served.url}/apply-template", content=body, headers=JSON)


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (r"a \ud83d b", "a \ufffd b"),
        (r"a \ude00", "a \ufffd"),
        (r"\uD83D\ud83d\ude00\ude00", "\ufffd\U0001f600\ufffd"),
        (r"\ud83d \\ud83d \\\ud83d", "\ufffd \\ud83d \\\ufffd"),
    ],
)
def test_half_a_character_is_no_reason_to_refuse(sent: str, read: str, served: Served) -> None:
    body = b'{"messages": [{"role": "user", "content": "%s"}]}' % sent.encode()
    assert f"\n{read}\n" in rendered(served, body).json()["prompt"]


def test_a_mark_of_the_byte_order_is_none_of_the_body(served: Served) -> None:
    body = json.dumps({"messages": HELLO})
    assert rendered(served, body.encode("utf-8-sig")).json() == rendered(served, body.encode()).json()


def test_a_packed_body_is_refused_by_name(served: Served) -> None:
    body = json.dumps({"messages": HELLO, "max_tokens": 1}).encode()
    packed = httpx.post(served.url + CHAT, content=gzip.compress(body), headers={**JSON, "content-encoding": "gzip"})
    assert packed.status_code == 415
    assert "gzip" in packed.json()["error"]["message"]
    plain = httpx.post(served.url + CHAT, content=body, headers={**JSON, "content-encoding": "identity"})
    assert plain.status_code == 200


def test_a_health_check_by_old_http_says_no_host(served: Served) -> None:
    assert b" 200 " in raw(served.url, b"GET /health HTTP/1.0\r\n\r\n").split(b"\r\n")[0]
    other = b"GET /health HTTP/1.0\r\nhost: evil.example\r\n\r\n"
    assert b" 403 " in raw(served.url, other).split(b"\r\n")[0]


def test_pages_may_send_the_headers_of_their_clients(served: Served) -> None:
    wanted = "authorization,content-type,x-stainless-arch,anthropic-dangerous-direct-browser-access"
    asked = {"origin": "http://localhost:3000", "access-control-request-headers": wanted}
    assert httpx.options(served.url + CHAT, headers=asked).headers["access-control-allow-headers"] == wanted
    stranger = httpx.options(served.url + CHAT, headers={**asked, "origin": "https://evil.example"})
    assert "access-control-allow-headers" not in stranger.headers


def test_a_method_that_is_not_taken_is_told_which_are(served: Served) -> None:
    answer = httpx.get(served.url + CHAT)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_a_long_path_is_not_repeated(served: Served) -> None:
    answer = httpx.get(f"{served.url}/{'a' * 5000}")
    assert answer.status_code == 404
    assert len(answer.text) < 500


def test_the_list_of_models_with_a_slash_behind_it(served: Served) -> None:
    assert httpx.get(f"{served.url}/v1/models/").json() == httpx.get(f"{served.url}/v1/models").json()


@pytest.mark.parametrize("content", [None, []])
@pytest.mark.parametrize("role", ["user", "tool", "system", "assistant"])
def test_a_message_may_say_nothing(role: str, content: Any, served: Served) -> None:
    messages = [{"role": role, "content": content}, *HELLO]
    as_text = [{"role": role, "content": ""}, *HELLO]
    answers = [httpx.post(f"{served.url}/apply-template", json={"messages": one}) for one in (messages, as_text)]
    assert answers[0].status_code == 200
    assert answers[0].json() == answers[1].json()


def test_a_user_without_content_is_refused(served: Served) -> None:
    answer = httpx.post(served.url + CHAT, json={"messages": [{"role": "user", "contents": "Hello"}]})
    assert answer.status_code == 400
    assert "content" in answer.json()["error"]["message"]


def test_a_switch_of_the_template_is_no_text(served: Served) -> None:
    """A template takes "false" for true."""

    def asked(value: Any) -> httpx.Response:
        body = {"messages": HELLO, "chat_template_kwargs": {"enable_thinking": value}}
        return httpx.post(f"{served.url}/apply-template", json=body)

    refused = asked("false")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "chat_template_kwargs.enable_thinking"
    assert "<think>" in asked(False).json()["prompt"]
    assert asked(None).json() == asked(True).json()


def test_tokens_outside_of_the_vocabulary(served: Served) -> None:
    size = served.llm.spec.vocab
    for token in (-1, size):
        answer = httpx.post(f"{served.url}/detokenize", json={"tokens": [5, token]})
        assert answer.status_code == 400
        assert f"{token} is outside" in answer.json()["error"]["message"]


def test_what_a_client_calls_itself_is_kept_short() -> None:
    def named(agent: str, address: str = "127.0.0.1") -> str:
        return client_of({"type": "http", "headers": [(b"user-agent", agent.encode())], "client": (address, 5)})

    assert named("claude-cli/2.1.197 (external, cli)") == "claude-cli/2.1.197"
    assert named("a\x1b[31mb\xc3") == "a[31mb"
    assert named("x" * 500) == "x" * 40
    assert named("curl/8", "192.168.0.7") == "curl/8 at 192.168.0.7"
    assert named("", "192.168.0.7") == "somebody at 192.168.0.7"
    assert named("") == ""
