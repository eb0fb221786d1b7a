"""How long the next drafts are: as long as tokens a second are most, and none where none pays.

    tokens(d)  = sequences + sum over drafted tokens of the probability that all up to them come true
    seconds(d) = what a pass of so many tokens takes, and what guessing them takes

The likeliest tokens come first, whichever sequence they are of. Knows probabilities and seconds, no tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

GAIN = 1.03  # least gain in tokens a second that is worth a draft: what is expected is not sure
EVEN = 0.5  # where nothing is known of seconds: how likely a token must be


def best_lengths(
    rates: Sequence[float],
    longest: Sequence[int],
    seconds: Callable[[int], float | None],
    room: int,
    others: int = 0,
    costs: Sequence[float] = (),
) -> list[int]:
    """Of each sequence how many tokens to draft. rates: how likely a token of its guess is right, those before it being
    so; longest: tokens of its guess; seconds(d): of a pass with so many drafted tokens in all; room: most of these;
    others: sequences of the pass without a guess; costs: by sequence, seconds that each token of its guess takes."""
    odds = [(rate ** (j + 1), i) for i, rate in enumerate(rates) for j in range(longest[i])]
    odds = sorted(odds, key=lambda one: -one[0])[: max(0, room)]
    plain = seconds(0)
    if plain is None:
        return _counted([i for odd, i in odds if odd >= EVEN], len(rates))
    tokens, taken, guessing = float(len(rates) + others), 0, 0.0
    best = GAIN * tokens / plain
    if (tokens + sum(odd for odd, _ in odds)) / plain <= best:
        return [0] * len(rates)  # not even if drafts cost nothing
    for count, (odd, i) in enumerate(odds, 1):
        tokens += odd
        guessing += costs[i] if costs else 0.0
        took = seconds(count)
        if took is not None and tokens / (took + guessing) > best:
            best, taken = tokens / (took + guessing), count
    return _counted([i for _, i in odds[:taken]], len(rates))


def tokens_a_second(
    rates: Sequence[float],
    lengths: Sequence[int],
    seconds: Callable[[int], float | None],
    others: int = 0,
    costs: Sequence[float] = (),
) -> float | None:
    """What is expected of drafts of these lengths; names as of `best_lengths`. None: their seconds are not known."""
    took = seconds(sum(lengths))
    if took is None:
        return None
    tokens = others + sum(sum(rate**j for j in range(d + 1)) for rate, d in zip(rates, lengths, strict=True))
    return tokens / (took + sum(cost * d for cost, d in zip(costs, lengths, strict=bool(costs))))


def _counted(chosen: list[int], sequences: int) -> list[int]:
    return [chosen.count(i) for i in range(sequences)]
