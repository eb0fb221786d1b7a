"""What a pass read is booked while the next graph runs, counts in the time of a pass, and is there when asked for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_in_gpu import StandIn, StreamRecorder
from torch import Tensor

from headrace import LLM, HeadraceError, OptionError, SamplingParams
from headrace.engine.experts.tiered import TieredExperts
from headrace.engine.generation.sampler import sample
from headrace.engine.ledger.ledger import Ledger
from headrace.kernels import Ops

PROMPT = "In the beginning"
GREEDY = SamplingParams(max_new_tokens=6, ignore_eos=True)
SLOW = 0.004  # seconds


def load(**options: Any) -> LLM:
    return LLM("demo", device="simulated", cpu_moe=True, max_context=96, max_sequences=3, **options)


def slow_books(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each layer what it read takes SLOW seconds to say."""
    work = TieredExperts.work

    def slow(self: TieredExperts, chosen: Any) -> Any:
        time.sleep(SLOW)
        return work(self, chosen)

    monkeypatch.setattr(TieredExperts, "work", slow)


def test_a_pass_is_booked_while_the_next_graph_runs(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    booked: list[tuple[int, int]] = []
    replay = StreamRecorder.replay
    with load(handoff="memop") as llm:

        def noted(self: StreamRecorder, graph: Any, meanwhile: Callable[[], None]) -> None:
            before = llm.ledger.account.count

            def looked_at() -> None:
                meanwhile()
                booked.append((before, llm.ledger.account.count))

            replay(self, graph, looked_at)

        monkeypatch.setattr(StreamRecorder, "replay", noted)
        llm.generate(PROMPT, GREEDY)
        assert booked == [(1, 1), (1, 2), (2, 3), (3, 4), (4, 5)], "prefill at once, then each in the step after it"
        assert [p.index for p in llm.ledger.passes] == list(range(6))


@pytest.mark.parametrize("way", ["memop", "eager"])
def test_the_time_of_bookkeeping_counts(way: str, gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(handoff=way) as llm:
        slow_books(monkeypatch)
        start = time.perf_counter()
        done = llm.generate(PROMPT, GREEDY)[0]
        wall = time.perf_counter() - start
        assert len(done.ledger) == 6
        measured = sum(p.measured_s for p in done.ledger)
        assert 6 * llm.spec.moe_layers * SLOW <= measured <= wall
        assert sum(llm.ledger.summary(phase).measured_s for phase in ("prefill", "decode")) == pytest.approx(measured)


def test_whoever_asks_finds_every_pass(gpu: StandIn) -> None:
    """Between two chunks, in a recording, in a completion that was interrupted."""
    with load(handoff="memop") as llm:
        stream = llm.stream(PROMPT, GREEDY)
        with llm.ledger.recording() as passes:
            for step in range(3):
                next(stream)
                assert llm.ledger.last.index == step
                assert llm.ledger.count == step + 1
                assert len(stream.result.ledger) == step + 1
            next(stream)
        assert [p.index for p in passes] == [0, 1, 2, 3]
        next(stream)
        stream.close()
        assert [p.index for p in stream.result.ledger] == [0, 1, 2, 3, 4]
        assert all(p.bytes["cpu_dram"]["experts"] > 0 for p in stream.result.ledger)


def test_a_ledger_file_has_every_line(gpu: StandIn, tmp_path: Path) -> None:
    """Also of a stream that is open when the model is closed."""
    llm = load(handoff="memop")
    llm.ledger.open(tmp_path / "ledger")
    llm.generate(PROMPT, GREEDY)
    stream = llm.stream(PROMPT, GREEDY)
    for _ in range(3):
        next(stream)
    llm.close()
    lines = [json.loads(line) for line in (tmp_path / "ledger").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(9))
    assert all(line["bytes"]["cpu_dram"]["experts"] > 0 for line in lines)


def test_a_full_disk_costs_no_token(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Ledger, done: Any) -> None:
        if done.index == 2:
            raise OptionError("the ledger cannot be written any more")

    monkeypatch.setattr(Ledger, "write", refuse)
    with load(handoff="memop") as llm:
        stream = llm.stream(PROMPT, GREEDY)
        with pytest.raises(OptionError, match="cannot be written"):
            for _ in stream:
                pass
        assert len(stream.result.token_ids) == 4, "that of the step which wrote the line, too"
        assert len(stream.result.ledger) == 4


# ---- the likeliest tokens


def test_the_graph_has_found_the_likeliest_tokens(gpu: StandIn) -> None:
    """A sampler that asks for them computes nothing, in decode; of other logits it would."""
    found: list[bool] = []

    def sampler(logits: Tensor, ready: list[Any], ops: Ops) -> list[int]:
        values, ids = ops.argmax(logits)
        assert torch.equal(ids, logits.argmax(-1))
        assert torch.equal(values, logits.max(-1).values)
        others = ops.argmax(-logits)[1]
        assert torch.equal(others, (-logits).argmax(-1))
        found.append(ids.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr())
        return sample(logits, ready, ops)

    with LLM(
        "demo", device="simulated", cpu_moe=True, max_sequences=3, max_context=96, handoff="memop", sampler=sampler
    ) as llm:
        assert llm.parts.graphed is not None
        memory = llm.parts.graphed.results.memory
        llm.generate([PROMPT, "Behold,", "And"], GREEDY)
    assert found[0] is False
    assert set(found[1:]) == {True}


def test_logits_that_are_not_finite_are_seen(gpu: StandIn) -> None:
    with load(handoff="memop") as llm:
        stream = llm.stream(PROMPT, GREEDY)
        next(stream)
        llm.parts.weights.final_norm.fill_(float("nan"))
        with pytest.raises(HeadraceError, match="not finite"):
            next(stream)
