"""Prompts beside text in real passes: what each request gets is what it gets alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from family_runs import prompt as ids

from headrace import LLM, SamplingParams
from headrace.engine.generation.outputs import Completion
from headrace.engine.generation.schedule import scheduler
from headrace.engine.model.kv_cache import PAGE, PageTable

Checkpoints = Callable[[str], Path]
PROMPTS, NEW = (40, 3, 150, 70), 60


def params(new: int) -> SamplingParams:
    return SamplingParams(max_new_tokens=new, ignore_eos=True)


@pytest.fixture(scope="module", params=["qwen3_moe", "qwen3_next", "deepseek_v3", "gpt_oss"])
def llm(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> Iterator[LLM]:
    with LLM(
        str(checkpoints(request.param)), kernels="reference", dtype="float32", max_context=256, prefill_chunk=48,
        prefill_stall_ms=1000,
    ) as llm:  # fmt: skip
        yield llm


@pytest.fixture(scope="module")
def alone(llm: LLM) -> list[list[int]]:
    return [llm.generate([ids(n, i)], params(NEW))[0].token_ids for i, n in enumerate(PROMPTS)]


def forget(llm: LLM, pages: int | None = None) -> None:
    """No page and no state is known any more; pages: how many there are from now on."""
    loop = llm.loop
    loop.pages = loop.scheduler.pages = PageTable(pages or llm.parts.kv_budget.pages)
    if loop.states is not None:
        for digest in list(loop.states.slot_of):
            loop.states.forget(digest)


def staggered(llm: LLM) -> list[Completion]:
    """Every prompt comes while those before it generate."""
    streams = []
    for i, n in enumerate(PROMPTS):
        streams.append(llm.stream(ids(n, i), params(NEW)))
        for stream in streams:
            next(stream)
    for stream in streams:
        list(stream)
    return [stream.result for stream in streams]


def test_prompts_beside_text_change_nothing(llm: LLM, alone: list[list[int]]) -> None:
    forget(llm)
    results = staggered(llm)
    assert [r.token_ids for r in results] == alone
    phases = [p.phase for p in results[0].ledger]
    assert phases.count("mixed") >= 3
    mixed = next(p for p in results[0].ledger if p.phase == "mixed")
    assert mixed.tokens > len(mixed.sequences) > 1


def test_a_request_that_had_to_make_room_goes_on_where_it_was(
    llm: LLM, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "WINDOW", 1)
    forget(llm, pages=7)
    monkeypatch.setattr(llm.loop.scheduler, "watermark", 0)
    before = llm.loop.scheduler.preemptions
    results = llm.generate([ids(n, i) for i, n in enumerate(PROMPTS)], params(NEW))
    assert [r.token_ids for r in results] == alone
    assert llm.loop.scheduler.preemptions > before
    assert llm.loop.pages.available == 7
    assert llm.loop.states is None or sorted(llm.loop.states.free) == list(range(16))
    forget(llm)


def test_threads_share_passes_and_none_waits_for_another_to_end(llm: LLM, alone: list[list[int]]) -> None:
    forget(llm)
    found: dict[int, list[int]] = {}

    def run(i: int) -> None:
        found[i] = llm.generate([ids(PROMPTS[i], i)], params(NEW))[0].token_ids

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(PROMPTS))]
    passes = llm.ledger.count
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [found[i] for i in range(len(PROMPTS))] == alone
    assert llm.ledger.count - passes < NEW * len(PROMPTS)


def test_equal_prompts_in_flight_are_computed_once(llm: LLM) -> None:
    forget(llm)
    with llm.ledger.recording() as passes:
        results = llm.generate([ids(150, 9)] * 3, params(4))
    assert results[0].token_ids == results[1].token_ids == results[2].token_ids
    assert sum(p.tokens for p in passes if p.phase != "decode") <= 150 + 2 * (PAGE + 4)
    assert [r.reused_tokens for r in results] == [0, 128, 128]
