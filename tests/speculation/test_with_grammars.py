"""Drafts beside what else decides on tokens: grammars, stop strings, ends, lengths, contexts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scripted_drafts import Script, speculate

from headrace import LLM, SamplingParams

PROMPT = "In the beginning God created the heaven and the earth. And the earth was without form, and void; and"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "count": {"type": "integer"}},
    "required": ["name", "count"],
    "additionalProperties": False,
}
ASKED = {
    "json": {"json_schema": SCHEMA},
    "json, sampled": {"json_schema": SCHEMA, "temperature": 0.8, "seed": 3},
    "json, likelihoods": {"json_schema": SCHEMA, "temperature": 0.8, "seed": 3, "logprobs": 1},
    "regex": {"grammar": "(yes|no), [a-z]{3,9} (and|or) [a-z]{2,8}\\."},
    "stop string": {"stop": ("the ",)},
    "stop string, sampled": {"stop": ("and", "the"), "temperature": 1.0, "seed": 8},
    "stop token": {"stop_token_ids": tuple(range(40, 60))},
    "two tokens": {"max_new_tokens": 2},
    "one token": {"max_new_tokens": 1},
    "least tokens": {"min_tokens": 30, "stop": ("zzz",)},
}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", no_measure=True, speculate="off", max_context=512, max_sequences=4) as llm:
        yield llm


@pytest.mark.parametrize("right", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("asked", ASKED)
def test_answers_are_those_without(asked: str, right: float, llm: LLM) -> None:
    params = SamplingParams(**{"max_new_tokens": 60, **ASKED[asked]})  # type: ignore[arg-type]
    llm.loop.drafts = llm.loop.scheduler.drafts = None
    plain = llm.generate(PROMPT, params)[0]
    # What a drafter says behind the end of an answer must not become part of it.
    script = Script([llm.encode(PROMPT) + plain.token_ids + list(range(20, 40))], right, llm.spec.vocab)
    speculate(llm, script)
    found = llm.generate([PROMPT, PROMPT], params)
    for one in found if params.is_greedy or params.seed is not None else found[:1]:
        assert (one.text, one.token_ids, one.finish_reason) == (plain.text, plain.token_ids, plain.finish_reason)
    assert not llm.loop.scheduler.running
    assert llm.loop.pages.available == len(llm.loop.pages.owners)


def test_a_draft_that_a_grammar_refuses_ends_there(llm: LLM) -> None:
    """No pass is spent on tokens that cannot come."""
    params = SamplingParams(max_new_tokens=40, json_schema=SCHEMA)
    llm.loop.drafts = llm.loop.scheduler.drafts = None
    plain = llm.generate(PROMPT, params)[0].token_ids
    speculate(llm, Script([llm.encode(PROMPT) + plain], 0.0, llm.spec.vocab))
    with llm.ledger.recording() as passes:
        assert llm.generate(PROMPT, params)[0].token_ids == plain
    refused = sum(one.drafted for one in passes)
    assert refused < 3 * len(plain), "a wrong token of each draft of five would be refused by the grammar alone"


def test_a_stream_gives_every_token_a_chunk(llm: LLM) -> None:
    params = SamplingParams(max_new_tokens=30, ignore_eos=True)
    llm.loop.drafts = llm.loop.scheduler.drafts = None
    plain = [chunk.token_id for chunk in llm.stream(PROMPT, params)]
    speculate(llm, Script([llm.encode(PROMPT) + plain], 1.0, llm.spec.vocab))
    chunks = list(llm.stream(PROMPT, params))
    assert [chunk.token_id for chunk in chunks] == plain
    assert [chunk.finish_reason for chunk in chunks] == [None] * 29 + ["length"]


def test_a_closed_stream_gives_everything_back(llm: LLM) -> None:
    params = SamplingParams(max_new_tokens=30, ignore_eos=True)
    script = Script([llm.encode(PROMPT) + list(range(30))], 1.0, llm.spec.vocab)
    speculate(llm, script)
    stream = llm.stream(PROMPT, params)
    next(stream)
    stream.close()
    assert not llm.loop.scheduler.running
    assert len(script.ended) == 1
    assert llm.loop.pages.available == len(llm.loop.pages.owners)
