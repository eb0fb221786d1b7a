"""Tokens that a grammar leaves no choice in: computed together, they are those that one pass each would give."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from headrace import LLM, SamplingParams
from headrace.engine.generation.grammars.grammar import Grammar
from headrace.engine.generation.request import Request
from headrace.engine.generation.schedule.batch import DECODE, Batch
from headrace.engine.generation.schedule.scheduler import Scheduler
from headrace.engine.generation.sequence import make_sequence
from headrace.engine.model.kv_cache import PAGE, PageTable

Checkpoints = Callable[[str], Path]
LONG = 'start: "x" /[ab]/ " is a text that has no choice in it, for quite a while, " /[0-9]{2}/ " and the end"'


def save_tokenizer(directory: Path) -> None:
    """Bytes of ASCII, some of them together: a text can be cut in several ways."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    pairs = [("t", "e"), ("h", "a"), ("Ġ", "t"), ("x", "t"), ("te", "xt"), ("Ġt", "ha"), ("o", "i"), ("Ġ", "a")]
    letters = ["Ġ", *(chr(sign) for sign in range(33, 127))]
    names = ["<pad>", *letters, *("".join(pair) for pair in pairs)]
    core.model = models.BPE(vocab={name: place for place, name in enumerate(names)}, merges=pairs)
    core.add_special_tokens(["</s>"])
    core.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))


@pytest.fixture(scope="module", params=["qwen3_moe", "qwen3_next", "deepseek_v3", "gpt_oss"])
def llm(
    request: pytest.FixtureRequest, checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LLM]:
    directory = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(checkpoints(request.param), directory)
    save_tokenizer(directory)
    with LLM(
        str(directory), kernels="reference", dtype="float32", max_context=256, prefill_chunk=48,
        prefill_stall_ms=1000, no_measure=True,
    ) as llm:  # fmt: skip
        yield llm


def asked(llm: LLM, prompt: str, grammar: str | None, **how: Any) -> Request:
    params = SamplingParams(**{"max_new_tokens": 120, "temperature": 1.0, "seed": 4, **how})
    request = llm.admission.request(prompt, params)
    if grammar is not None:
        assert llm.vocabulary is not None
        request.sequence.constraint = llm.vocabulary.constraint(Grammar.of_lark(grammar))
    return request


def run(llm: LLM, *requests: Request, joins: bool = True) -> list[list[int]]:
    llm.loop.joins_forced = joins
    llm.loop.run(requests)
    return [one.sequence.completion for one in requests]


def test_together_and_one_by_one_are_the_same(llm: LLM) -> None:
    for how in ({}, {"temperature": 0.0}, {"max_new_tokens": 20}, {"stop": ("choice",)}, {"min_tokens": 70}):
        with llm.ledger.recording() as slow:
            (alone,) = run(llm, asked(llm, "Once", LONG, **how), joins=False)
        request = asked(llm, "Once", LONG, **how)
        with llm.ledger.recording() as fast:
            assert run(llm, request) == [alone]
        forced = sum(one.forced for one in fast)
        assert not sum(one.forced for one in slow)
        assert len(fast) < len(slow) / 2
        if "max_new_tokens" not in how and "stop" not in how:  # else the last ones are not computed at all
            assert forced > 10
            assert len(fast) == len(slow) - forced
            assert sum(one.tokens for one in fast) == sum(one.tokens for one in slow)
        assert [chunk.token_id for chunk in request.chunks] == alone
        assert llm.ledger.summary("decode").forced >= forced


def test_beside_others_everybody_gets_what_is_given_alone(llm: LLM) -> None:
    def all_of_them() -> list[Request]:
        return [
            asked(llm, "Once upon", LONG), asked(llm, "It is", None, max_new_tokens=60, ignore_eos=True),
            asked(llm, "Never " * 9, LONG, seed=9), asked(llm, "A", 'start: "p" /[a-z]{3}/ "some more text"'),
        ]  # fmt: skip

    alone = [run(llm, one, joins=False)[0] for one in all_of_them()]
    together = all_of_them()
    assert run(llm, *together) == alone
    assert llm.loop.pages.available == len(llm.loop.pages.owners)


def test_a_likelihood_of_each_has_a_pass_of_each(llm: LLM) -> None:
    plain = run(llm, asked(llm, "Once", LONG))[0]
    request = asked(llm, "Once", LONG, logprobs=2)
    with llm.ledger.recording() as passes:
        assert run(llm, request) == [plain]
    assert len(request.sequence.logprobs) == len(plain)
    assert not any(one.forced for one in passes)
    assert all(one.logprob <= 0 for one in request.sequence.logprobs)


def test_the_scheduler_on_its_own() -> None:
    """A forced run rides in decode passes, as far as a chunk has room, with pages for all of it."""
    scheduler = Scheduler(PageTable(16), 32, 4)
    params = SamplingParams(max_new_tokens=200)
    for number in range(2):
        scheduler.add(make_sequence(number, list(range(10)), params))
    batch = scheduler.next_batch()
    assert batch is not None
    scheduler.commit(batch)
    for sequence in batch.sequences:
        sequence.tokens.append(5)
    first, second = batch.sequences
    first.tokens += [6] * 50
    first.forced = 50

    def step() -> Batch:
        found = scheduler.next_batch()
        assert found is not None
        assert found.ready is not None  # before the pass is committed
        assert all(len(s.pages) * PAGE >= s.computed + n for s, n in zip(found.sequences, found.counts, strict=True))
        assert found.tokens <= 32
        scheduler.commit(found)
        for i in found.ready:
            found.sequences[i].tokens.append(7)
        return found

    one, two = step(), step()
    assert (one.phase, one.counts, one.forced, one.ready) == (DECODE, [30, 1], 29, [1])
    assert (two.phase, two.counts, two.forced, two.ready) == (DECODE, [21, 1], 20, [0, 1])
    assert (first.forced, first.pending, second.pending) == (0, 1, 1)
    assert step().counts == [1, 1]
    first.tokens += [6] * 5
    first.forced = 5
    scheduler._preempt(first)
    assert not first.is_decoding
    assert first.forced == 0
