"""A table with rows for every short run of tokens: which rows a token reads. A part of a `ModelSpec` (`spec.py`).

The runs of 2, 3 ... `size` tokens that end with a token each have some heads; a head's row is a hash of the run's
tokens, within as many rows as a prime of its own says. Hashes and primes follow from a few numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

MASK = (1 << 64) - 1
STEP, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of splitmix64
OF_A_LAYER = 10007  # how far the seeds of two tables lie apart


@dataclass(frozen=True, kw_only=True)
class StoredHashes:
    """Multipliers of a run's tokens, the newest first, rows of each head, and those of the whole table."""

    multipliers: tuple[int, ...]
    primes: tuple[int, ...]
    rows: int


@dataclass(frozen=True, kw_only=True)
class GramsSpec:
    """heads: of each length of runs; base: no head has fewer rows; width: of all heads' rows together; taps: of the
    convolution behind, of every `size`-th token; multiple: rows of the table; number: of the table among the model's;
    end: the token behind which a run begins anew."""

    size: int
    heads: int
    base: int
    width: int
    taps: int
    multiple: int
    seed: int
    number: int
    vocab: int
    end: int
    stored: StoredHashes | None = None  # what a checkpoint says of hashes, instead of what base and seed give

    @property
    def all_heads(self) -> int:
        return (self.size - 1) * self.heads

    @property
    def row(self) -> int:
        """Numbers of a row."""
        return self.width // self.all_heads

    @property
    def primes(self) -> tuple[int, ...]:
        """Rows of each head, those of shorter runs first."""
        if self.stored is not None:
            return self.stored.primes
        return primes(self.base, self.number * self.all_heads, self.all_heads)

    @property
    def rows(self) -> int:
        """Of the whole table."""
        if self.stored is not None:
            return self.stored.rows
        return -(-sum(self.primes) // self.multiple) * self.multiple

    @property
    def past(self) -> int:
        """Tokens that the convolution looks back."""
        return (self.taps - 1) * self.size

    @property
    def multipliers(self) -> tuple[int, ...]:
        """What tokens are multiplied by, the newest first: odd numbers, with which no product leaves 63 bits."""
        if self.stored is not None:
            return self.stored.multipliers
        half = max(1, ((1 << 63) - 1) // max(self.vocab, 1) // 2)
        start = self.seed + OF_A_LAYER * self.number
        return tuple(2 * (_mixed(start + STEP * (i + 1)) % half) + 1 for i in range(self.size))


def _mixed(value: int) -> int:
    """The next number of splitmix64. Source: Steele, Lea and Flood (OOPSLA 2014)."""
    value = (value + STEP) & MASK
    value = (value ^ value >> 30) * FIRST & MASK
    value = (value ^ value >> 27) * SECOND & MASK
    return value ^ value >> 31


@cache
def primes(base: int, skip: int, count: int) -> tuple[int, ...]:
    """So many primes from `base` on, behind the first `skip`."""
    found: list[int] = []
    number = max(base, 2)
    while len(found) < skip + count:
        if all(number % divisor for divisor in range(2, math.isqrt(number) + 1)):
            found.append(number)
        number += 1
    return tuple(found[skip:])
