"""Anthropic's client against a server, and what Claude Code is known to send."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import Anthropic
from serving import Served

from headrace.engine.server.wire import fields
from headrace.engine.server.wire.messages import MessagesRequest, prompt_of

TOOLS: list[Any] = [
    {
        "name": "weather",
        "description": "of a place",
        "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
    {"type": "web_search_20260301", "name": "web_search"},
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Oslo"}}\n</tool_call>'
HELLO: list[Any] = [{"role": "user", "content": "Hello there"}]


@pytest.fixture
def client(served: Served) -> Iterator[Anthropic]:
    served.says(None)
    with Anthropic(base_url=served.url, api_key="none", max_retries=0) as found:
        yield found
    assert not served.service.open


def asked(**body: Any) -> list[dict[str, Any]]:
    """The messages that a template gets."""
    import msgspec

    request = fields.read(msgspec.json.encode({"messages": HELLO, **body}), MessagesRequest)
    return [dict(one) for one in prompt_of(request).messages or ()]


def test_a_message_and_its_stream_are_the_same(client: Anthropic) -> None:
    whole = client.messages.create(model="m", max_tokens=20, messages=HELLO)
    assert whole.stop_reason == "max_tokens"
    with client.messages.stream(model="m", max_tokens=20, messages=HELLO) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text  # type: ignore[union-attr]
    assert final.usage.output_tokens == whole.usage.output_tokens == 20


def test_models(client: Anthropic) -> None:
    (model,) = client.models.list()
    assert (model.id, model.type, model.display_name) == ("demo", "model", "demo")
    assert model.created_at.tzinfo is not None


def test_the_order_of_events(client: Anthropic, served: Served) -> None:
    served.says(f"<think>\nHm.\n</think>\n\nLooking.\n{CALL}")
    events = list(client.messages.create(model="m", max_tokens=200, messages=HELLO, tools=TOOLS, stream=True))
    kinds = [e.type for e in events if e.type not in ("content_block_delta", "ping")]
    block = ["content_block_start", "content_block_stop"]
    assert kinds == ["message_start", *block * 3, "message_delta", "message_stop"]
    first: Any = events[0]
    assert first.message.usage.input_tokens > 0
    starts: Any = [e for e in events if e.type == "content_block_start"]
    assert [(e.index, e.content_block.type) for e in starts] == [(0, "thinking"), (1, "text"), (2, "tool_use")]
    signatures: Any = [e for e in events if e.type == "content_block_delta" and e.delta.type == "signature_delta"]
    assert len(signatures) == 1
    last: Any = events[-2]
    assert last.delta.stop_reason == "tool_use"


def test_tools_and_thinking_twice_round(client: Anthropic, served: Served) -> None:
    served.says(f"<think>\nHm.\n</think>\n\nLooking.\n{CALL}")
    first = client.messages.create(model="m", max_tokens=200, messages=HELLO, tools=TOOLS)
    thinking, text, call = first.content
    assert (thinking.type, text.type, call.type) == ("thinking", "text", "tool_use")
    assert call.input == {"place": "Oslo"}  # type: ignore[union-attr]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}  # type: ignore[union-attr]
    history: list[Any] = [
        *HELLO,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    served.says("It rains.")
    second = client.messages.create(model="m", max_tokens=200, messages=history, tools=TOOLS)
    assert second.content[0].text == "It rains."  # type: ignore[union-attr]
    assert second.stop_reason == "end_turn"


def test_stop_sequences(client: Anthropic, served: Served) -> None:
    served.says("one two END three")
    made = client.messages.create(model="m", max_tokens=100, messages=HELLO, stop_sequences=["XX", "END"])
    assert (made.stop_reason, made.stop_sequence) == ("stop_sequence", "END")
    assert made.content[0].text == "one two "  # type: ignore[union-attr]


def test_counts_are_those_of_the_prompt(client: Anthropic) -> None:
    counted = client.messages.count_tokens(model="m", messages=HELLO, tools=TOOLS, system="Be brief.").input_tokens
    used = client.messages.create(model="m", max_tokens=1, messages=HELLO, tools=TOOLS, system="Be brief.").usage
    assert counted == used.input_tokens + (used.cache_read_input_tokens or 0)
    assert counted > client.messages.count_tokens(model="m", messages=HELLO).input_tokens


def test_a_cached_prefix_is_counted_apart(client: Anthropic) -> None:
    long: list[Any] = [{"role": "user", "content": "again " * 150}]
    client.messages.create(model="m", max_tokens=1, messages=long)
    used = client.messages.create(model="m", max_tokens=1, messages=long).usage
    assert (used.cache_read_input_tokens or 0) >= 128
    assert used.input_tokens <= 33


def test_errors_are_in_this_apis_shape(client: Anthropic, served: Served) -> None:
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 1024 maximum") as caught:
        client.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "word " * 3000}])
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert body["request_id"]


def test_a_line_that_changes_is_taken_off_the_system_text() -> None:
    billing = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=0a1b2;"}
    rest = {"type": "text", "text": "You help.", "cache_control": {"type": "ephemeral"}}
    assert asked(system=[billing, rest])[0] == {"role": "system", "content": "You help."}
    assert asked(system=[rest, billing])[0]["content"].endswith("cch=0a1b2;"), "only at the beginning"
    assert asked(system=[billing])[0]["role"] == "user"


def test_a_system_message_in_the_middle_is_accepted(served: Served) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Hi"}, {"role": "system", "content": "Be kind."}, *HELLO]
    answer = httpx.post(f"{served.url}/v1/messages?beta=true", json={"messages": messages, "max_tokens": 2})
    assert answer.status_code == 200, answer.text


def test_results_of_tools_come_before_what_the_user_says() -> None:
    blocks = [
        {"type": "text", "text": "and now?"},
        {"type": "tool_result", "tool_use_id": "a", "content": "1"},
        {"type": "tool_result", "tool_use_id": "b", "is_error": True, "content": "no file"},
    ]
    found = asked(messages=[{"role": "user", "content": blocks}])
    assert [(m["role"], m["content"]) for m in found] == [
        ("tool", "1"),
        ("tool", "Error: no file"),
        ("user", "and now?"),
    ]


@pytest.mark.parametrize("kind", ["image", "document", "video"])
def test_what_is_no_text_is_refused_by_name(kind: str, served: Served) -> None:
    message = {"role": "user", "content": [{"type": kind, "source": {}}]}
    answer = httpx.post(f"{served.url}/v1/messages", json={"messages": [message], "max_tokens": 1})
    assert answer.status_code == 400
    assert kind in answer.json()["error"]["message"]


def test_somebody_is_there(served: Served) -> None:
    assert httpx.head(served.url).status_code == 200
