"""What requests add up to: tokens made, prompt tokens computed and found in the cache, and rates of the last second."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...units import rounded
from ..generation import Generation

RATE_S = 1.0  # rates are those of at least so long
KEPT = 8  # requests that ended, whole


@dataclass(frozen=True)
class Tokens:
    """Of any number of requests: prompt tokens that were computed, found in the cache, and in all; new tokens."""

    computed: int = 0
    reused: int = 0
    prompt: int = 0
    made: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            self.computed + other.computed, self.reused + other.reused, self.prompt + other.prompt,
            self.made + other.made,
        )  # fmt: skip


def tokens_of(generation: Generation) -> Tokens:
    """How far a request is; one that waits has no prompt yet that could be in the cache."""
    sequence = generation.request.sequence
    if sequence.admitted is None:
        return Tokens()
    computed = max(0, min(sequence.computed, sequence.prompt_tokens) - sequence.reused)
    made = max(0, len(sequence.tokens) - sequence.prompt_tokens)
    return Tokens(computed, sequence.reused, sequence.prompt_tokens, made)


class Totals:
    """Sees every request that ended, and says what all came to. In the thread of handlers."""

    def __init__(self) -> None:
        self.ended = Tokens()
        self.spliced = 0  # answers in prompts that had the model's own tokens
        self.reasons: Counter[str] = Counter()
        self.recent: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self.ttft_ms: float | None = None  # of the newest request that had a first token
        self._marks: deque[tuple[float, Tokens]] = deque()

    def end(self, generation: Generation) -> None:
        """A request has ended."""
        found, reason = tokens_of(generation), reason_of(generation)
        self.ended += found
        self.spliced += generation.request.sequence.spliced
        self.reasons[reason] += 1
        first, last = generation.first, generation.last
        seconds = (last or 0.0) - first if first is not None and last is not None else 0.0
        ttft = None if first is None else (first - generation.submitted) * 1e3
        if ttft is not None:
            self.ttft_ms = ttft
        self.recent.appendleft(
            {
                "id": generation.request.sequence.id,
                "reason": reason,
                "prompt": generation.prompt_tokens,
                "cached": generation.cached_tokens,
                "made": found.made,
                "ttft_ms": rounded(ttft),
                "tok_s": rounded((found.made - 1) / seconds) if seconds > 0 and found.made > 1 else None,
                "seconds": rounded(time.monotonic() - generation.submitted),
            }
        )

    def now(self, open_ones: Iterable[Generation], at: float) -> dict[str, Any]:
        """Sums, and tokens per second since about RATE_S ago. at: seconds of a clock."""
        total = self.ended
        for one in open_ones:
            total += tokens_of(one)
        while len(self._marks) > 1 and at - self._marks[1][0] >= RATE_S:
            self._marks.popleft()
        self._marks.append((at, total))
        since, before = self._marks[0]
        passed = at - since
        return {
            "decode_tok_s": rounded((total.made - before.made) / passed) if passed else 0.0,
            # A request that gave its pages back computes its prompt again.
            "prefill_tok_s": rounded(max(0, total.computed - before.computed) / passed) if passed else 0.0,
            "ttft_ms": rounded(self.ttft_ms),
            "made": total.made,
            "computed": total.computed,
            "reused": total.reused,
            "prompt": total.prompt,
            "ended": dict(self.reasons),
        }

    def forget_rates(self) -> None:
        """Nobody looked for a while: rates begin anew."""
        self._marks.clear()


def reason_of(generation: Generation) -> str:
    """Why a request ended: stop, length, cancelled, error."""
    if generation.request.error is not None:
        return "cancelled" if getattr(generation.request.error, "code", None) == "cancelled" else "error"
    found = generation.request.sequence.finish_reason
    return "cancelled" if found in (None, "interrupted") else found
