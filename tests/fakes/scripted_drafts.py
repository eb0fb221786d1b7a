"""Drafters for tests: they know what a model would say, and are wrong as often as they are told."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq

from headrace import LLM
from headrace.engine.generation.sequence import Sequence
from headrace.engine.speculation.drafter import Draft
from headrace.engine.speculation.drafts import most_states
from headrace.engine.speculation.speculation import Speculation


class Script:
    """Says how known texts go on; a token is spoiled with probability 1 - right. texts: prompts with their answers."""

    is_free, token_s = True, 0.0

    def __init__(self, texts: Seq[Seq[int]], right: float, vocab: int, seed: int = 0) -> None:
        self.texts, self.right, self.vocab = [list(one) for one in texts], right, vocab
        self.random = random.Random(seed)
        self.ended: list[int] = []

    def draft(self, sequence: Sequence, most: int) -> Draft | None:
        done = len(sequence.tokens)
        text = next((one for one in self.texts if one[:done] == sequence.tokens), None)
        if text is None or len(text) == done:
            return None
        tokens = text[done : done + most]
        for i in range(len(tokens)):
            if self.random.random() >= self.right:
                tokens[i] = (tokens[i] + 1 + self.random.randrange(self.vocab - 1)) % self.vocab
        return Draft(tokens, "script")

    def forget(self, sequence: Sequence) -> None:
        self.ended.append(sequence.id)


def speculate(llm: LLM, drafter: Script, length: int = 5) -> None:
    """Lets a model verify drafts of up to so many tokens whatever they cost."""
    states = llm.loop.states
    limit = None if states is None else most_states(states)

    class Always(Speculation):
        def _lengths(self, rates, longest, passes, sequences, room, costs):  # type: ignore[no-untyped-def]
            found = []
            for most in longest:
                found.append(min(most, length, room))
                room -= found[-1]
            return found

    llm.loop.speculate(Always(drafter, None, must_pay=False, most_states=limit))
