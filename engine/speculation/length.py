"""How long the next drafts are: as long as tokens a second are most, and none where none pays.

    tokens(d)  = sequences + sum over drafted tokens of the probability that all up to them come true
    seconds(d) = what a pass of so many tokens takes, what guessing them takes, and where a recurrent state is put back
                 when a token is refused, what the tokens of the pass that held take once more, beside the next one

The likeliest tokens come first, whichever sequence they are of. Knows probabilities and seconds, no tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..planning.speed import again_s, computed_again

GAIN = 1.03  # least gain in tokens a second that is worth a draft: what is expected is not sure
EVEN = 0.5  # where nothing is known of seconds: how likely a token must be


@dataclass(frozen=True)
class Passes:
    """What passes take. seconds(d): with so many drafted tokens in all; None: not known. put_back: a refused token
    makes those of its pass that held be computed again."""

    seconds: Callable[[int], float | None]
    put_back: bool = False

    def again_s(self, rates: Sequence[float], lengths: Sequence[int]) -> float:
        """What tokens that are computed again are expected to add to the next pass."""
        return again_s(sum(map(computed_again, rates, lengths)), self.seconds) if self.put_back else 0.0


def best_lengths(
    rates: Sequence[float],
    longest: Sequence[int],
    passes: Passes,
    room: int,
    others: int = 0,
    costs: Sequence[float] = (),
) -> list[int]:
    """Of each sequence how many tokens to draft. rates: how likely a token of its guess is right, those before it being
    so; longest: tokens of its guess; room: most of these; others: sequences of the pass without a guess; costs: by
    sequence, seconds that each token of its guess takes."""
    odds = [(rate ** (j + 1), i) for i, rate in enumerate(rates) for j in range(longest[i])]
    odds = sorted(odds, key=lambda one: -one[0])[: max(0, room)]
    plain = passes.seconds(0)
    if plain is None:
        return _counted([i for odd, i in odds if odd >= EVEN], len(rates))
    tokens, guessing, lengths = float(len(rates) + others), 0.0, [0] * len(rates)
    best, found = GAIN * tokens / plain, list(lengths)
    if (tokens + sum(odd for odd, _ in odds)) / plain <= best:
        return lengths  # not even if drafts cost nothing
    for count, (odd, i) in enumerate(odds, 1):
        tokens += odd
        lengths[i] += 1
        guessing += costs[i] if costs else 0.0
        took = passes.seconds(count)
        if took is None:
            continue
        speed = tokens / (took + guessing + passes.again_s(rates, lengths))
        if speed > best:
            best, found = speed, list(lengths)
    return found


def tokens_a_second(
    rates: Sequence[float],
    lengths: Sequence[int],
    passes: Passes,
    others: int = 0,
    costs: Sequence[float] = (),
) -> float | None:
    """What is expected of drafts of these lengths; names as of `best_lengths`. None: their seconds are not known."""
    took = passes.seconds(sum(lengths))
    if took is None:
        return None
    tokens = others + sum(sum(rate**j for j in range(d + 1)) for rate, d in zip(rates, lengths, strict=True))
    guessing = sum(cost * d for cost, d in zip(costs, lengths, strict=bool(costs)))
    return tokens / (took + guessing + passes.again_s(rates, lengths))


def _counted(chosen: list[int], sequences: int) -> list[int]:
    return [chosen.count(i) for i in range(sequences)]
