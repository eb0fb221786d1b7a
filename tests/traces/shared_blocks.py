"""What tests of a cache of experts share that gives memory to the KV cache, and takes it back."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

from headrace import LLM
from headrace.engine.experts.cache.expert_cache import ExpertCache
from headrace.engine.model.lent_pages import LentPages
from headrace.engine.planning.replays import Replays
from headrace.engine.policies.replay.replay import replay

TIGHT: dict[str, Any] = {"vram_limit": 0.012, "max_context": 512, "max_sequences": 4, "prefill_chunk": 64}

Of = tuple[list[list[int]], Replays]  # what the model says alone, and the trace of that


def unsettled(llm: LLM, seed: int) -> list[tuple[int, int]]:
    """From now on pages are opened and closed by chance before every pass; what is checked, and how many were open."""
    flip, pages, cache, seen = random.Random(seed), llm.loop.pages, llm.parts.expert_cache, []
    assert isinstance(pages, LentPages)
    assert isinstance(cache, ExpertCache)
    assert cache.shared is not None

    def between_passes() -> None:
        pages.passes += 1
        wanted = flip.randrange(1, len(pages.numbers) + 1)
        pages._open(wanted - pages.open) if flip.random() < 0.5 else pages._close(max(wanted, pages._needed()))
        lie_apart(cache, pages.open)
        seen.append((pages.open, cache.budget))

    pages.between_passes = between_passes  # type: ignore[method-assign]
    return seen


def lie_apart(cache: ExpertCache, open_pages: int) -> None:
    """No byte is in two experts, nor in one and an open page."""
    assert cache.shared is not None
    room, taken = cache.shared.room, cache.shared.room.opened(-1, open_pages)
    for layer, expert in cache.resident:
        first = int(cache.slots.of_LE[layer, expert]) * cache.shape.expert_bytes[layer]
        taken.append((first, first + cache.shape.expert_bytes[layer]))
    taken.sort()
    assert all(end <= begin for (_, end), (begin, _) in pairwise([(0, 0), *taken, (room.nbytes, room.nbytes)]))
    assert cache.slots.nbytes + room.taken(open_pages) <= room.nbytes


def counted(llm: LLM, first: int, policy: Any, of: Replays, late: bool = False) -> None:
    """The counts of a replay whose budget was the same at each pass; first: at the start."""
    cache = llm.parts.expert_cache
    assert isinstance(cache, ExpertCache)
    cache.begin(0)
    wanted = replay(policy, of.shape, first, of.choices, tokens=1, late=late, events=cache.events)
    assert cache.counts == wanted.counts
