"""What `headrace bench` runs: every combination of the lists that a user gives."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import OptionError
from ..option import COMMON, option
from ..placement.placement import PLACES, parse


def numbers(name: str, text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas; raises OptionError for anything else."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise OptionError(f"{name} is {text!r}: give whole numbers separated by commas, as in 1,4,16") from None


def policies(_: str, text: str) -> tuple[str, ...]:
    """Names of placements separated by commas; `Grid` checks them."""
    return tuple(word.strip() for word in text.split(","))


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Prompts of `prompt` tokens, and for each batch and depth `new` tokens a sequence; 0 leaves out."""

    prompt: tuple[int, ...] = option((512,), COMMON, "N,...", "prompt lengths; 0: none", short="-p", read=numbers)
    new: tuple[int, ...] = option((128,), COMMON, "N,...", "tokens to decode; 0: none", short="-n", read=numbers)
    batch: tuple[int, ...] = option((1,), COMMON, "N,...", "sequences that decode together", short="-b", read=numbers)
    depth: tuple[int, ...] = option((0,), COMMON, "N,...", "tokens cached before decoding", short="-d", read=numbers)
    rounds: int = option(5, COMMON, "N", "how often each test is timed; the median counts", short="-r")
    placements: tuple[str, ...] = option(
        ("cpu",), COMMON, "WHERE,...", f"where the experts lie: {PLACES}, NAME.json", name="--placement", read=policies
    )

    def __post_init__(self) -> None:
        for name, least in (("prompt", 0), ("new", 0), ("batch", 1), ("depth", 0)):
            for value in getattr(self, name):
                if value < least:
                    raise OptionError(f"--{name} is {value}: give whole numbers of at least {least}")
        if self.rounds < 1:
            raise OptionError(f"--rounds is {self.rounds}: give at least 1")
        for name in self.placements:
            parse(name)
        if not any(self.prompt) and not any(self.new):
            raise OptionError("nothing to run: give --prompt or --new above 0")

    @property
    def context(self) -> int:
        """Tokens that the longest sequence comes to."""
        return max(*self.prompt, self.longest)

    @property
    def longest(self) -> int:
        """Tokens that the longest sequence that decodes comes to."""
        return max(max(d, 1) + n for d in self.depth for n in self.new)

    @property
    def sequences(self) -> int:
        return max(self.batch)
