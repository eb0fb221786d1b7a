"""Passes that go in parts through the machines of whole layers: the tokens of one machine, and several machines at
work at the same time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from host_processes import GREEDY, PROMPT, said
from thread_hosts import ThreadHosts, layered, layers_of

from headrace import LLM
from headrace.engine.hosts.joining import rate
from headrace.engine.hosts.layers import flow, how_many
from headrace.engine.hosts.layers.parts import cut
from headrace.engine.ledger.passes import CPU_DRAM
from headrace.engine.model.batch import Inputs
from headrace.engine.model.kv_cache import PAGE
from headrace.kernels.decoder_layer import Pages, Piece, Places

Checkpoints = Callable[[str], Path]
LONG = [number % 97 + 1 for number in range(3 * PAGE + 5)]
PROMPTS = [LONG, PROMPT, LONG[::-1], PROMPT[::-1]]


def ints(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def three(pieces: tuple[Piece, ...] = ()) -> Inputs:
    """A pass of three sequences with 1, 5 and 2 tokens."""
    places = Places(
        positions_T=torch.arange(8, dtype=torch.int32), slots_T=torch.arange(8) + 100, tables_SM=ints(1, 2, 3)[:, None],
        starts_S1=ints(0, 1, 6, 8), contexts_S=ints(10, 25, 2), states_S=ints(4, 5, 6), pieces=pieces,
        windows=(Pages(torch.arange(8) + 200, ints(7, 8, 9)[:, None]),),
    )  # fmt: skip
    spans = ((1, 10), (5, 25), (2, 2))
    return Inputs(ids_T=torch.arange(8), places=places, spans=spans, rows=torch.tensor([0, 5]))


def test_cutting() -> None:
    """A sequence that is cut has a shorter context before the cut; rows count from the part's first token."""
    inputs = three()
    first, second = cut(inputs, 2)
    assert (first.first, first.last, second.first, second.last) == (0, 4, 4, 8)
    assert (first.spans, second.spans) == (((1, 10), (3, 23)), ((2, 25), (2, 2)))
    assert (first.places.starts_S1.tolist(), second.places.starts_S1.tolist()) == ([0, 1, 4], [0, 2, 4])
    assert (first.places.contexts_S.tolist(), second.places.contexts_S.tolist()) == ([10, 23], [25, 2])
    assert (first.places.tables_SM.tolist(), second.places.tables_SM.tolist()) == ([[1], [2]], [[2], [3]])
    assert (first.places.slots_T[0], second.places.slots_T[0], second.places.windows[0].slots_T[0]) == (100, 104, 204)
    assert first.rows_R is not None
    assert second.rows_R is not None
    assert (first.rows_R.tolist(), second.rows_R.tolist()) == ([0], [1])
    assert first.places.states_S is not None
    assert first.places.states_S.tolist() == [4, 5]
    assert first.places.native is not inputs.places.native  # what kernels keep of a pass is of its part
    assert inputs.places.contexts_S.tolist() == [10, 25, 2]
    (whole,) = cut(inputs, 1)
    assert whole.places is inputs.places
    assert [part.last for part in cut(inputs, 99)] == list(range(1, 9))


def test_states_that_are_kept_are_cut_there_alone() -> None:
    def piece(first: int, last: int, context: int) -> Piece:
        own = {"states_S": ints(4), "starts_S1": ints(0, last - first), "contexts_S": ints(context)}
        return Piece(first=first, last=last, slot=4, keep=None, **own)

    found = cut(three((piece(0, 1, 10), piece(1, 3, 22), piece(3, 6, 25), piece(6, 8, 2))), 2)
    assert [part.last for part in found] == [3, 8]
    assert [(one.first, one.last) for one in found[1].places.pieces] == [(0, 3), (3, 5)]
    assert [one.contexts_S.tolist() for one in found[1].places.pieces] == [[25], [2]]


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many machines had something to do, whenever a host was asked for something; parts may be of one token."""
    monkeypatch.setattr(how_many, "LEAST", 1)
    found: list[int] = []
    ask = flow.Flow._ask

    def noted(self: flow.Flow, *arguments: Any) -> None:
        ask(self, *arguments)
        found.append(len({one.node for one in self.due.values()}) + bool(self.mine))

    monkeypatch.setattr(flow.Flow, "_ask", noted)
    return found


@pytest.mark.parametrize("variant", ["demo", "deepseek_v3", "qwen3_next", "gpt_oss", "glm_moe_dsa"])
def test_same_tokens_and_all_machines_busy(variant: str, checkpoints: Checkpoints, busy: list[int]) -> None:
    model = "demo" if variant == "demo" else checkpoints(variant)
    options: dict[str, Any] = {"prefill_chunk": 40, "max_context": 160, "max_sequences": 4}

    def found(llm: LLM) -> Any:
        texts = [r.token_ids for r in llm.generate(PROMPTS, GREEDY)]
        return texts, llm.expert_counts.all_LE.tolist(), [r.reused_tokens for r in llm.generate([LONG], GREEDY)]

    with LLM(model, device="cpu", no_measure=True, **options) as llm:
        expected, logits = found(llm), llm.logits(LONG)
    hosts = ThreadHosts(model, 2)
    try:
        with layered(hosts, placement="hosts", **options) as llm:
            assert found(llm) == expected
            error = float((llm.logits(LONG) - logits).abs().max())
            assert error < (1e-5 if variant == "deepseek_v3" else 1e-30)  # latents of few tokens round otherwise
    finally:
        hosts.close()
    assert max(busy) >= 2


def test_three_machines(busy: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator has layers, too: it computes while both hosts do."""
    monkeypatch.setattr(rate, "measure", lambda: 1e10)  # of a machine that others share one host may get none
    hosts = ThreadHosts("demo", 2)
    try:
        with LLM("demo", device="cpu", no_measure=True, max_context=128) as llm:
            expected = said(llm)
        with layered(hosts, prefill_chunk=12) as llm:
            assert [node for node, _ in layers_of(llm).holders.route] == [0, 1, 2]
            assert said(llm) == expected
            assert CPU_DRAM in llm.ledger.last.bytes
    finally:
        hosts.close()
    assert max(busy) == 3
