"""Runs with a layer for multi-token prediction that drafts at every pass, and what it was asked and said."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mtp_models import Twin
from scripted_drafts import speculate
from torch import Tensor

from headrace import LLM, SamplingParams
from headrace.engine.ledger.passes import Pass
from headrace.engine.speculation.mtp.drafter import MtpDrafter

OPTIONS: dict[str, Any] = {"dtype": "float32", "max_context": 192, "max_sequences": 4, "no_measure": True}


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 160, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def opened(path: Path, **options: Any) -> LLM:
    return LLM(str(path), **OPTIONS, speculate="mtp", **options)


def drafter_of(llm: LLM) -> MtpDrafter:
    assert llm.loop.drafts is not None
    found = llm.loop.drafts.speculation.drafter
    assert isinstance(found, MtpDrafter)
    return found


def always(llm: LLM, length: int = 3) -> MtpDrafter:
    """Every pass has drafts of so many tokens, whatever they cost and came to."""
    drafter = drafter_of(llm)
    speculate(llm, drafter, length)  # type: ignore[arg-type]
    return drafter


@dataclass
class Said:
    """Of one draft: the text before it, its tokens, and the logits of each."""

    text: list[int]
    tokens: list[int]
    logits: list[Tensor] = field(default_factory=list)


def watched(drafter: MtpDrafter) -> list[Said]:
    """What a drafter says from now on, of one sequence at a time."""
    found: list[Said] = []
    forward, draft_all = drafter.layer.forward, drafter.draft_all
    logits: list[Tensor] = []

    def passing(inputs: Any, hidden_TD: Tensor) -> Any:
        out = forward(inputs, hidden_TD)
        if len(out.logits):
            logits.append(out.logits[0].clone())
        return out

    def asked(many: Any) -> Any:
        logits.clear()
        said = draft_all(many)
        for (sequence, _), draft in zip(many, said, strict=True):
            if draft is not None:
                found.append(Said(list(sequence.tokens), draft.tokens, list(logits)))
        return said

    drafter.layer.forward, drafter.draft_all = passing, asked  # type: ignore[method-assign]
    return found


def check(said: list[Said], twin: Twin) -> None:
    """Logits of every token of every draft are the twin's."""
    assert said
    for one in said:
        tokens, hidden_TD = one.text[1:], twin.trunk(one.text)[:-1]
        for token, mine in zip(one.tokens, one.logits, strict=True):
            states = twin.states(tokens, hidden_TD)
            torch.testing.assert_close(mine, twin.logits(states[-1]), atol=2e-3, rtol=2e-3)
            assert token == int(mine.argmax())
            tokens, hidden_TD = [*tokens, token], torch.cat((hidden_TD, states[-1:]))


@dataclass
class Ran:
    """Texts of a run, guesses in their order, hidden states that the layer was given, and passes."""

    texts: list[list[int]]
    said: list[list[int]]
    given: list[Tensor]
    passes: list[Pass]


def ran(llm: LLM, prompts: list[list[int]], each: int, how: SamplingParams) -> Ran:
    """Of a model that drafts in one pass of `each`, so that other steps come between those with drafts."""
    drafter, said, given = always(llm), list[list[int]](), list[Tensor]()
    assert llm.loop.drafts is not None
    speculation, turns = llm.loop.drafts.speculation, itertools.count()
    lengths, draft_all, forward = speculation._lengths, drafter.draft_all, drafter.layer.forward

    def now_and_then(*asked: Any) -> list[int]:
        found = lengths(*asked)
        return found if next(turns) % each == each - 1 else [0] * len(found)

    def guess(asked: Any) -> Any:
        drafts = draft_all(asked)
        said.extend(one.tokens for one in drafts if one is not None)
        return drafts

    def layer(inputs: Any, hidden_TD: Tensor) -> Any:
        given.append(hidden_TD.clone())
        return forward(inputs, hidden_TD)

    speculation._lengths = now_and_then  # type: ignore[method-assign]
    drafter.draft_all, drafter.layer.forward = guess, layer  # type: ignore[method-assign]
    with llm.ledger.recording() as passes:
        texts = [one.token_ids for one in llm.generate(prompts, how)]
    return Ran(texts, said, given, passes)
