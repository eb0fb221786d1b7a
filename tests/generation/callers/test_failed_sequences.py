"""Logits that are not finite end the request that they are of; the others of its passes get the tokens that they get
without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from family_runs import prompt
from torch import Tensor

from headrace import LLM, HeadraceError, SamplingParams
from headrace.engine.generation.request import Request
from headrace.engine.generation.sampler import sample
from headrace.engine.generation.sequence import Sequence
from headrace.engine.model.kv_cache import PAGE
from headrace.kernels import Ops

Checkpoints = Callable[[str], Path]
BAD = 7  # the first token of the prompt whose logits are spoiled
NEW = 2 * PAGE


class Spoils:
    """Draws as usual, but one sequence has no finite logits once it has `after` new tokens."""

    def __init__(self) -> None:
        self.after = 0
        self.llm: LLM | None = None
        self.beside = 0

    def __call__(self, logits_SV: Tensor, sequences: list[Sequence], ops: Ops) -> list[int]:
        logits_SV = logits_SV.clone()
        for row_V, one in zip(logits_SV, sequences, strict=True):
            if one.tokens[0] == BAD and len(one.completion) >= self.after:
                self.beside = 0 if self.llm is None else len(self.llm.loop.scheduler.running) - 1
                row_V[3] = float("nan")
        return sample(logits_SV, sequences, ops)


def ask(llm: LLM, ids: list[int], seed: int) -> Request:
    params = SamplingParams(max_new_tokens=NEW, temperature=1.0, seed=seed, ignore_eos=True, logprobs=2)
    return llm.parts.admission.request(ids, params)


def others(llm: LLM) -> list[Request]:
    return [ask(llm, [5, *prompt(PAGE - 2, 1)], 1), ask(llm, [6, *prompt(2 * PAGE, 2)], 2)]


@pytest.fixture(params=["demo", "drafts", "qwen3_next"])
def opened(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> Iterator[tuple[LLM, Spoils]]:
    spoils, kind = Spoils(), request.param
    model = str(checkpoints(kind)) if kind == "qwen3_next" else "demo"
    options = {"kernels": "reference", "dtype": "float32", "max_context": 200} if kind == "qwen3_next" else {}
    speculate = "lookup" if kind == "drafts" else "off"
    with LLM(
        model, no_measure=True, max_sequences=4, deterministic=kind != "qwen3_next", speculate=speculate,
        sampler=spoils, **options,
    ) as llm:  # fmt: skip
        spoils.llm = llm
        yield llm, spoils


@pytest.mark.parametrize("after", [0, 9, PAGE - 4])
def test_one_that_fails_ends_alone(opened: tuple[LLM, Spoils], after: int) -> None:
    llm, spoils = opened
    wanted = others(llm)
    llm.loop.run(wanted)
    spoils.after = after
    ids = [BAD, *prompt(PAGE + 3, 3)]
    found, bad = others(llm), ask(llm, ids, 3)
    with pytest.raises(HeadraceError, match="not finite"):
        llm.loop.run([found[0], bad, found[1]])
    # Of answers that were given before drafts come true at once: they end earlier.
    assert spoils.beside > 0 or (llm.loop.drafts is not None and after > 9)
    assert len(bad.sequence.completion) == len(bad.sequence.logprobs) == after
    assert [one.sequence.completion for one in found] == [one.sequence.completion for one in wanted]
    assert [one.error for one in found] == [None, None]
    assert not llm.loop.requests
    assert not llm.loop.scheduler.running
    # What the failed pass would have made known is not taken for the beginning of another prompt.
    longer = [*ids, *bad.sequence.completion, *prompt(9, 4)]
    assert len(llm.loop.pages.known(longer, [], b"")) * PAGE < len(ids) + max(1, after)
    llm.loop.run(found := others(llm))
    assert [one.sequence.completion for one in found] == [one.sequence.completion for one in wanted]


def test_a_stream_gets_its_tokens_and_then_the_error() -> None:
    spoils = Spoils()
    spoils.after = 3
    with LLM("demo", no_measure=True, sampler=spoils) as llm:
        stream = llm.stream([BAD, *prompt(9, 1)], {"max_new_tokens": 9, "ignore_eos": True})
        assert len([next(stream) for _ in range(3)]) == 3
        with pytest.raises(HeadraceError, match="not finite"):
            next(stream)
        assert not llm.loop.requests
