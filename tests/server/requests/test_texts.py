"""What completions count and refuse, answers that a client has begun, calls that are cut."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import OpenAI
from serving import Served

from headrace.engine.server.wire import fields
from headrace.engine.server.wire.responses import ResponsesRequest, prompt_of

HELLO: list[Any] = [{"role": "user", "content": "Hello there"}]
PARAMETERS = {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Oslo", "days": 2}}\n</tool_call>'


@pytest.mark.parametrize("count", [1, 2])
def test_every_prompt_is_counted_once(count: int, client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": "m", "max_tokens": 2, "prompt": [[5, 6, 7], [8, 9]], "n": count}
    whole = client.completions.create(**ask)
    *_, last = client.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    for usage in (whole.usage, last.usage):
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (5, 2 * 2 * count)


def test_likelihoods_of_a_prompt_are_refused(served: Served) -> None:
    body = {"prompt": "Hello", "echo": True, "logprobs": 1, "max_tokens": 1}
    answer = httpx.post(f"{served.url}/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "echo"


def test_a_completion_may_have_a_form(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    made = client.completions.create(model="m", prompt="Hello", max_tokens=200, extra_body=form)
    assert [*json.loads(made.choices[0].text)] == ["a"]


def test_an_answer_that_was_begun_goes_on(served: Served) -> None:
    """As Anthropic's API has it, where the last message is the assistant's."""
    begun = [*HELLO, {"role": "assistant", "content": [{"type": "text", "text": "My dear"}]}]
    body = {"messages": begun, "max_tokens": 6}
    found = httpx.post(f"{served.url}/v1/messages", json=body).json()
    same = httpx.post(f"{served.url}/v1/chat/completions", json={**body, "continue_final_message": True}).json()
    assert found["content"][0]["text"] == same["choices"][0]["message"]["content"]
    count = httpx.post(f"{served.url}/v1/messages/count_tokens", json=body).json()
    assert count["input_tokens"] == found["usage"]["input_tokens"] + found["usage"]["cache_read_input_tokens"]


def test_an_answer_that_only_called_is_answered_anew(served: Served) -> None:
    used = {"type": "tool_use", "id": "a", "name": "weather", "input": {}}
    body = {"messages": [*HELLO, {"role": "assistant", "content": [used]}], "max_tokens": 2}
    assert httpx.post(f"{served.url}/v1/messages", json=body).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut_is_none_to_make(stream: bool, client: OpenAI, served: Served) -> None:
    """Neither is one that the model was about to make; one that is whole is."""
    served.says(CALL)
    ends: set[Any] = set()
    for most in range(1, 80):
        ask: dict[str, Any] = {"model": "m", "messages": HELLO, "tools": TOOLS, "max_tokens": most}
        if stream:
            pieces = list(client.chat.completions.create(**ask, stream=True))
            reason = pieces[-1].choices[0].finish_reason
            calls = [call for p in pieces for call in p.choices[0].delta.tool_calls or ()]
            arguments = "".join(call.function.arguments or "" for call in calls)
        else:
            choice = client.chat.completions.create(**ask).choices[0]
            reason, calls = choice.finish_reason, choice.message.tool_calls or []
            arguments = "".join(call.function.arguments for call in calls)
        is_whole = arguments == '{"place": "Oslo", "days": 2}'
        assert reason == ("tool_calls" if is_whole else "length"), arguments
        ends.add((reason, bool(calls)))
    assert ends == {("length", False), ("length", True), ("tool_calls", True)}


def test_a_cut_call_ends_a_message_at_its_longest(served: Served) -> None:
    served.says(CALL)
    body: dict[str, Any] = {"messages": HELLO, "tools": [{"name": "weather", "input_schema": PARAMETERS}]}
    ends = {
        httpx.post(f"{served.url}/v1/messages", json={**body, "max_tokens": n}).json()["stop_reason"] for n in (40, 90)
    }
    assert ends == {"max_tokens", "tool_use"}
    served.says(None)


def test_a_response_says_what_was_asked(client: OpenAI) -> None:
    form = {"type": "json_schema", "name": "x", "schema": {"const": 1}}
    made = client.responses.create(
        model="m", input="Hello", metadata={"a": "b"}, parallel_tool_calls=False, text={"format": form},  # type: ignore[arg-type]
        reasoning={"effort": "low"},
    )  # fmt: skip
    assert made.metadata == {"a": "b"}
    assert made.parallel_tool_calls is False
    assert made.text is not None
    assert made.text.format is not None
    assert made.text.format.type == "json_schema"
    assert made.reasoning is not None
    assert made.reasoning.effort == "low"
    assert made.output_text.strip() == "1"


def test_items_that_only_name_others_are_refused(served: Served) -> None:
    said = {"role": "user", "content": "Hello"}
    answer = httpx.post(f"{served.url}/v1/responses", json={"input": [said, {"type": "item_reference", "id": "a"}]})
    assert answer.status_code == 400
    assert "input.1" in answer.json()["error"]["message"]


def test_calls_of_tools_that_take_text_stay_in_a_history() -> None:
    call = {"type": "custom_tool_call", "call_id": "a", "name": "patch", "input": "*** Begin"}
    result = {"type": "custom_tool_call_output", "call_id": "a", "output": "done"}
    read = fields.read(
        json.dumps({"input": [{"role": "user", "content": "Hi"}, call, result]}).encode(), ResponsesRequest
    )
    _, asked, answered = prompt_of(read).messages or ()
    assert json.loads(asked["tool_calls"][0]["function"]["arguments"]) == {"input": "*** Begin"}
    assert (answered["role"], answered["tool_call_id"], answered["content"]) == ("tool", "a", "done")


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_a_stop_string_may_stay(path: str, served: Served) -> None:
    served.says("One two END three")
    body: dict[str, Any] = {"prompt": "Hi", "messages": HELLO, "max_tokens": 50, "stop": ["END", "three"]}

    def text(**more: Any) -> str:
        (choice,) = httpx.post(f"{served.url}/v1/{path}", json={**body, **more}).json()["choices"]
        assert choice["finish_reason"] == "stop"
        return str(choice["text"] if path == "completions" else choice["message"]["content"])

    assert text() == "One two "
    assert text(include_stop_str_in_output=True) == "One two END"
    served.says(None)


def test_stop_strings_are_bounded(served: Served) -> None:
    answer = httpx.post(f"{served.url}/v1/completions", json={"prompt": "Hi", "stop": "x" * 1025})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "stop"


@pytest.mark.parametrize(("schema", "status"), [(True, 200), (False, 400)])
def test_a_schema_may_be_a_truth_value(schema: bool, status: int, served: Served) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"messages": HELLO, "response_format": form, "max_tokens": 100}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body)
    assert answer.status_code == status
    if status == 400:
        assert "false allows nothing" in answer.json()["error"]["message"]
    elif (choice := answer.json()["choices"][0])["finish_reason"] == "stop":
        json.loads(choice["message"]["content"])
