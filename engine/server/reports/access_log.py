"""One line for every request that ended: whose it was, how long its prompt was and how much of that was known, how fast
it went, why it ended; and where a prompt parted from one that it nearly shared.

A cache that misses is the dearest thing that happens to an agent here: minutes, where a hit takes a second. So when a
prompt begins like an earlier one and then differs, the line shows the first words that do.
"""

from __future__ import annotations

import logging
from collections import deque

from ...generation.schedule.waiting import shared_pages
from ...model.kv_cache import PAGE
from ..generation import Generation
from ..page.totals import reason_of
from ..service import Service

log = logging.getLogger("headrace.access")
REMEMBERED = 16  # prompts that a new one is compared with
NEAR = 4 * PAGE  # tokens that two prompts share at least, to be nearly the same
SHOWN = 12  # tokens of what differs


class AccessLog:
    """Sees every request that ended."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.prompts: deque[list[int]] = deque(maxlen=REMEMBERED)
        self.misses: dict[int, str] = {}  # of the newest requests that had one, by id
        service.ended.append(self.end)

    def end(self, generation: Generation) -> None:
        """Writes the line of a request."""
        log.info("%s", self.line(generation))
        if miss := self.near_miss(generation):
            log.info("  %s", miss)
            self.misses[generation.request.sequence.id] = miss
            while len(self.misses) > REMEMBERED:
                del self.misses[next(iter(self.misses))]
        sequence = generation.request.sequence
        if sequence.prompt_tokens >= NEAR and not sequence.salt:
            self.prompts.append(sequence.tokens)

    def line(self, generation: Generation) -> str:
        """What is said of a request."""
        sequence = generation.request.sequence
        made, first, last = len(sequence.completion), generation.first, generation.last
        prompt = f"{sequence.prompt_tokens} prompt token{'s' * (sequence.prompt_tokens != 1)}"
        who = f" of {generation.client}" if generation.client else ""
        parts = [f"request {sequence.id}{who}: {prompt}, {sequence.reused} of them cached"]
        if sequence.spliced:
            parts.append(f"{sequence.spliced} answer{'s' if sequence.spliced > 1 else ''} in the model's own tokens")
        if first is not None:
            parts.append(f"first token after {first - generation.submitted:.2f} s")
        rate = (made - 1) / (last - first) if first is not None and last is not None and last > first else 0.0
        parts.append(f"{made} new" + (f" at {rate:.1f}/s" if rate else ""))
        error, reason = generation.request.error, reason_of(generation)
        parts.append(f"error: {error}" if reason == "error" else reason)
        return ", ".join(parts)

    def near_miss(self, generation: Generation) -> str:
        """Where a prompt parts from the earlier one that it shares most with, if more was shared than could be used; ""
        where nothing was lost, or it shares nothing because of its salt."""
        sequence = generation.request.sequence
        prompt = sequence.tokens[: sequence.prompt_tokens]
        best = max(self.prompts, key=lambda one: shared_pages(prompt, one), default=None)
        if best is None or sequence.admitted is None or sequence.salt:
            return ""
        same = _common(prompt, best)
        lost = len(prompt) - same
        if same < NEAR or lost < NEAR:
            return ""
        known, now = (self.service.text_of(one[same : same + SHOWN]) for one in (best, prompt))
        return f"the prompt is that of an earlier request for {same} tokens, then has {now!r} where that had {known!r}"


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens are the same at the beginning of both."""
    start = PAGE * shared_pages(one, other)
    for place in range(start, min(len(one), len(other))):
        if one[place] != other[place]:
            return place
    return min(len(one), len(other))
