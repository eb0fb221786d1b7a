"""What a server says of itself: metrics, the log, slots and properties."""

from __future__ import annotations

import logging
import re
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import Served

HELLO = [{"role": "user", "content": "Hello there"}]


def metrics(served: Served) -> dict[str, float]:
    """By name and labels."""
    text = httpx.get(f"{served.url}/metrics").text
    return {
        f"{s.name}{sorted(s.labels.values())}": s.value for f in text_string_to_metric_families(text) for s in f.samples
    }


def ask(served: Served, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{served.url}/v1/chat/completions", json={"messages": HELLO, **body}, timeout=60)
    found: dict[str, Any] = answer.json()
    return found


def test_metrics_count_what_was_done(served: Served) -> None:
    before = metrics(served)
    usage = ask(served, max_tokens=7)["usage"]
    after = metrics(served)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown("headrace_prompt_tokens_total[]") == usage["prompt_tokens"]
    assert grown("headrace_generation_tokens_total[]") == 7
    assert grown("headrace_request_success_total['length']") == 1
    assert grown("headrace_time_to_first_token_seconds_count[]") == 1
    gaps = "headrace_inter_token_latency_seconds"
    assert grown(f"{gaps}_count[]") == grown(f"{gaps}_bucket['+Inf']") == 6
    assert 0 < grown(f"{gaps}_sum[]") <= grown("headrace_e2e_request_latency_seconds_sum[]")
    read = sum(sum(p.bytes["cpu_dram"].values()) for p in list(served.llm.ledger.account.recent)[-7:])
    counted = {name: value for name, value in after.items() if name.startswith("headrace_bytes_total['cpu_dram'")}
    assert sum(counted.values()) - sum(before.get(name, 0) for name in counted) == read
    assert grown("headrace_pass_seconds_total['decode']") > 0
    assert after["headrace_num_requests_running[]"] == 0
    assert after["headrace_kv_cache_usage_perc[]"] == 0


def test_metrics_say_of_experts_few_numbers_that_add_up(served: Served) -> None:
    before = metrics(served)
    usage = ask(served, max_tokens=9)["usage"]
    after = metrics(served)
    spec = served.llm.spec
    name = "headrace_expert_choices_total['cpu_dram', '{}']"
    generated = after[name.format("generated")] - before.get(name.format("generated"), 0)
    assert generated == (usage["completion_tokens"] - 1) * spec.moe.top_k * spec.moe_layers
    assert after[name.format("prompt")] > before.get(name.format("prompt"), 0)
    shares = [after[f"headrace_expert_share_of_hottest['{percent}']"] for percent in (1, 5, 10, 20, 50)]
    assert shares == sorted(shares)
    counts = sorted(served.llm.expert_counts.all_LE.flatten().tolist(), reverse=True)
    assert shares[-1] == pytest.approx(sum(counts[: len(counts) // 2]) / sum(counts))
    assert shares[-1] > 0.5, "the hotter half takes more than half"
    assert len([one for one in after if "headrace_expert_" in one]) == 2 + 5, "no series for each expert"


def test_what_a_grammar_forced_is_counted(served: Served) -> None:
    before = metrics(served)
    answer = ask(served, max_tokens=60, headrace=True, guided_regex="[ab] and nothing else is ever said here")
    choice = answer["choices"][0]
    assert choice["message"]["content"][1:] == " and nothing else is ever said here"
    forced = metrics(served)["headrace_forced_tokens_total[]"] - before["headrace_forced_tokens_total[]"]
    decode = answer["headrace"]["decode"]
    assert forced == decode["forced"] > 3
    assert decode["tokens"] == decode["passes"] + forced
    assert answer["usage"]["completion_tokens"] == decode["tokens"] + 1


def test_each_request_has_its_line(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "headrace.access"):
        ask(served, max_tokens=5)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "headrace.access"]
    assert re.fullmatch(
        r"request \d+ of python-httpx/\S+: \d+ prompt tokens?, \d+ of them cached, first token after \S+ s, "
        r"5 new( at \S+/s)?, length",
        line,
    )


def test_a_prompt_that_nearly_was_an_earlier_one(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    words = "one two three four five six seven eight " * 30
    messages = [[{"role": "user", "content": f"{words}{day} {words}"}] for day in ("Monday", "Tuesday")]
    ask(served, messages=messages[0], max_tokens=1)
    with caplog.at_level(logging.INFO, "headrace.access"):
        ask(served, messages=messages[1], max_tokens=1)
        ask(served, messages=messages[1], max_tokens=1)
    misses = [r.getMessage() for r in caplog.records if "earlier request" in r.getMessage()]
    assert len(misses) == 1
    assert "uesday" in misses[0].split("where that had")[0]
    assert "onday" in misses[0].split("where that had")[1]


def test_slots_and_properties(served: Served) -> None:
    assert httpx.get(f"{served.url}/slots").json() == []
    props = httpx.get(f"{served.url}/props").json()
    assert props["default_generation_settings"]["n_ctx"] == served.service.limit
    assert props["total_slots"] == 8
    assert props["dialect"].startswith("hermes")


@pytest.mark.parametrize("text", ["Hello, world", "größer 你好 🙂", ""])
def test_tokens_there_and_back(text: str, served: Served) -> None:
    made = httpx.post(f"{served.url}/tokenize", json={"content": text, "with_pieces": True}).json()
    ids = [one["id"] for one in made["tokens"]]
    pieces = b"".join(bytes(p) if isinstance(p := one["piece"], list) else p.encode() for one in made["tokens"])
    assert pieces.decode() == text
    assert httpx.post(f"{served.url}/detokenize", json={"tokens": ids}).json()["content"] == text


def test_templates_and_counts(served: Served) -> None:
    prompt = httpx.post(f"{served.url}/apply-template", json={"messages": HELLO}).json()["prompt"]
    assert prompt == "<|user|>\nHello there\n<|assistant|>\n"
    counts = [
        httpx.post(f"{served.url}{path}", json=body).json()["input_tokens"]
        for path, body in (
            ("/v1/chat/completions/input_tokens", {"messages": HELLO}),
            ("/v1/responses/input_tokens", {"input": "Hello there"}),
            ("/v1/messages/count_tokens", {"messages": HELLO}),
        )
    ]
    tokens = httpx.post(f"{served.url}/tokenize", json={"messages": HELLO}).json()["count"]
    assert counts == [tokens] * 3


def test_the_document_names_what_is_there(served: Served) -> None:
    found = httpx.get(f"{served.url}/openapi.json").json()
    for path, methods in found["paths"].items():
        for method in methods:
            body = {"json": {}} if method == "post" else {}
            with httpx.stream(
                method.upper(), served.url + path.format(id="demo"), **body
            ) as answer:  # /live never ends
                assert answer.status_code not in (404, 405), path
    wanted = found["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    name = wanted["$ref"].rpartition("/")[2]
    assert found["components"]["schemas"][name]["required"] == ["messages"]
