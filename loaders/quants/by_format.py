"""Bytes by the format that they are in: what a kernel reads at a rate of its own. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ByFormat:
    """Bytes by name of a format, none of them 0, in the order in which they came; a value, that may be a key."""

    parts: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, float]] | Mapping[str, float]) -> ByFormat:
        """The sums of (format, bytes)."""
        sums: dict[str, float] = {}
        for name, size in pairs.items() if isinstance(pairs, Mapping) else pairs:
            sums[name] = sums.get(name, 0) + size
        return cls(tuple((name, size) for name, size in sums.items() if size))

    @classmethod
    def sum(cls, many: Iterable[ByFormat]) -> ByFormat:
        return cls.of(pair for one in many for pair in one.parts)

    @property
    def total(self) -> float:
        return sum(size for _, size in self.parts)

    @property
    def names(self) -> tuple[str, ...]:
        """The formats, the one with most bytes first."""
        return tuple(name for name, _ in sorted(self.parts, key=lambda part: -part[1]))

    @property
    def label(self) -> str:
        """The formats in one word: q4_k, or q4_k/q6_k."""
        return "/".join(self.names)

    def times(self, factor: float) -> ByFormat:
        """As many times as much of each."""
        return ByFormat.of((name, size * factor) for name, size in self.parts)

    def spread(self, size: float) -> ByFormat:
        """So many bytes in the same shares."""
        return self if size == self.total else self.times(size / self.total) if self.total else NOTHING


NOTHING = ByFormat()
