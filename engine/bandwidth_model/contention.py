"""What a profile calls the rates of two ways into memory measured beside each other, and what of a rate is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..units import GB

AND, ALONE = " + ", " alone"  # in names of a profile's rates


def experts_name(format: str) -> str:
    return f"experts {format}"


def up_name(gpu: int) -> str:
    return f"gpu{gpu} h2d pinned"


def down_name(gpu: int) -> str:
    return f"gpu{gpu} d2h pinned"


def kept(together: Mapping[str, Mapping[str, float]], one: str, other: str) -> tuple[float, float] | None:
    """The shares of their rates alone that two ways keep while both are used, at most 1; None: not measured."""
    found = together.get(one + AND + other)
    if found is None:
        return None
    first, second = (min(1.0, found[name] / found[name + ALONE]) for name in (one, other))
    return first, second


def lines(together: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """For people: a line a pair."""
    for pair, found in together.items():
        each = (f"{name} {found[name] / GB:.1f} of {found[name + ALONE] / GB:.1f} alone" for name in pair.split(AND))
        yield f"together, GB/s: {', '.join(each)}"
