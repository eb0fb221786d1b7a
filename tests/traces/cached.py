"""What tests of the expert cache share: the demo model beside a GPU that is played, and the replay of what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headrace import LLM, SamplingParams
from headrace.engine.planning import replays
from headrace.engine.planning.replays import Replays
from headrace.engine.policies import registry
from headrace.engine.policies.protocol import Asked, Key, Moves, Policy, Shape, Storing
from headrace.engine.policies.registry import Known
from headrace.engine.policies.replay.replay import Replayed, replay
from headrace.engine.traces import reader


class Fetches:
    """Of a layer's missing experts the first `count` come, and leave behind it."""

    name = "fetches"

    def __init__(self, count: int) -> None:
        self.count = count

    def start(self, shape: Shape, budget: int) -> tuple[Key, ...]:
        return ()

    def layer(self, asked: Asked) -> Moves:
        coming = tuple(asked.missing[: self.count])
        return Moves(fetch=coming, evict=tuple((asked.layer, expert) for expert in coming))


PROMPTS = ["In the beginning", "And it came to pass, when the children", "Behold,", "The"]
FETCHED = [0, 0, 1, 1, 2, 2, 3]
PARAMS = SamplingParams(max_new_tokens=20, ignore_eos=True)


def load(policy: str | Policy | None, **options: Any) -> LLM:
    """Beside a GPU that is played; None: on the CPU alone."""
    beside: dict[str, Any] = {} if policy is None else {"device": "simulated", "policy": policy}
    if isinstance(policy, Storing):
        beside["second_vram"] = max(0.001, policy.store_bytes / 1e9)
    return LLM("demo", **{"max_context": 96, **beside, **options})


def say(llm: LLM, batch: int) -> list[list[int]]:
    """What the model says to the prompts, so many at once."""
    parts = [PROMPTS[n : n + batch] for n in range(0, len(PROMPTS), batch)]
    return [one.token_ids for part in parts for one in llm.generate(part, PARAMS)]


def recorded(path: Path, batch: int, **options: Any) -> tuple[list[list[int]], Replays]:
    """What it says without a cache, and the trace of that."""
    with load(None, trace=path, **options) as llm:
        said = say(llm, batch)
    return said, replays.of_trace(reader.read(path), None)


def made(name: str, of: Replays) -> Policy:
    """A policy of the box, of what a trace says."""
    known = Known(counts=of.known.counts, future=of.known.future, fetched=FETCHED, store_bytes=of.shape.nbytes // 5)
    return registry.make(name, known)


def replayed(policy: Policy, of: Replays, budget: int, late: bool = False) -> Replayed:
    return replay(policy, of.shape, budget, of.choices, tokens=of.choices.tokens, late=late)
