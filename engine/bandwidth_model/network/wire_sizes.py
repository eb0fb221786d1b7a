"""Bytes of what goes between a coordinator and a host of experts, for plans, runs and the messages themselves.

A request has the rows of its tokens once; of each choice where its row stands and which expert takes it, and its weight
where that goes along. An answer has a row for each choice (f32), or a sum for each token (bf16, int8). Imports no
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

HEADER, TASK, ANSWER = 16, 16, 8  # of a frame; of a request; of a piece of an answer
PLACE, WEIGHT = 4, 4  # of a choice
GROUP = 32  # numbers of int8 that share a scale
PIECE = 1 << 20  # of an answer, about
WIRES = ("f32", "bf16", "int8")


def groups(numbers: int) -> int:
    """Scales of a row of int8."""
    return -(-numbers // GROUP)


ROW: Mapping[str, Callable[[int], int]] = {
    "f32": lambda numbers: 4 * numbers,
    "bf16": lambda numbers: 2 * numbers,
    "int8": lambda numbers: numbers + 4 * groups(numbers),
}


def is_summed(wire: str) -> bool:
    """Whether a host adds up what its experts give a token: that changes bits, as these formats do anyway."""
    return wire != "f32"


def request(tokens: int, choices: int, hidden: int, wire: str, weighted: bool) -> tuple[int, int]:
    """Bytes of a request: of its rows, and of everything else."""
    return tokens * ROW[wire](hidden), HEADER + TASK + choices * (PLACE + WEIGHT * weighted)


def answer(rows: int, frames: int, hidden: int, wire: str) -> tuple[int, int]:
    """The same of an answer in so many frames."""
    return rows * ROW[wire](hidden), frames * (HEADER + ANSWER)


def expected(tokens: float, choices: float, hidden: int, wire: str) -> tuple[float, float, int]:
    """Of a host that so many tokens (on average) make so many choices of: bytes there, bytes back, and pieces of the
    answer that leave while the next ones are computed."""
    summed, row = is_summed(wire), ROW[wire](hidden)
    rows = tokens if summed else choices
    frames = max(1, round(rows * row / PIECE))
    there = tokens * row + HEADER + TASK + choices * (PLACE + WEIGHT * summed)
    return there, rows * row + frames * (HEADER + ANSWER), 1 if summed else frames
