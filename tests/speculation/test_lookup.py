"""Prompt look-up: what it finds, what it does not, and whose text it may use."""

from __future__ import annotations

from typing import Any

import pytest

from headrace import LLM, SamplingParams
from headrace.engine.generation.sequence import Sequence, make_sequence
from headrace.engine.speculation import lookup
from headrace.engine.speculation.lookup import PromptLookup


def sequence(tokens: list[int], id: int = 0, **fields: Any) -> Sequence:
    made = make_sequence(id, tokens, SamplingParams(max_new_tokens=100))
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("tokens", "most", "found", "kind"),
    [
        ([1, 2, 3, 4, 5, 6, 1, 2, 3], 2, [4, 5], "3 tokens agree"),
        ([1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6], 9, [7, 1, 2, 3, 4, 5, 6, 7, 1], "6 tokens agree"),
        ([9, 1, 2, 3, 7, 8, 1, 2, 3, 5, 9, 1, 2, 3], 1, [7], "3 tokens agree"),  # the longer agreement, not the newer
        ([1, 2, 3, 7, 1, 2, 3, 5, 1, 2, 3], 1, [5], "3 tokens agree"),  # the newer of two alike
        ([4, 4, 4, 4, 4, 4, 4], 5, [4] * 5, "6 tokens agree"),
        ([1, 2, 3, 4, 5, 6], 4, None, ""),
        ([1, 2], 4, None, ""),
    ],
)
def test_what_followed_before(tokens: list[int], most: int, found: list[int] | None, kind: str) -> None:
    draft = PromptLookup().draft(sequence(tokens), most)
    assert (None if draft is None else draft.tokens) == found
    assert draft is None or draft.kind.startswith(kind[:1])


def test_what_is_new_is_found_as_it_comes() -> None:
    one, drafter = sequence([1, 2, 3, 4, 5]), PromptLookup()
    assert drafter.draft(one, 4) is None
    one.tokens += [1, 2, 3]
    draft = drafter.draft(one, 4)
    assert draft is not None
    assert draft.tokens == [4, 5, 1, 2]


def test_earlier_text_serves_those_of_the_same_salt_alone() -> None:
    drafter, told = PromptLookup(), sequence([1, 2, 3, 4], prompt_tokens=1, salt=b"mine")
    drafter.draft(told, 4)
    told.tokens += [5, 6]
    drafter.forget(told)
    mine, other = (sequence([8, 2, 3, 4], id, salt=salt) for id, salt in ((1, b"mine"), (2, b"other")))
    draft = drafter.draft(mine, 4)
    assert draft is not None
    assert draft.tokens == [5, 6]
    assert drafter.draft(other, 4) is None


def test_the_text_of_few_is_kept() -> None:
    drafter = PromptLookup()
    for id in range(20):
        one = sequence([id, id + 1, id + 2, id + 3], id, prompt_tokens=1)
        drafter.draft(one, 4)
        drafter.forget(one)
    assert not drafter.texts
    assert [*drafter.earlier] == list(range(20 - lookup.EARLIER, 20))


def test_text_that_repeats_takes_fewer_passes() -> None:
    params = SamplingParams(max_new_tokens=120, ignore_eos=True)
    with LLM("demo", no_measure=True, max_context=512, speculate="off") as llm:
        plain = llm.generate("And the LORD said", params)[0]
    with LLM("demo", no_measure=True, max_context=512, speculate="lookup") as llm:
        found = llm.generate("And the LORD said", params)[0]
        again = llm.generate("And the LORD said", params)[0]
    assert found.token_ids == again.token_ids == plain.token_ids
    first, second = (sum(p.phase == "decode" for p in one.ledger) for one in (found, again))
    assert second < 60, "its own earlier text says all of it"
    assert second < first <= 119
