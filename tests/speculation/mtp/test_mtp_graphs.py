"""The layer behind decode graphs: captured steps hand out what it goes on from, and it runs by hand between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mtp_runs import OPTIONS, opened, prompt, ran
from refusals import refused
from stand_in_gpu import StandIn

from headrace import LLM, DeviceError, SamplingParams
from headrace.engine.cuda_graphs.capture import DecodeGraphs
from headrace.engine.model.decoder import Ends
from headrace.engine.placement.placement import Tier

With = Callable[..., Path]
HOW = SamplingParams(max_new_tokens=40, ignore_eos=True)
TEXT = prompt(45)
THREE = [TEXT, TEXT[5:], TEXT[9:]]  # in a graph of four
SIZES = 1 + 2 + 4  # rows of all graphs of up to four sequences
GPU = {"device": "simulated", "cpu_moe": True}


PLACES: list[tuple[str, dict[str, Any]]] = [
    ("qwen3_moe", {"cpu_moe": True}),
    ("qwen3_moe", {"n_cpu_moe": 2}),
    ("qwen3_moe", {"placement": "gpu"}),
    ("qwen3_moe", {"policy": "lru", "expert_cache": "40%"}),
    ("qwen3_moe", {"policy": "lru"}),
    ("qwen3_moe", {"tensor_split": "1,1", "n_cpu_moe": 1}),
    ("qwen3_next", {"cpu_moe": True}),
    ("deepseek_v3", {"n_cpu_moe": 2}),
    ("glm_moe_dsa-whole", {"cpu_moe": True}),
]


@pytest.mark.parametrize(("variant", "where"), PLACES, ids=str)
def test_text_and_guesses_are_those_without_graphs(
    variant: str, where: dict[str, Any], gpu: StandIn, with_mtp: With
) -> None:
    """Steps of one token of each sequence are graphs; those with a draft, or with tokens that a recurrent state takes
    once more behind a refused one, run by hand between them."""
    path = with_mtp(variant)
    with LLM(str(path), **OPTIONS, speculate="off") as llm:
        plain = [one.token_ids for one in llm.generate(THREE, HOW)]
    with opened(path, device="simulated", handoff="eager", **where) as llm:
        by_hand = ran(llm, THREE, 3, HOW)
    with opened(path, device="simulated", handoff="memop", **where) as llm:
        assert llm.parts.graphed is not None
        before = gpu.recorders[-1].replays
        graphed = ran(llm, THREE, 3, HOW)
        replays = gpu.recorders[-1].replays - before
    assert graphed.texts == by_hand.texts == plain
    assert graphed.said == by_hand.said
    assert sum(map(len, graphed.said)) > 50
    decode = [one for one in graphed.passes if one.phase == "decode"]
    plain_steps = [one for one in decode if one.tokens == len(one.sequences)]
    assert not any(one.drafted for one in plain_steps)
    assert 0 < replays == len(plain_steps) < len(decode)
    assert [one.accepted for one in graphed.passes] == [one.accepted for one in by_hand.passes]


def test_hidden_states_have_the_bits_of_steps_by_hand(gpu: StandIn, with_mtp: With) -> None:
    """Also of steps before the last one, whose places in the graph's memory were written again."""
    found = []
    for handoff in ("eager", "memop"):
        with opened(with_mtp("qwen3_moe"), **GPU, handoff=handoff) as llm:
            found.append(torch.cat(ran(llm, [TEXT], 7, HOW).given))
    assert torch.equal(found[0], found[1])
    assert len(found[0]) > len(TEXT) + 30


def test_drafts_in_every_pass(gpu: StandIn, with_mtp: With) -> None:
    """Then graphs take none but the first and the last steps, if any."""
    with opened(with_mtp("qwen3_moe"), **GPU, handoff="eager") as llm:
        by_hand = ran(llm, [TEXT], 1, HOW)
    with opened(with_mtp("qwen3_moe"), **GPU, handoff="memop") as llm:
        graphed = ran(llm, [TEXT], 1, HOW)
    assert (graphed.texts, graphed.said) == (by_hand.texts, by_hand.said)


def test_as_it_is_asked_for(gpu: StandIn, with_mtp: With) -> None:
    """Lengths by what was right and by seconds, as users get them."""
    with LLM(str(with_mtp("qwen3_moe")), **OPTIONS, speculate="off") as llm:
        plain = [one.token_ids for one in llm.generate(THREE, HOW)]
    with opened(with_mtp("qwen3_moe"), **GPU, handoff="memop") as llm:
        with llm.ledger.recording() as passes:
            assert [one.token_ids for one in llm.generate(THREE, HOW)] == plain
        assert llm.parts.graphed is not None
        assert sum(one.drafted for one in passes) > 0


def test_a_plan_has_the_states_of_every_graph(gpu: StandIn, with_mtp: With) -> None:
    path, buffers = with_mtp("qwen3_moe"), "buffers of a pass"
    with LLM(str(path), **OPTIONS, **GPU, handoff="memop", speculate="off") as llm:
        without, graphed = llm.parts.memory_plan.memory, llm.parts.graphed
        assert graphed is not None
        assert [one.hidden for one in graphed.graphs.ends.values()] == [None] * 3
    with opened(path, **GPU, handoff="memop") as llm:
        memory, graphed = llm.parts.memory_plan.memory, llm.parts.graphed
        assert graphed is not None
        kept = [one.hidden for one in graphed.graphs.ends.values()]
        held = sum(one.nbytes for one in kept if one is not None)
        waiting = 4 * 80 * OPTIONS["max_sequences"] * llm.spec.hidden
        more = memory[Tier.GPU0].needed[buffers] - without[Tier.GPU0].needed[buffers]
        page = llm.parts.mtp.decoder.cache.layers[0]  # type: ignore[union-attr]
        spare = sum(one[:1].nbytes for one in (page.k, page.v))  # type: ignore[union-attr]
        assert held == 4 * SIZES * llm.spec.hidden > 0
        assert more == waiting + held + spare
        assert memory[Tier.CPU].needed == without[Tier.CPU].needed


def test_steps_that_are_timed_write_to_the_same_places(gpu: StandIn, with_mtp: With) -> None:
    """Captured anew; the plan counts each place once."""
    with opened(with_mtp("qwen3_moe"), **GPU, handoff="memop") as llm:
        graphed = llm.parts.graphed
        assert graphed is not None
        before = {n: [one.data_ptr() for one in ends if one is not None] for n, ends in graphed.graphs.ends.items()}
        text = ran(llm, [TEXT], 3, HOW).texts
        llm.time_tiers()
        assert llm.generate([TEXT], HOW)[0].token_ids == text[0]
        now = {n: [one.data_ptr() for one in ends if one is not None] for n, ends in graphed.graphs.ends.items()}
        assert now == before
        assert all(len(ends) == 2 for ends in now.values())


def test_graphs_that_hand_out_other_states_are_not_taken(
    gpu: StandIn, with_mtp: With, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start holds them against a step by hand, as it does logits."""
    run = DecodeGraphs.run

    def spoiled(self: DecodeGraphs, *given: Any) -> Ends:
        logits, hidden = run(self, *given)
        assert hidden is not None
        return Ends(logits, hidden + 1.0)

    monkeypatch.setattr(DecodeGraphs, "run", spoiled)
    with refused(DeviceError, "differs from the same step by hand", "64 of 64 values of hidden states"):
        opened(with_mtp("qwen3_moe"), **GPU, handoff="memop")
