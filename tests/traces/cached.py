"""What tests of the expert cache share: the demo model beside a GPU that is played, and the replay of what it did."""

from __future__ import annotations

import random
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


class Unsteady:
    """A policy without sense: it brings and evicts by chance, here and ahead, and keeps within its budget."""

    name = "unsteady"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def start(self, shape: Shape, budget: int) -> list[tuple[int, int]]:
        self.random, self.shape = random.Random(self.seed), shape
        return shape.first_of_each(budget // 2)

    def layer(self, asked: Asked) -> Moves:
        flip, size, room = self.random, self.shape.expert_bytes[asked.layer], asked.room
        there = [(n, e) for n, of in enumerate(asked.residents) for e in sorted(of)]
        evict = flip.sample(there, min(len(there), flip.randrange(4)))
        early = [key for key in evict if not (key[0] == asked.layer and key[1] in asked.chosen)]
        missing = flip.sample(asked.missing, len(asked.missing))
        fetch = missing[: min(flip.randrange(4), (room + len(early) * size) // size)]
        left = room + (len(evict) - len(fetch)) * size
        admit = missing[len(fetch) :][: min(flip.randrange(3), max(0, left // size))]
        left -= len(admit) * size
        after = (asked.layer + 1) % len(asked.residents)
        absent = [e for e in range(self.shape.experts[after]) if e not in asked.residents[after]]
        ahead = [] if after == asked.layer else flip.sample(absent, min(flip.randrange(3), left // size, len(absent)))
        return Moves(tuple(fetch), tuple(admit), tuple((after, e) for e in ahead), tuple(evict))


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
