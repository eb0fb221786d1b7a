"""Prefixes of models with recurrent states: a later prompt goes on from a state that was kept, and gives the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from family_runs import prompt

from headrace import LLM, SamplingParams
from headrace.engine.generation.schedule.state_slots import StateSlots
from headrace.engine.model.kv_cache import PAGE

Checkpoints = Callable[[str], Path]
FEW = SamplingParams(max_new_tokens=5, ignore_eos=True)
VARIANTS = ["qwen3_next", "qwen3_5_moe_text", "lfm2_moe", "granitemoehybrid-groups", "nemotron_h"]


def load(path: Path, **options: object) -> LLM:
    return LLM(str(path), kernels="reference", dtype="float32", **{"max_context": 200, "max_sequences": 2, **options})


def run(llm: LLM, ids: list[int], params: SamplingParams = FEW) -> tuple[list[int], int]:
    """New tokens, and how many of the prompt were not computed again."""
    request = llm.parts.admission.request(ids, params)
    llm.loop.run([request])
    return request.sequence.completion, request.sequence.reused


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prefix_is_taken_over_and_gives_the_same(variant: str, checkpoints: Checkpoints) -> None:
    """Of 70 tokens 64 are kept; on the way, with a chunk that holds all of it, nothing else."""
    ids = prompt(70, 1)
    with load(checkpoints(variant)) as alone:
        wanted = run(alone, [*ids, *prompt(20, 2)])
    with load(checkpoints(variant)) as llm:
        first, reused = run(llm, ids)
        assert reused == 0
        assert run(llm, ids) == (first, 2 * PAGE)
        assert run(llm, [*ids, *prompt(20, 2)]) == (wanted[0], 2 * PAGE)
        assert run(llm, [*ids[:63], 3, *ids[64:]])[1] == 0, "the one page that agrees ends where no state was kept"


def test_a_beginning_is_kept_wherever_the_prompt_has_doubled(checkpoints: Checkpoints) -> None:
    """In chunks of a page: at 1, 2, 4 pages, and at the end, 5."""
    ids = prompt(5 * PAGE + 3, 3)
    with load(checkpoints("qwen3_next"), prefill_chunk=PAGE, max_sequences=8) as llm:
        run(llm, ids)
        found = [run(llm, [*ids[: n * PAGE], *prompt(9, 4 + n)])[1] // PAGE for n in (1, 2, 3, 4, 5)]
    assert found == [1, 2, 2, 4, 5]


@pytest.mark.parametrize("variant", ["qwen3_next", "lfm2_moe", "nemotron_h"])
def test_the_next_turn_goes_on_behind_the_answer(variant: str, checkpoints: Checkpoints) -> None:
    """The newest whole page of what was generated, and none before it."""
    ids, long = prompt(PAGE + 5, 5), SamplingParams(max_new_tokens=2 * PAGE, ignore_eos=True)
    with load(checkpoints(variant)) as llm:
        answer, _ = run(llm, ids, long)
        chat = [*ids, *answer, *prompt(7, 6)]
        assert run(llm, chat)[1] == 3 * PAGE
        assert run(llm, [*chat[: 2 * PAGE + 4], 7])[1] == PAGE, "that of two pages was replaced by that of three"
    with load(checkpoints(variant)) as alone, load(checkpoints(variant)) as again:
        run(again, ids, long)
        assert run(again, chat)[0] == run(alone, chat)[0]


def test_a_copy_is_taken_over_before_its_slot_is_taken(checkpoints: Checkpoints) -> None:
    """Two prompts together, the second of which waits for a pass while the first keeps states in all slots."""
    known, long = prompt(2 * PAGE + 1, 21), prompt(8 * PAGE - 5, 22)
    with load(checkpoints("qwen3_next"), prefill_chunk=PAGE, max_context=256) as llm:
        run(llm, known)
        wanted = run(llm, known)[0]
        for seed in range(23, 26):  # the copies of the known prompt become the oldest
            run(llm, prompt(PAGE + 1, seed))
        requests = [llm.parts.admission.request(ids, FEW) for ids in (long, known)]
        llm.loop.run(requests)
        assert requests[1].sequence.reused == 2 * PAGE
        assert requests[1].sequence.completion == wanted


@pytest.mark.parametrize("variant", ["qwen3_next", "lfm2_moe", "granitemoehybrid", "nemotron_h"])
def test_sequences_together_keep_their_own(variant: str, checkpoints: Checkpoints) -> None:
    prompts = [prompt(50, 7), prompt(90, 8), prompt(33, 9)]
    with load(checkpoints(variant), prefill_chunk=64) as llm:
        together = [one.token_ids for one in llm.generate(prompts, FEW)]
        assert [run(llm, one) for one in prompts] == [
            (answer, len(one) // PAGE * PAGE) for one, answer in zip(prompts, together, strict=True)
        ]
    for one, answer in zip(prompts, together, strict=True):
        with load(checkpoints(variant)) as alone:
            assert run(alone, one)[0] == answer


def test_slots_are_neither_lost_nor_given_twice() -> None:
    slots = StateSlots(2)
    assert StateSlots.count(2) == 7
    assert sorted([*slots.free, slots.spare, *slots.room]) == list(range(7))
    made = [slots.reserve() for _ in range(4)]
    for number, slot in enumerate(made[:3]):
        slots.name(bytes([number]), slot)
    slots.give_back()  # the fourth was for a pass that failed
    assert slots.reserve() == made[3]
    slots.name(b"d", made[3])
    assert slots.find(b"\0") == made[0], "used just now, so that the second goes first"
    assert slots.reserve() == made[1]
    assert b"\1" not in slots
    slots.name(b"d", made[1])
    assert slots.room == [made[1]], "known already"
    slots.forget(b"d")
    slots.forget(b"e")
    assert sorted(slots.room) == sorted([made[1], made[3]])
