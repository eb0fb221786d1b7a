"""Experts on two and three hosts give the bits of one machine, wherever they lie; and what goes over the wire is
counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from host_processes import GREEDY, PROMPT, coordinator, experts_of, said
from thread_hosts import ThreadHosts, near_hosts

from headrace import LLM, SamplingParams
from headrace.engine.hosts.messages.frames import HEADER
from headrace.engine.hosts.messages.rows import ANSWER, TASK
from headrace.engine.ledger.pass_bytes import EXPERTS, ROUTING
from headrace.engine.ledger.passes import CPU_DRAM, NET
from headrace.engine.placement.placement import Tier

Checkpoints = Callable[[str], Path]


def check(llm: LLM, one_machine: tuple[list[list[int]], torch.Tensor]) -> None:
    assert said(llm) == one_machine[0]
    assert torch.equal(llm.logits(PROMPT), one_machine[1])


@pytest.mark.parametrize("options", [{}, {"prefill_chunk": 3}, {"placement": "auto"}], ids=["even", "chunks", "auto"])
def test_two_hosts(
    options: dict[str, Any], two: ThreadHosts, one_machine: tuple[list[list[int]], torch.Tensor]
) -> None:
    with coordinator(two, **options) as llm:
        check(llm, one_machine)
        owners = {owner for row in experts_of(llm).members.owners for owner in row}
        # By bandwidth and link this small model does not leave the coordinator.
        assert (0 in owners) if "placement" in options else (owners == {1, 2})


def test_three_hosts(one_machine: tuple[list[list[int]], torch.Tensor]) -> None:
    with near_hosts("demo", 3) as llm:
        check(llm, one_machine)


def test_a_file_down_to_single_experts(
    two: ThreadHosts, one_machine: tuple[list[list[int]], torch.Tensor], tmp_path: Path
) -> None:
    rules = [{"layers": "all", "experts": [0, "3-5"], "tier": "h2"}, {"layers": 1, "experts": 7, "tier": "cpu"}]
    (tmp_path / "p.json").write_text(json.dumps({"version": 1, "default": "host1", "rules": rules}))
    with coordinator(two, placement=tmp_path / "p.json") as llm:
        members = experts_of(llm).members
        assert members.owners[1][:8] == [2, 1, 1, 2, 2, 2, 1, 0]
        assert llm.parts.placement.experts[1][7] is Tier.CPU
        assert llm.parts.placement.experts[0][7] is Tier.NET
        assert torch.equal(llm.logits(PROMPT), one_machine[1])


@pytest.mark.parametrize("variant", ["deepseek_v3", "llama4_text", "gpt_oss"])
def test_other_families(variant: str, checkpoints: Checkpoints) -> None:
    """Dense layers, groups and shared experts; experts that take weighted rows; biases and turned matrices."""
    model = checkpoints(variant)
    with LLM(model, device="cpu", max_context=128, no_measure=True) as llm:
        expected = llm.logits(PROMPT)
        text = llm.generate([PROMPT], GREEDY)[0].token_ids
    with near_hosts(model, 2) as llm:
        assert torch.equal(llm.logits(PROMPT), expected)
        assert llm.generate([PROMPT], GREEDY)[0].token_ids == text


@pytest.mark.parametrize(("wire", "row"), [("f32", 4.0), ("bf16", 2.0), ("int8", 1.125)])
def test_bytes_by_hand_and_the_error_of_the_wire(
    wire: str, row: float, two: ThreadHosts, one_machine: tuple[list[list[int]], torch.Tensor]
) -> None:
    with coordinator(two, wire=wire) as llm:
        logits = llm.logits(PROMPT)
        llm.generate(["In the beginning"], SamplingParams(max_new_tokens=3, ignore_eos=True))
        experts, done = experts_of(llm), llm.ledger.last
        assert done.phase == "decode"
        assert done.tokens == 1
        spec = llm.spec
        choices, layers = spec.moe.top_k, len(done.layers)
        assert layers == len(spec.layers)
        # With one token a layer asks as many hosts as its choices lie on: every header says so.
        besides = done.bytes[NET][ROUTING] - layers * choices * (4 if wire == "f32" else 8)
        one = HEADER.size + TASK.size + HEADER.size + ANSWER.size
        asked, rest = divmod(besides, one)
        assert rest == 0
        assert layers <= asked <= layers * min(choices, 2)
        answers = layers * choices if wire == "f32" else asked  # a row for each choice, or a sum from each host
        assert done.bytes[NET][EXPERTS] == (asked + answers) * spec.hidden * row
        by_host = [one for work in done.layers for one in work.hosts]
        assert len(by_host) == asked
        assert sum(one.there + one.back for one in by_host) == done.total(NET)
        assert sum(one.experts for one in by_host) == layers * choices
        assert EXPERTS not in done.bytes.get(CPU_DRAM, {})
        assert experts.members.losses == 0
    error = (logits - one_machine[1]).abs().max() / one_machine[1].abs().max()
    assert (float(error) == 0) == (wire == "f32")
    assert float(error) < {"f32": 1e-9, "bf16": 0.02, "int8": 0.05}[wire]
