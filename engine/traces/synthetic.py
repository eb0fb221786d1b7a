"""Made-up routing in the shape of a model, for whoever has no trace of it: how much a policy gains if experts were
chosen like this.

    uniform   every expert equally often
    zipf      the r-th favourite of a layer proportionally to r^-SKEW; each layer has favourites of its own
    topics    the same, and the favourites change with the topic: one of TOPICS, which a token leaves with odds 1 / STAY
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .kinds import KINDS

SKEW = 1.0
TOPICS, STAY = 8, 200
AT_ONCE = 1 << 22  # random numbers


def draw(
    kind: str, *, layers: int, experts: int, top_k: int, tokens: int, seed: int = 0
) -> Iterator[NDArray[np.int32]]:
    """Different experts of each token and layer, by falling odds times chance: int32 [some tokens, layers, top_k],
    until there are `tokens`."""
    assert kind in KINDS, kind
    random = np.random.default_rng(seed)
    favour_PLE = _favour(kind, random, layers, experts)
    topic, left = 0, tokens
    while left:
        count = min(left, max(1, AT_ONCE // (layers * experts)))
        topic_T = _topics(random, count, topic, len(favour_PLE))
        topic, left = int(topic_T[-1]), left - count
        # The k largest of log-odds plus Gumbel noise are k drawn one after another without putting back.
        chance = favour_PLE[topic_T] + random.gumbel(size=(count, layers, experts)).astype(np.float32)
        best = np.argpartition(-chance, top_k - 1, axis=-1)[..., :top_k]
        order = np.argsort(-np.take_along_axis(chance, best, -1), axis=-1)
        yield np.take_along_axis(best, order, -1).astype(np.int32)


def _favour(kind: str, random: np.random.Generator, layers: int, experts: int) -> NDArray[np.float32]:
    """Log-odds of each topic, layer and expert: float32 [topics, layers, experts]."""
    if kind == "uniform":
        return np.zeros((1, layers, experts), np.float32)
    by_rank = (-SKEW * np.log(np.arange(1, experts + 1))).astype(np.float32)
    found = np.tile(by_rank, (TOPICS if kind == "topics" else 1, layers, 1))
    return random.permuted(found, axis=-1)


def _topics(random: np.random.Generator, count: int, first: int, most: int) -> NDArray[np.intp]:
    """The topic of each token, the one before having had `first`."""
    if most == 1:
        return np.zeros(count, np.intp)
    turns = random.random(count) < 1.0 / STAY
    wanted = np.where(turns, random.integers(most, size=count), -1)
    at = np.maximum.accumulate(np.where(turns, np.arange(count), -1))
    return np.where(at < 0, first, wanted[at])
