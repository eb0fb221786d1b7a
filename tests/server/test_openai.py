"""OpenAI's client against a server: chat, streams, tools, reasoning, likelihoods, errors."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from serving import Served, serving

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "of a place",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer"}}},
        },
    }
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Oslo", "days": 2}}\n</tool_call>'
HELLO: list[Any] = [{"role": "user", "content": "Hello there"}]


def test_models(client: OpenAI, served: Served) -> None:
    (model,) = client.models.list().data
    assert model.id == "demo"
    assert client.models.retrieve("demo").max_model_len == served.service.limit  # type: ignore[attr-defined]


def test_an_answer_and_its_stream_are_the_same(client: OpenAI, served: Served) -> None:
    whole = client.chat.completions.create(model="m", messages=HELLO, max_tokens=20)
    pieces = list(
        client.chat.completions.create(
            model="m", messages=HELLO, max_tokens=20, stream=True, stream_options={"include_usage": True}
        )
    )
    assert whole.model == pieces[0].model == "m"
    assert whole.choices[0].finish_reason == "length"
    assert {p.id for p in pieces} == {pieces[0].id}
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == whole.choices[0].message.content
    assert [p.choices[0].finish_reason for p in pieces if p.choices][-1] == "length"
    assert pieces[-1].choices == []
    assert pieces[-1].usage is not None
    assert whole.usage is not None
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens == 20
    assert whole.usage.prompt_tokens == len(served.llm.chat_prompt(HELLO, chat_template=served.service.template))


def test_usage_comes_only_when_it_is_asked_for(client: OpenAI) -> None:
    pieces = list(client.chat.completions.create(model="m", messages=HELLO, max_tokens=3, stream=True))
    assert all(p.choices for p in pieces)


def test_reasoning_and_text(client: OpenAI, served: Served) -> None:
    served.says("<think>\nHm, a greeting.\n</think>\n\nHello!")
    whole: Any = client.chat.completions.create(model="m", messages=HELLO).choices[0].message
    assert (whole.content, whole.reasoning_content) == ("Hello!", "Hm, a greeting.")
    assert whole.reasoning == whole.reasoning_content
    text = thought = ""
    for piece in client.chat.completions.create(model="m", messages=HELLO, stream=True):
        delta: Any = piece.choices[0].delta
        text, thought = text + (delta.content or ""), thought + (getattr(delta, "reasoning_content", None) or "")
    assert (text, thought) == ("Hello!", "Hm, a greeting.")
    counts = client.chat.completions.create(model="m", messages=HELLO).usage
    assert counts is not None
    assert counts.completion_tokens_details is not None
    assert 5 <= (counts.completion_tokens_details.reasoning_tokens or 0) < counts.completion_tokens


def test_tools_twice_round(client: OpenAI, served: Served) -> None:
    served.says(f"Let me look.\n{CALL}\n{CALL.replace('Oslo', 'Rome')}")
    choice = client.chat.completions.create(model="m", messages=HELLO, tools=TOOLS).choices[0]  # type: ignore[arg-type]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    calls: Any = choice.message.tool_calls
    assert [json.loads(c.function.arguments) for c in calls] == [{"place": p, "days": 2} for p in ("Oslo", "Rome")]
    assert len({c.id for c in calls}) == 2
    results = [{"role": "tool", "tool_call_id": c.id, "content": "rain"} for c in calls]
    served.says("It rains in both.")
    after = client.chat.completions.create(
        model="m",
        tools=TOOLS,  # type: ignore[arg-type]
        messages=[*HELLO, choice.message, *results],  # type: ignore[list-item]
    )
    assert after.choices[0].message.content == "It rains in both."
    assert after.choices[0].finish_reason == "stop"


def test_a_streamed_call(client: OpenAI, served: Served) -> None:
    served.says(CALL)
    pieces = list(client.chat.completions.create(model="m", messages=HELLO, tools=TOOLS, stream=True))  # type: ignore[call-overload]
    deltas = [call for p in pieces for call in p.choices[0].delta.tool_calls or ()]
    assert [d.function.name for d in deltas if d.function.name] == ["weather"]
    assert deltas[0].id
    assert deltas[0].function.arguments == ""
    assert all(d.id is None and d.function.name is None for d in deltas[1:])
    assert json.loads("".join(d.function.arguments for d in deltas)) == {"place": "Oslo", "days": 2}
    assert pieces[-1].choices[0].finish_reason == "tool_calls"


def test_without_tools_a_call_is_text(client: OpenAI, served: Served) -> None:
    served.says(CALL)
    message = client.chat.completions.create(model="m", messages=HELLO).choices[0].message
    assert message.content == CALL
    assert message.tool_calls is None
    none = client.chat.completions.create(model="m", messages=HELLO, tools=TOOLS, tool_choice="none")  # type: ignore[arg-type]
    assert none.choices[0].message.content == CALL


def test_stop_strings_are_not_looked_for_in_reasoning(client: OpenAI, served: Served) -> None:
    served.says("<think>\nSTOP here\n</think>\n\nOne two STOP three")
    message: Any = client.chat.completions.create(model="m", messages=HELLO, stop=["STOP"]).choices[0].message
    assert (message.content.strip(), message.reasoning_content) == ("One two", "STOP here")


def test_likelihoods(client: OpenAI) -> None:
    choice = client.chat.completions.create(
        model="m", messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=3
    ).choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content is not None
    assert len(content) == 4
    for one in content:
        assert [t.logprob for t in one.top_logprobs] == sorted((t.logprob for t in one.top_logprobs), reverse=True)
        assert one.logprob == one.top_logprobs[0].logprob <= 0  # greedy
        assert bytes(one.bytes or ()).decode() == one.token
    assert "".join(one.token for one in content) == choice.message.content


def test_several_answers(client: OpenAI) -> None:
    made = client.chat.completions.create(model="m", messages=HELLO, n=3, max_tokens=8, temperature=1.5, seed=7)
    again = client.chat.completions.create(model="m", messages=HELLO, n=3, max_tokens=8, temperature=1.5, seed=7)
    texts = [c.message.content for c in made.choices]
    assert [c.index for c in made.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    assert texts == [c.message.content for c in again.choices]
    assert made.usage is not None
    assert made.usage.completion_tokens == 24


def test_a_bias_bars_or_forces_tokens(client: OpenAI, served: Served) -> None:
    free = client.chat.completions.create(model="m", messages=HELLO, max_tokens=1, logprobs=True).choices[0]
    assert served.llm.tokenizer is not None
    word = served.llm.tokenizer.encode(" house", add_special_tokens=False)
    forced = client.chat.completions.create(
        model="m", messages=HELLO, max_tokens=3, logit_bias={str(word[0]): 1000}
    ).choices[0]
    assert forced.message.content == served.llm.tokenizer.decode([word[0]] * 3)
    assert forced.message.content != free.message.content


def test_completions(client: OpenAI) -> None:
    made = client.completions.create(model="m", prompt=["In the beginning", "And it came"], max_tokens=6, echo=True)
    assert [c.text.startswith(p) for c, p in zip(made.choices, ("In the beginning", "And it came"), strict=True)] == [
        True
    ] * 2
    pieces = list(client.completions.create(model="m", prompt="In the beginning", max_tokens=6, stream=True))
    assert "In the beginning" + "".join(p.choices[0].text for p in pieces) == made.choices[0].text
    ids = client.completions.create(model="m", prompt=[5, 6, 7], max_tokens=2, logprobs=2).choices[0]
    assert ids.logprobs is not None
    assert len(ids.logprobs.tokens or ()) == 2


@pytest.mark.parametrize("prompt", [["Hello", 5], ["Hello", [5]], [[5], 6], [5, "Hello"], [[5], "Hello"]])
def test_prompts_of_two_kinds(prompt: Any, client: OpenAI) -> None:
    """A text and a list of ids are two prompts; an id beside a text is neither."""
    if all(isinstance(one, str | list) for one in prompt):
        assert len(client.completions.create(model="m", prompt=prompt, max_tokens=1).choices) == 2
    else:
        with pytest.raises(openai.BadRequestError, match="prompt mixes texts and ids"):
            client.completions.create(model="m", prompt=prompt)


@pytest.mark.parametrize("token", [-1, 2**40])
def test_an_id_that_no_token_has(token: int, client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="outside the vocabulary"):
        client.completions.create(model="m", prompt=[5, token], echo=True)


def test_a_repeated_prefix_is_not_computed_again(client: OpenAI) -> None:
    long: list[Any] = [{"role": "user", "content": "word " * 200}]
    first = client.chat.completions.create(model="m", messages=long, max_tokens=2).usage
    second = client.chat.completions.create(model="m", messages=long, max_tokens=2).usage
    assert first is not None
    assert second is not None
    assert second.prompt_tokens_details is not None
    assert (second.prompt_tokens_details.cached_tokens or 0) > second.prompt_tokens - 33


def test_the_bytes_that_an_answer_read(client: OpenAI) -> None:
    made: Any = client.chat.completions.create(model="m", messages=HELLO, max_tokens=5, extra_body={"headrace": True})
    assert made.headrace["decode"]["passes"] == 4
    assert made.headrace["decode"]["bytes"]["cpu_dram"]["experts"] > 0
    assert made.timings["predicted_n"] == 5


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"n": 99}, "n"),
        ({"max_tokens": -3}, "max_tokens"),
        ({"top_logprobs": 50, "logprobs": True}, "logprobs"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"tool_choice": "whatever"}, "tool_choice"),
        ({"logit_bias": {"word": 3}}, "logit_bias"),
        ({"stream_options": 7}, "stream_options"),
    ],
)
def test_a_bad_request_names_its_field(more: dict[str, Any], param: str | None, client: OpenAI, served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "m", "messages": HELLO, **more})  # type: ignore[call-overload]
    assert caught.value.param == param
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_prompt_that_is_too_long_says_both_numbers(client: OpenAI, served: Served) -> None:
    with pytest.raises(
        openai.BadRequestError, match=r"maximum context length is 1024 tokens.*resulted in \d+ tokens"
    ) as caught:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "word " * 3000}])
    assert caught.value.code == "context_length_exceeded"


def test_a_longer_answer_than_fits_is_clamped(client: OpenAI, served: Served) -> None:
    made = client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "word " * 900}],
        max_tokens=32000,
        extra_body={"ignore_eos": True},
    )
    assert made.choices[0].finish_reason == "length"
    assert made.usage is not None
    assert made.usage.total_tokens == served.service.limit + 1


@pytest.mark.parametrize("field", ["store", "metadata", "service_tier", "user", "prompt_cache_key", "unheard_of"])
def test_unknown_fields_and_null_are_ignored(field: str, served: Served) -> None:
    body = {"messages": HELLO, "max_tokens": 1, field: {"a": 1}, "stop": None, "tools": None, "temperature": None}
    assert httpx.post(f"{served.url}/v1/chat/completions", json=body).status_code == 200


def test_what_the_answers_start_with_is_what_the_model_named() -> None:
    with (
        serving(strict_model=True) as served,
        OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client,
    ):
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="other", messages=HELLO)
        assert client.chat.completions.create(model="demo", messages=HELLO, max_tokens=1).model == "demo"


def test_responses(client: OpenAI, served: Served) -> None:
    served.says(f"<think>\nI wonder.\n</think>\n\nLooking.\n{CALL}")
    tools: Any = [{"type": "function", **TOOLS[0]["function"]}, {"type": "web_search"}]  # type: ignore[dict-item]
    made = client.responses.create(model="m", input="Hello", instructions="Be brief.", tools=tools, store=False)
    assert [one.type for one in made.output] == ["reasoning", "message", "function_call"]
    assert made.output_text == "Looking."
    call: Any = made.output[2]
    assert json.loads(call.arguments) == {"place": "Oslo", "days": 2}
    served.says("It rains.")
    history: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
        *[one.model_dump() for one in made.output],
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
    ]
    assert client.responses.create(model="m", input=history, tools=tools).output_text == "It rains."


def test_streamed_responses(client: OpenAI, served: Served) -> None:
    served.says(f"Looking.\n{CALL}")
    tools: Any = [{"type": "function", **TOOLS[0]["function"]}]  # type: ignore[dict-item]
    with client.responses.stream(model="m", input="Hello", tools=tools) as stream:
        events = list(stream)
        final = stream.get_final_response()
    numbers = [e.sequence_number for e in events]
    assert numbers == sorted(numbers)
    assert final.status == "completed"
    assert final.output_text == "Looking."
    assert json.loads(final.output[1].arguments) == {"place": "Oslo", "days": 2}  # type: ignore[union-attr]
    assert final.usage is not None
    assert final.usage.output_tokens > 3


def test_a_state_that_is_not_kept_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="keeps no conversations"):
        client.responses.create(model="m", input="Hello", previous_response_id="resp_1")
