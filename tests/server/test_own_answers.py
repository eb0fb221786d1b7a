"""An agent's history: reasoning and calls come back as clients send them, in the tokens that the model wrote."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import pytest
from serving import Served

CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Oslo", "days": 2}}\n</tool_call>'
TOOL = {"name": "weather", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}}
TOOLS = [{"type": "function", "function": TOOL}]
THOUGHT = "The weather of Oslo is wanted, and there is a tool for that; two days should be enough for anybody."
HELLO = {"role": "user", "content": "How is the weather in Oslo? " * 4}
PAGE = 32


def letters(served: Served, text: str) -> list[int]:
    """A text in one token a letter."""
    tokenizer = served.llm.tokenizer
    assert tokenizer is not None
    return [t for c in text for t in tokenizer.encode(c, add_special_tokens=False)]


def ask(served: Served, messages: list[dict[str, Any]]) -> dict[str, Any]:
    body = {"messages": messages, "tools": TOOLS, "max_tokens": 600}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def cached(answer: dict[str, Any]) -> int:
    found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


def total(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["total_tokens"])


def test_an_agent_goes_on_where_it_was(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """Reasoning and a call, its result, a second answer, a question: each prompt takes all that was computed."""
    served.says(letters(served, f"<think>\n{THOUGHT}\n</think>\nLet me look.{CALL}"))
    first = ask(served, [HELLO])
    message = first["choices"][0]["message"]
    assert message["reasoning_content"] == THOUGHT
    (call,) = message["tool_calls"]
    # As opencode sends them: without the blanks that the model wrote.
    call["function"]["arguments"] = json.dumps(json.loads(call["function"]["arguments"]), separators=(",", ":"))
    messages = [HELLO, message, {"role": "tool", "tool_call_id": call["id"], "content": "rain"}]
    served.says(letters(served, "It rains, and it will go on raining until tomorrow evening at least."))
    with caplog.at_level(logging.INFO, "headrace.access"):
        second = ask(served, messages)
        messages += [second["choices"][0]["message"], {"role": "user", "content": "Thanks! And in Rome?"}]
        third = ask(served, messages)
    # The end token is in no cache, and the last word may have grown together with what follows.
    assert cached(second) >= total(first) - 8 - PAGE
    assert cached(third) >= total(second) - 8 - PAGE
    assert cached(first) < first["usage"]["prompt_tokens"] < cached(second) < cached(third)
    lines = [r.getMessage() for r in caplog.records if r.name == "headrace.access" and "request" in r.getMessage()]
    assert ["1 answer in the model's own tokens" in one for one in lines] == [True, False]
    assert "2 answers in the model's own tokens" in lines[1]
    metrics = httpx.get(f"{served.url}/metrics").text
    assert "headrace_spliced_answers_total 3.0" in metrics


def test_without_them_an_answer_is_computed_again(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.llm.admission, "own_answers", None)
    hello = {"role": "user", "content": "Hello, you. " * 9}
    served.says(letters(served, THOUGHT))
    first = ask(served, [hello])
    message = first["choices"][0]["message"]
    second = ask(served, [hello, message, {"role": "user", "content": "Why?"}])
    assert cached(second) <= first["usage"]["prompt_tokens"]


def test_an_answer_of_which_a_client_sends_no_reasoning_is_text(served: Served) -> None:
    hello = {"role": "user", "content": "Good morning. " * 9}
    served.says(letters(served, f"<think>\n{THOUGHT}\n</think>\n\nGood morning to you, and a good day."))
    first = ask(served, [hello])
    message = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
    messages = [hello, message, {"role": "user", "content": "Why?"}]
    second = ask(served, messages)
    rendered = served.llm.tokenizer.render_chat(messages, tools=TOOLS, template=served.service.template)  # type: ignore[union-attr]
    assert second["usage"]["prompt_tokens"] == len(served.llm.tokenizer.encode(rendered, False))  # type: ignore[union-attr]
    assert cached(second) <= first["usage"]["prompt_tokens"]
