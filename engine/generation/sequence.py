"""One request on its way: its tokens, its pages, how far it is, and why it ended."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ...errors import HeadraceError
from ..config import SamplingParams
from ..model.windows import Held
from .disk.reader import Fetch
from .grammars.grammar import Constraint
from .outputs import Likely


@dataclass
class Sequence:
    """A prompt and what was generated from it. `computed`: tokens whose keys and values are in the cache."""

    id: int
    tokens: list[int]
    params: SamplingParams
    prompt_tokens: int
    generator: torch.Generator
    pages: list[int] = field(default_factory=list)
    windows: list[Held] = field(default_factory=list)  # its pages in each pool of those over a window
    digests: list[bytes] = field(default_factory=list)  # of the full pages, see kv_cache.py
    prompt_digests: list[bytes] = field(default_factory=list)  # of pages that were looked up before it ran
    fetch: Fetch | None = None  # of what is on disk, while it waits
    computed: int = 0
    forced: int = 0  # tokens at its end that a grammar leaves no choice in, not computed yet, beside the one before
    draft: list[int] = field(default_factory=list)  # tokens that may come next: the pass that comes verifies them
    again: int = 0  # of `forced`, tokens that were computed before a draft was refused, and are once more
    slot: int = -1  # of its recurrent state, while it runs
    restore: int | None = None  # the slot that its state begins as, until its first pass
    kept: bytes | None = None  # the digest where its state was last kept while it was generating
    points: tuple[int, ...] = ()  # pages of its beginning behind which another prompt may go on, see windows.py
    reused: int = 0  # prompt tokens that were in the cache already
    spliced: int = 0  # answers in its prompt that have the model's own tokens, see own_answers.py
    finish_reason: str | None = None
    failure: HeadraceError | None = None  # why nothing could be drawn for it; it ends with that
    ends: tuple[int, ...] = ()  # tokens that end it, where it does not go on past them
    constraint: Constraint | None = None  # a grammar that it follows
    logprobs: list[Likely] = field(default_factory=list)  # of its new tokens, where they are wanted
    priority: int = 0  # lower ones run first
    salt: bytes = b""  # it shares pages with sequences of the same one alone
    arrived: float = 0.0  # seconds of the scheduler's clock
    admitted: float | None = None  # when it first ran
    passed_over: int = 0  # smaller ones that were admitted while there was no room for it

    @property
    def is_decoding(self) -> bool:
        """Whether it has new tokens of its own to compute, one and those that a grammar forces behind it: no prompt,
        and nothing to compute again."""
        return self.pending == 1 + self.forced and self.computed >= self.prompt_tokens

    @property
    def is_being_read(self) -> bool:
        """Whether it waits for pages from the disk."""
        return self.fetch is not None and not self.fetch.is_done

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
