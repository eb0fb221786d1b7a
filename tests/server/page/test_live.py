"""GET /live and its neighbours over HTTP: what viewers see, that nothing is made for nobody, and cancelling."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch

from headrace import LLM
from headrace.engine.placement.placement import Placement, Tier
from headrace.engine.server.page import experts
from headrace.engine.server.page import live as live_module
from headrace.engine.server.page.totals import Totals
from headrace.engine.server.reports.metrics import Metrics

JSON = {"content-type": "application/json"}


def events(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and data of every event of a stream."""
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


def complete(client: httpx.Client, tokens: int, **more: Any) -> httpx.Response:
    body = {"prompt": "In the beginning", "max_tokens": tokens, "ignore_eos": True, "temperature": 0, **more}
    return client.post("/v1/completions", json=body)


def until(stream: Iterator[tuple[str, dict[str, Any]]], wanted: Any, most: int = 100) -> dict[str, Any]:
    """The first tick of which `wanted` holds."""
    for _ in range(most):
        name, data = next(stream)
        if name == "tick" and wanted(data):
            return data
    raise AssertionError("no snapshot had it")


def test_a_viewer_gets_the_model_the_last_passes_and_then_what_comes(serve: Any, llm: Any) -> None:
    client, _ = serve()
    complete(client, 20)
    last = llm.ledger.account.count - 1
    with client.stream("GET", "/live") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        stream = events(response)
        name, hello = next(stream)
        assert (name, hello["model"], hello["layers"]) == ("hello", "demo", 7)
        name, history = next(stream)
        assert name == "history"
        assert history["passes"][-1][0] == last
        # The bytes of the newest pass, as the ledger has them.
        row = dict(zip(history["columns"], history["passes"][-1][7:], strict=True))
        booked = llm.ledger.account.recent[-1].bytes
        assert row == {f"{tier}.{group}": size for tier, groups in booked.items() for group, size in groups.items()}
        thread = threading.Thread(target=complete, args=(client, 30))
        thread.start()
        seen: list[int] = []
        while not seen or seen[-1] < last + 30:
            name, tick = next(stream)
            seen += [one[0] for one in tick["passes"]]
        thread.join()
        assert seen == list(range(last + 1, last + 1 + len(seen))), "no pass is missing or comes twice"
        tick = until(stream, lambda one: one["running"] == 0)
        assert tick["ended_last"][0]["made"] == 30
        assert tick["window"]["tokens"] >= 30
        kv = tick["kv"]
        assert kv["used"] + kv["idle"] + kv["free"] == kv["pages"]


def test_nothing_is_made_while_nobody_looks(serve: Any) -> None:
    client, service = serve()
    assert client.head("/live").headers["content-type"].startswith("text/event-stream")
    complete(client, 5)
    time.sleep(0.5)
    live = next(one.__self__ for one in service.ended if isinstance(one.__self__, Totals))
    assert live.ended.made == 5
    passes = service.llm.ledger.account.recent
    assert all("predicted" not in one.__dict__ for one in list(passes)[-5:])


def test_viewers_share_snapshots_and_are_few(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "MOST_VIEWERS", 2)
    client, _ = serve()
    with ExitStack() as stack:
        streams = [events(stack.enter_context(client.stream("GET", "/live"))) for _ in range(2)]
        found = [[until(one, lambda _: True)["t"] for _ in range(5)] for one in streams]
        assert set(found[0]) & set(found[1]), "the same snapshot for both"
        refused = client.get("/live")
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "too_many_viewers"
    end = time.monotonic() + 5
    while time.monotonic() < end:
        with client.stream("GET", "/live") as again:
            if again.status_code == 200:
                break
        time.sleep(0.1)
    assert again.status_code == 200, "who left makes room"


def test_a_request_of_the_queue_is_cancelled_and_its_client_told(serve: Any) -> None:
    client, service = serve()
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(complete(client, 100_000)))
    with client.stream("GET", "/live") as response:
        stream = events(response)
        thread.start()
        row = until(stream, lambda one: one["queue"] and one["queue"][0]["n_decoded"] > 3)["queue"][0]
        assert row["phase"] == "decode"
        assert row["most_new"] <= service.limit
        start = time.monotonic()
        found = client.post("/v1/headrace/cancel", json={"id": row["id"]})
        assert found.json() == {"id": row["id"], "cancelled": True}
        thread.join(10)
        assert time.monotonic() - start < 3
        assert answers[0].status_code == 499
        assert answers[0].json()["error"]["code"] == "cancelled"
        tick = until(stream, lambda one: not one["queue"])
        assert tick["ended_last"][0]["reason"] == "cancelled"
    assert client.post("/v1/headrace/cancel", json={"id": row["id"]}).status_code == 404
    assert client.post("/v1/headrace/cancel", json={"id": "x"}).status_code == 400


