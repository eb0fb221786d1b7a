"""Answers in a form: whatever the model would say, what comes out is what was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import tiny
import tokenizers
from openai import OpenAI
from serving import TEMPLATE, Served, serving
from tokenizers import decoders, models, pre_tokenizers

from headrace import LLM, OptionError
from headrace.engine.config import SamplingParams
from headrace.engine.generation.grammars.grammar import Grammar, Waking
from headrace.engine.generation.grammars.held_calls import HeldCalls

HELLO: list[Any] = [{"role": "user", "content": "Hello there"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"place": {"enum": ["Oslo", "Rome"]}},
                "required": ["place"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "travel")
]

BYTES = {one: i for i, one in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
ODD = {"type": "object", "$ref": "#/nowhere"}  # no grammar can be made of it


def follows(text: str) -> None:
    found = json.loads(text)
    assert set(found) == {"name", "age"}
    assert len(found["name"]) <= 20
    assert 0 <= found["age"] <= 99


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_a_schema(temperature: float, client: OpenAI) -> None:
    format: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    made = client.chat.completions.create(
        model="m", messages=HELLO, response_format=format, temperature=temperature, seed=3, max_tokens=300
    )
    assert made.choices[0].finish_reason == "stop"
    follows(made.choices[0].message.content or "")


@pytest.mark.parametrize(
    "more",
    [
        {"response_format": {"type": "json_schema", "schema": SCHEMA}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"json_schema": SCHEMA},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"structured_outputs": {"json": SCHEMA}},
    ],
)
def test_a_schema_by_any_of_its_names(more: dict[str, Any], served: Served) -> None:
    served.says(None)
    body = {"messages": HELLO, "max_tokens": 300, **more}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).json()
    follows(answer["choices"][0]["message"]["content"])


@pytest.mark.parametrize(
    ("more", "pattern"),
    [
        ({"guided_regex": "[0-9]{3}-[a-f]{2}"}, r"\d{3}-[a-f]{2}"),
        ({"guided_choice": ["red", "green and blue"]}, "red|green and blue"),
        ({"grammar": 'root ::= ("ab" | "cd") "!"'}, "(ab|cd)!"),
        ({"guided_grammar": 'start: "x" /[0-9]{2,4}/ "y"'}, r"x\d{2,4}y"),
        ({"structured_outputs": {"choice": ["one"]}}, "one"),
    ],
)
def test_other_grammars(more: dict[str, Any], pattern: str, served: Served) -> None:
    served.says(None)
    body = {"prompt": "It is", "max_tokens": 60, **more}
    answer = httpx.post(f"{served.url}/v1/completions", json=body, timeout=60).json()
    assert re.fullmatch(pattern, answer["choices"][0]["text"]), answer


def test_reasoning_comes_before_the_form(client: OpenAI, served: Served) -> None:
    served.says('<think>\nAnything {at} all.\n</think>\n\n{"name": "Ann", "age": 7}')
    format: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    message: Any = client.chat.completions.create(model="m", messages=HELLO, response_format=format).choices[0].message
    assert message.reasoning_content == "Anything {at} all."
    follows(message.content)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "travel"}}])
def test_a_call_that_must_come(choice: Any, client: OpenAI) -> None:
    made = client.chat.completions.create(
        model="m", messages=HELLO, tools=TOOLS, tool_choice=choice, temperature=1, seed=5, max_tokens=200,
        parallel_tool_calls=False,
    )  # fmt: skip
    (call,) = made.choices[0].message.tool_calls or ()
    assert call.function.name in (["travel"] if choice != "required" else ["weather", "travel"])  # type: ignore[union-attr]
    assert json.loads(call.function.arguments)["place"] in ("Oslo", "Rome")  # type: ignore[union-attr]
    assert made.choices[0].finish_reason == "tool_calls"


def test_a_call_that_must_come_by_the_other_api(served: Served) -> None:
    served.says(None)
    tools = [{"name": "travel", "input_schema": TOOLS[0]["function"]["parameters"]}]
    body = {"messages": HELLO, "max_tokens": 200, "tools": tools, "tool_choice": {"type": "tool", "name": "travel"}}
    answer = httpx.post(f"{served.url}/v1/messages", json=body, timeout=60).json()
    assert answer["stop_reason"] == "tool_use"
    assert answer["content"][0]["input"]["place"] in ("Oslo", "Rome")


def test_a_form_beside_tools_lets_either_come(client: OpenAI, served: Served) -> None:
    format: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    ask: dict[str, Any] = {"model": "m", "messages": HELLO, "tools": TOOLS, "response_format": format}
    served.says('<tool_call>\n{"name": "weather", "arguments": {"place": "Oslo"}}\n</tool_call>')
    assert client.chat.completions.create(**ask).choices[0].finish_reason == "tool_calls"
    served.says('{"name": "Ann", "age": 7}')
    follows(client.chat.completions.create(**ask).choices[0].message.content)


@pytest.mark.parametrize(
    "wrong",
    [
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}},
        {"grammar": "root ::= ("},
        {"guided_regex": "["},
        {"guided_choice": []},
        {"guided_regex": "a", "guided_choice": ["b"]},
        {"structured_outputs": {"magic": 1}},
        {"tool_choice": "required"},
        {"tools": [{"type": "function", "function": {"name": "odd", "parameters": ODD}}], "tool_choice": "required"},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "nobody"}}},
    ],
)
def test_what_cannot_be_done_is_refused(wrong: dict[str, Any], served: Served) -> None:
    answer = httpx.post(f"{served.url}/v1/chat/completions", json={"messages": HELLO, "max_tokens": 5, **wrong})
    assert answer.status_code == 400, answer.text


AUTO: dict[str, Any] = {"model": "m", "messages": HELLO, "tools": TOOLS, "temperature": 1, "max_tokens": 200}


@pytest.mark.parametrize("seed", range(3))
def test_a_call_that_may_come_is_held_to_its_tool(seed: int, client: OpenAI, served: Served) -> None:
    served.says("I look.\n\n<tool_call>", and_more=True)
    made = client.chat.completions.create(**AUTO, seed=seed).choices[0]
    assert made.message.content.startswith("I look.")
    call = made.message.tool_calls[0]
    assert json.loads(call.function.arguments)["place"] in ("Oslo", "Rome")


def test_the_answer_ends_behind_the_only_call(client: OpenAI, served: Served) -> None:
    served.says("<tool_call>", and_more=True)
    made = client.chat.completions.create(**AUTO, seed=1, parallel_tool_calls=False)
    assert made.choices[0].message.tool_calls
    assert not made.choices[0].message.content
    assert made.usage.completion_tokens < 200


def test_what_is_no_call_stays_free(client: OpenAI, served: Served) -> None:
    """Text without the mark, a draft within reasoning."""
    for text in ("Just text.", "<think>\nA <tool_call> {3} is a draft.\n</think>\n\nYes."):
        served.says(text)
        made = client.chat.completions.create(**AUTO).choices[0]
        assert not made.message.tool_calls
        assert made.message.content == text.rpartition("\n\n")[2]


def test_a_schema_that_there_is_no_grammar_of_leaves_its_tool_free(client: OpenAI, served: Served) -> None:
    odd = {"type": "function", "function": {"name": "odd", "parameters": ODD}}
    served.says('<tool_call>\n{"name": "', and_more=True)
    made = client.chat.completions.create(**{**AUTO, "tools": [*TOOLS, odd]}, seed=1).choices[0]
    assert made.message.tool_calls[0].function.name in ("weather", "travel", "odd")


@pytest.mark.parametrize(
    "dialect",
    [
        "qwen-coder", "glm", "minimax", "deepseek-v3", "deepseek-dsml", "kimi", "harmony", "gemma-4", "granite-3",
        "mistral",
    ],
)  # fmt: skip
def test_a_call_that_must_come_in_any_dialect(dialect: str) -> None:
    with serving(dialect=dialect) as served, OpenAI(base_url=f"{served.url}/v1", api_key="x") as client:
        made = client.chat.completions.create(
            model="m", messages=HELLO, tools=TOOLS, temperature=1, seed=5, max_tokens=400,
            tool_choice={"type": "function", "function": {"name": "travel"}},
        )  # fmt: skip
        (call,) = made.choices[0].message.tool_calls
        assert call.function.name == "travel"
        assert json.loads(call.function.arguments)["place"] in ("Oslo", "Rome")
        assert not made.choices[0].message.content


def test_a_form_where_answers_have_headers() -> None:
    format: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    with serving(dialect="harmony") as served, OpenAI(base_url=f"{served.url}/v1", api_key="x") as client:
        ask: dict[str, Any] = {"model": "m", "messages": HELLO, "max_tokens": 300, "response_format": format}
        for thought in ("", "<|channel|>analysis<|message|>Hm, {odd}.<|end|><|start|>assistant"):
            served.says(f"{thought}<|channel|>final<|message|>", and_more=True)
            message: Any = client.chat.completions.create(**ask).choices[0].message
            follows(message.content)
            assert message.model_extra.get("reasoning_content") == ("Hm, {odd}." if thought else None)
        message = client.chat.completions.create(**ask, tools=TOOLS).choices[0].message
        follows(message.content)


@pytest.mark.parametrize("dialect", ["deepseek-v3", "kimi", "minimax"])
def test_calls_that_may_come_in_a_section_come_one_after_the_other(dialect: str) -> None:
    """The whole section is held, to its end; with only one call allowed, it has one."""
    begin = {"deepseek-v3": "<｜tool▁calls▁begin｜>", "kimi": "<|tool_calls_section_begin|>"}.get(
        dialect, "<minimax:tool_call>"
    )
    with serving(dialect=dialect) as served, OpenAI(base_url=f"{served.url}/v1", api_key="x") as client:
        for several in (True, False):
            served.says(f"I look.{begin}", and_more=True)
            made = client.chat.completions.create(**{**AUTO, "max_tokens": 900}, seed=2, parallel_tool_calls=several)
            calls = made.choices[0].message.tool_calls
            assert len(calls) == 1 or several
            if made.usage.total_tokens > 1000:  # the context is full, the last call is cut
                calls = calls[:-1]
            assert calls
            assert all(json.loads(one.function.arguments)["place"] in ("Oslo", "Rome") for one in calls)


def test_a_grammar_that_sleeps_is_asked_nothing() -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("a sleeping grammar was asked")

    held = HeldCalls(never, never, (0,), Waking(re.compile("<tool_call>"), ">", True))
    held.settle = never  # type: ignore[method-assign]
    params = SamplingParams(max_new_tokens=4)
    with LLM("demo", no_measure=True, kernels="reference") as llm:
        alone = llm.generate("In the beginning", params)[0].token_ids
        request = llm.admission.request("In the beginning", params)
        request.sequence.constraint = held
        llm.loop.run([request])
    assert request.sequence.completion == alone
    for text in ("Text <tool", "_call no", "> and so on"):
        held.saw(text)
    assert not held.is_awake


def test_a_dialect_whose_calls_cannot_be_forced_says_so() -> None:
    with serving(dialect="thinking") as served, OpenAI(base_url=f"{served.url}/v1", api_key="x") as client:
        refused = pytest.raises(openai.BadRequestError, match="thinking")
        with refused:
            client.chat.completions.create(model="m", messages=HELLO, tools=TOOLS, tool_choice="required")


def test_drawing_again_among_the_allowed_draws_what_masking_would() -> None:
    """Of two tokens that are allowed, the share of each is that of their probabilities."""
    with LLM("demo", no_measure=True, kernels="reference") as llm:
        assert llm.vocabulary is not None
        likely = llm.logits("In the beginning")[-1].softmax(-1)
        assert llm.tokenizer is not None
        words = [llm.tokenizer.encode(text, add_special_tokens=False)[0] for text in (" of", ",")]
        wanted = float(likely[words[0]] / likely[words].sum())
        count = 0
        grammar = Grammar.of_choices([llm.tokenizer.decode([one]) for one in words])
        for seed in range(300):
            params = SamplingParams(max_new_tokens=1, temperature=1.0, seed=seed)
            request = llm.admission.request("In the beginning", params)
            request.sequence.constraint = llm.vocabulary.constraint(grammar)
            llm.loop.run([request])
            (token,) = request.sequence.completion
            assert token in words
            count += token == words[0]
    assert abs(count / 300 - wanted) < 4 * (wanted * (1 - wanted) / 300) ** 0.5


def test_grammars_that_are_too_long_are_refused() -> None:
    with pytest.raises(OptionError, match="characters"):
        Grammar.of_lark('start: "a"' + " " * (2 << 20))


def _tokens_model(directory: Path, *marks: str) -> None:
    """A random model whose tokenizer reads bytes, and has these marks as tokens of their own."""
    tiny.build("qwen3_moe", directory, vocab_size=300 + len(marks), max_position_embeddings=1024)
    core = tokenizers.Tokenizer(models.BPE(vocab=BYTES, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(["</s>"])
    core.add_tokens([tokenizers.AddedToken(one, special=False) for one in marks])
    core.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": TEMPLATE}))


@pytest.fixture(scope="module")
def with_marks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    directory = tmp_path_factory.mktemp("marks")
    _tokens_model(directory, "<tool_call>", "</tool_call>")
    with LLM(directory, no_measure=True, kernels="reference") as llm:
        yield llm


def _eager(llm: LLM, seed: int) -> SamplingParams:
    """That the model begins a call wherever it may."""
    (mark,) = llm.tokenizer.encode("<tool_call>", add_special_tokens=False)  # type: ignore[union-attr]
    return SamplingParams(max_new_tokens=160, temperature=1.0, seed=seed, logit_bias={mark: 100.0})


@pytest.mark.parametrize("choice", [None, "auto", "required", {"type": "function", "function": {"name": "travel"}}])
def test_calls_from_python_are_held_to_their_tools(choice: Any, with_marks: LLM) -> None:
    answer = with_marks.chat(HELLO, _eager(with_marks, 1), tools=TOOLS, tool_choice=choice)
    calls = answer.tool_calls[: -1 if answer.finish_reason == "length" else None]
    assert calls
    for call in calls:
        assert json.loads(call["function"]["arguments"])["place"] in ("Oslo", "Rome")
        assert call["function"]["name"] in (["travel"] if isinstance(choice, dict) else ["weather", "travel"])


def test_no_call_begins_where_none_is_wanted(with_marks: LLM) -> None:
    params = _eager(with_marks, 2)
    (mark,) = params.logit_bias or ()
    answer = with_marks.chat(HELLO, params, tools=TOOLS, tool_choice="none")
    assert not answer.tool_calls
    assert mark not in answer.token_ids
    assert mark in with_marks.chat(HELLO, params).token_ids


def test_a_form_from_python(with_marks: LLM) -> None:
    answer = with_marks.chat(HELLO, SamplingParams(max_new_tokens=200, json_schema=json.dumps(SCHEMA)))
    follows(answer.text)
    both = with_marks.chat(HELLO, replace(_eager(with_marks, 3), json_schema=SCHEMA), tools=TOOLS)
    assert both.tool_calls or follows(both.text) is None


@pytest.mark.parametrize(
    ("choice", "tools", "says"),
    [("whatever", TOOLS, "'whatever' is none: give auto, none, required"), ("required", None, "there are no tools"),
     ({"type": "function", "function": {"name": "nobody"}}, TOOLS, "no tool 'nobody'")],
)  # fmt: skip
def test_a_choice_that_cannot_be_is_refused_from_python(choice: Any, tools: Any, says: str, with_marks: LLM) -> None:
    with pytest.raises(OptionError, match=f"^tool_choice: .*{re.escape(says)}"):
        with_marks.chat(HELLO, tools=tools, tool_choice=choice)
