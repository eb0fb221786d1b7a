"""Fields that vLLM and llama.cpp added to OpenAI's API: how a prompt ends, who shares its cache, how far it is."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest
from serving import TEMPLATE, Served, serving

HELLO = [{"role": "user", "content": "Hello there"}]
OPEN = [*HELLO, {"role": "assistant", "content": "Well, "}]
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CHAT = "/v1/chat/completions"


def ask(served: Served, path: str = CHAT, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{served.url}{path}", json={"messages": HELLO, "max_tokens": 4, **body}, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def stream(served: Served, path: str = CHAT, **body: Any) -> list[dict[str, Any]]:
    body = {"messages": HELLO, "max_tokens": 4, "stream": True, **body}
    text = httpx.post(f"{served.url}{path}", json=body, timeout=60).text
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def test_an_answer_goes_on_with_the_last_message(served: Served) -> None:
    served.says(None)
    prompt = ask(served, "/apply-template", messages=OPEN, continue_final_message=True)["prompt"]
    assert prompt == "<|user|>\nHello there\n<|assistant|>\nWell, "
    same = httpx.post(f"{served.url}/tokenize", json={"messages": OPEN, "continue_final_message": True}).json()
    made = ask(served, messages=OPEN, continue_final_message=True, add_generation_prompt=False)
    assert made["usage"]["prompt_tokens"] == same["count"]
    text = ask(served, "/v1/completions", prompt=prompt, add_special_tokens=False)["choices"][0]["text"]
    assert made["choices"][0]["message"]["content"].strip() == text.strip()


def test_a_thought_goes_on(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.service, "template", TEMPLATE.replace("<|assistant|>", "<|im_start|>assistant"))
    served.says("so I greet.\n</think>\n\nHello!")
    messages = [*HELLO, {"role": "assistant", "content": "<think>\nA greeting, "}]
    message = ask(served, messages=messages, continue_final_message=True, max_tokens=60)["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("so I greet.", "Hello!")


@pytest.mark.parametrize("content", ["  padded  ", "", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]])
def test_the_text_to_go_on_with_stays_as_it_is(content: Any, served: Served) -> None:
    messages = [*HELLO, {"role": "assistant", "content": content}]
    prompt = ask(served, "/apply-template", messages=messages, continue_final_message=True)["prompt"]
    assert prompt.partition("<|assistant|>\n")[2] == (content if isinstance(content, str) else "a\nb")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"add_generation_prompt": True}, "exclude each other"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "", "tool_calls": [CALL]}]}, "only text can"),
    ],
)  # fmt: skip
def test_what_cannot_go_on_is_refused(more: dict[str, Any], said: str, served: Served) -> None:
    body = {"messages": OPEN, "continue_final_message": True, **more}
    answer = httpx.post(f"{served.url}{CHAT}", json=body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_a_template_that_leaves_the_last_message_out(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.service, "template", "{{ messages[0].content }}{% if false %}{% endif %}")
    answer = httpx.post(f"{served.url}{CHAT}", json={"messages": OPEN, "continue_final_message": True})
    assert answer.status_code == 400
    assert "leaves the last message out" in answer.json()["error"]["message"]


def test_no_answer_is_opened(served: Served) -> None:
    prompts = [ask(served, "/apply-template", **more)["prompt"] for more in ({}, {"add_generation_prompt": False})]
    assert prompts[0] == prompts[1] + "<|assistant|>\n"


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/messages", "/v1/responses"])
def test_prompts_of_different_salts_share_nothing(path: str, served: Served) -> None:
    served.says(None)
    text = f"{path} " + "word " * 100

    def cached(**more: Any) -> int:
        body = {"messages": [{"role": "user", "content": text}], "prompt": text, "input": text, "max_output_tokens": 2}
        usage = ask(served, path, **body, **more)["usage"]
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        return int(details.get("cached_tokens", usage.get("cache_read_input_tokens")))

    assert cached() == 0
    assert cached() > 64
    assert cached(cache_salt="one") == 0
    assert cached(cache_salt="two") == 0
    assert cached(cache_salt="one") > 64
    assert cached(cache_salt="") > 64


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_how_far_a_prompt_is(path: str) -> None:
    with serving(options={"prefill_chunk": 64}) as served:
        step = served.llm.loop.step
        served.llm.loop.step = lambda: (step(), time.sleep(0.05))  # type: ignore[method-assign,assignment,return-value]
        text = "word " * 120
        body = {"messages": [{"role": "user", "content": text}], "prompt": text, "return_progress": True}
        first, again = stream(served, path, **body), stream(served, path, **body)
        told = [one["prompt_progress"] for one in first if "prompt_progress" in one]
        total = told[0]["total"]
        done = [one["processed"] for one in told if one["processed"]]  # 0: it has begun
        assert done == sorted({*done, total})
        assert {*done} <= {*range(64, total, 64), total}  # a busy machine may tell two passes at once
        assert {(one["total"], one["cache"]) for one in told} == {(total, 0)}
        times = [one["time_ms"] for one in told]
        assert times == sorted(times)
        last = [one["prompt_progress"] for one in again if "prompt_progress" in one][-1]
        assert (last["cache"], last["processed"]) == ((total - 1) // 32 * 32, total)
        assert not any("prompt_progress" in one for one in stream(served, path, **body | {"return_progress": False}))


def test_times_of_every_token(served: Served) -> None:
    served.says(None)
    made = stream(served, timings_per_token=True)
    counts = [one["timings"]["predicted_n"] for one in made if one["choices"][0]["delta"].get("content")]
    assert counts
    assert counts == sorted(counts)
    assert sum("timings" in one for one in stream(served)) == 1
