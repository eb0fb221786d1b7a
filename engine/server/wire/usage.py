"""What an answer says of itself: tokens, times, and the bytes that it read."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from ..generation import Generation


def new_id(kind: str) -> str:
    """An id of an answer, message or call."""
    return f"{kind}-{secrets.token_hex(12)}"


def openai(generations: Sequence[Generation], each: int = 0) -> dict[str, Any]:
    """Counts of tokens. each: how many answers in turn are to one prompt, which is counted once; 0: all of them."""
    firsts = generations[:: each or len(generations)]
    prompts = sum(one.prompt_tokens for one in firsts)
    made = sum(one.tokens for one in generations)
    thought = sum(one.text.reasoning_tokens for one in generations)
    return {
        "prompt_tokens": prompts,
        "completion_tokens": made,
        "total_tokens": prompts + made,
        "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in firsts)},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


def extras(generation: Generation, with_bytes: bool) -> dict[str, Any]:
    """Times as llama.cpp gives them; with_bytes: what was read besides."""
    found: dict[str, Any] = {"timings": timings(generation)}
    if with_bytes:
        found["headrace"] = read(generation)
    return found


def timings(generation: Generation) -> dict[str, Any]:
    """Milliseconds and rates: of the prompt up to the first token, of the others behind it."""
    cached, prompt = generation.cached_tokens, generation.prompt_tokens
    first, last = generation.first, generation.last
    queued = generation.queued_s
    prompt_s = max(1e-6, (first or generation.submitted) - generation.submitted - queued)
    made_s = max(1e-6, (last or 0.0) - first) if first is not None and last is not None else 0.0
    more = max(0, generation.tokens - 1)
    return {
        "cache_n": cached,
        "prompt_n": prompt - cached,
        "prompt_ms": round(prompt_s * 1e3, 3),
        "prompt_per_second": round((prompt - cached) / prompt_s, 3),
        "predicted_n": generation.tokens,
        "predicted_ms": round(made_s * 1e3, 3),
        "predicted_per_second": round(more / made_s, 3) if made_s and more else 0.0,
        "queue_ms": round(queued * 1e3, 3),
    }


def read(generation: Generation) -> dict[str, Any]:
    """What the passes of an answer read, and took, by phase: of its own and of the requests beside it."""
    account = generation.request.account
    found = {}
    for phase in ("prefill", "mixed", "decode"):
        total = account.summary(phase)
        if total.passes:
            found[phase] = {
                "passes": total.passes,
                "tokens": total.tokens,
                "forced": total.forced,
                **({"drafted": total.drafted, "accepted": total.accepted} if total.drafted else {}),
                "bytes": total.bytes,
                "measured_ms": round(total.measured_s * 1e3, 3),
                "predicted_ms": None if total.predicted_s is None else round(total.predicted_s * 1e3, 3),
            }
    return found
