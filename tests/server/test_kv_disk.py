"""A server that was stopped and started again knows the prompts of before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from serving import Served, serving

PAGE = 32
SAID = "You are an agent that reads files and answers in one sentence; you never guess. " * 12


def ask(served: Served, question: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": SAID}, {"role": "user", "content": question}]
    answer = httpx.post(f"{served.url}/v1/chat/completions", json={"messages": messages, "max_tokens": 9}, timeout=60)
    found: dict[str, Any] = answer.json()
    return found


def cached(answer: dict[str, Any]) -> int:
    found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


def restart(folder: Path) -> Any:
    return serving(options={"kv_disk": f"{folder}:1"})


def test_a_restart_costs_no_prompt(tmp_path: Path) -> None:
    with restart(tmp_path) as first:
        before = ask(first, "Who are you?")
        assert cached(before) == 0
        first.service.llm.close()
    assert list(tmp_path.glob("*/*.page"))
    with restart(tmp_path) as second:
        after = ask(second, "Who are you?")
        assert cached(after) == (after["usage"]["prompt_tokens"] - 1) // PAGE * PAGE > 0
        assert after["choices"][0]["message"] == before["choices"][0]["message"]
        other = ask(second, "And what is there?")
        assert 0 < cached(other) <= cached(after)
        metrics = httpx.get(f"{second.url}/metrics").text
        assert f'headrace_kv_disk_pages_total{{way="read"}} {cached(after) // PAGE}.0' in metrics
        second.service.llm.close()


def test_without_it_there_is_nothing(served: Served) -> None:
    assert "kv_disk" not in httpx.get(f"{served.url}/metrics").text
