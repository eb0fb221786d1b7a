"""One request on its way: its tokens, its pages, how far it is, and why it ended."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..config import SamplingParams


@dataclass
class Sequence:
    """A prompt and what was generated from it. `computed`: tokens whose keys and values are in the cache."""

    id: int
    tokens: list[int]
    params: SamplingParams
    prompt_tokens: int
    generator: torch.Generator
    pages: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)  # of the full pages, see kvcache.py
    computed: int = 0
    slot: int = -1  # of its recurrent state, while it runs
    reused: int = 0  # prompt tokens that were in the cache already
    finish_reason: str | None = None

    @property
    def completion(self) -> list[int]:
        return self.tokens[self.prompt_tokens :]

    @property
    def pending(self) -> int:
        """Tokens that still have to pass through the model before the next one can be sampled."""
        return len(self.tokens) - self.computed

    @property
    def longest(self) -> int:
        """Tokens that the sequence may come to hold in the cache: the last one sampled is never written."""
        return self.prompt_tokens + self.params.max_new_tokens - 1


def make_sequence(id: int, prompt: list[int], params: SamplingParams) -> Sequence:
    """A fresh sequence with its own random generator: seeded, or from the system's entropy."""
    generator = torch.Generator()
    if params.seed is None:
        generator.seed()
    else:
        generator.manual_seed(params.seed)
    return Sequence(id, list(prompt), params, len(prompt), generator)