def test_a_row_says_where_its_prompt_parted_from_an_earlier_one(serve: Any) -> None:
    client, _ = serve()
    same = list(range(300, 500))
    complete(client, 2, prompt=[*same, *range(600, 800)])
    complete(client, 2, prompt=[*same, *range(900, 1100)])
    with client.stream("GET", "/live") as response:
        newest, before = until(events(response), lambda one: len(one["ended_last"]) == 2)["ended_last"]
    assert newest["miss"].startswith("the prompt is that of an earlier request for 200 tokens")
    assert newest["cached"] == 192, "whole pages"
    assert before["miss"] is None


def test_the_ledger_and_the_placement_are_those_of_the_engine(serve: Any, llm: Any) -> None:
    client, _ = serve()
    complete(client, 8)
    counted = len(llm.ledger.account.recent)
    for _ in range(1000):  # the last pass is counted behind the answer
        found = client.get("/v1/headrace/ledger?last=4").json()
        before, counted = counted, len(llm.ledger.account.recent)
        if before == counted and found["sums"]["decode"]["tokens"] == 4:
            break
        time.sleep(0.01)
    assert [one["index"] for one in found["passes"]] == [one.index for one in list(llm.ledger.account.recent)[-4:]]
    assert found["sums"]["decode"]["tokens"] == 4
    for bad in ("0", "-1", "x", "99999999"):
        assert client.get(f"/v1/headrace/ledger?last={bad}").status_code == 400
    placed = client.get("/v1/headrace/placement").json()
    assert [one["experts"]["cpu"] for one in placed["layers"]] == list(llm.parts.memory_plan.experts)
    whole = sum(one["dense"] + one["experts"]["cpu"] for one in placed["layers"])
    whole += placed["rest"]["head"]["bytes"] + placed["rest"]["final norm"]["bytes"]
    assert whole == llm.parts.weights.nbytes


def unpacked(text: str, layers: int) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float64).view(layers, -1)


def test_counts_of_experts_are_those_of_the_engine(serve: Any, llm: Any) -> None:
    client, _ = serve()
    before = client.get("/v1/headrace/experts").json()
    complete(client, 8)
    found = client.get("/v1/headrace/experts").json()
    assert (found["layers"], found["experts"], found["top_k"]) == (7, llm.spec.moe.experts, llm.spec.moe.top_k)
    for name, plane in (("prompt", llm.expert_counts.prompt_LE), ("generated", llm.expert_counts.generated_LE)):
        assert torch.equal(unpacked(found[name], 7), plane.double()), name
    grown = unpacked(found["generated"], 7) - unpacked(before["generated"], 7)
    assert grown.sum() == 7 * llm.spec.moe.top_k * llm.spec.moe_layers
    assert found["passes"] - before["passes"] == 8
    assert {found["tiers"][one] for one in base64.b64decode(found["where"])} == {"cpu"}


def test_experts_of_dense_layers_lie_nowhere() -> None:
    rows = ((), (Tier.CPU, Tier.GPU0, Tier.GPU1))
    placed = Placement(name="", main=Tier.GPU0, experts=rows)
    assert experts.where(placed, 3) == bytes([255, 255, 255, 2, 0, 1])


def test_a_cache_of_experts_says_what_is_there_now() -> None:
    """The page's map has experts of the cache in its memory; programs have the counts of the policy."""
    with LLM("demo", device="simulated", policy="lru", expert_cache="30%", max_context=64) as llm:
        llm.generate([[5, 6, 7]], {"max_new_tokens": 9, "ignore_eos": True})
        cache = llm.parts.expert_cache
        assert cache is not None
        service: Any = SimpleNamespace(llm=llm)
        found = experts.as_json(service)
        where = [found["tiers"][one] for one in base64.b64decode(found["where"])]
        there = [[where[layer * 16 + e] == "gpu0" for e in range(16)] for layer in range(7)]
        assert there == (cache.slots.of_LE >= 0).tolist()
        assert found["cache"]["hits"] == cache.counts.hits
        assert found["cache"]["resident"] == sum(map(sum, there)) == 33
        metrics: Any = SimpleNamespace(service=service)
        told = {one.name: [s.value for s in one.samples] for one in Metrics._cache(metrics)}
        counts = cache.counts
        assert told["headrace_expert_cache_choices"] == [counts.hits, counts.early, counts.fetched, counts.on_cpu]
        assert told["headrace_expert_cache_link_bytes"] == [counts.link_bytes]


def test_data_needs_the_key_and_the_pages_code_does_not(serve: Any) -> None:
    client, _ = serve(api_key=("secret",))
    for path in ("/live", "/v1/headrace/ledger", "/v1/headrace/placement", "/v1/headrace/experts"):
        assert client.get(path).status_code == 401, path
    assert client.post("/v1/headrace/cancel", json={"id": 0}).status_code == 401
    assert client.get("/page/css/page.css").status_code == 200
    assert client.get("/", headers={"accept": "text/html"}).status_code == 200
    with client.stream("GET", "/live", headers={"authorization": "Bearer secret"}) as response:
        assert response.status_code == 200
