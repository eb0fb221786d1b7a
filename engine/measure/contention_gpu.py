"""The CPU's experts beside copies to a GPU, and copies both ways at once: with what streaming uses, in the same way.

    arena, pinned    | experts for the kernels   1 GiB | experts that go up | experts that come down |
    GPU                                                | two buffers        | one buffer             |

Experts go up one by one into two buffers in turns, as chosen ones do (`experts/streaming.py`), in a stream of their
own.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import torch

from ... import kernels
from ...kernels import FORMATS, ExpertLayout
from ...kernels.context import Context
from ...kernels.packed import ExpertBank
from ...loaders.memory import GB, free_memory
from ..bandwidth_model.contention import down_name, experts_name, up_name
from ..devices.cuda_driver import Driver
from ..devices.host import cpu_kernels
from ..devices.streams import Stream
from ..experts.streaming import Piece, Run, cut, fill, piece_of
from ..memory.pinned import Arena, Pins
from . import contention
from .contention import Copies, Way
from .kernel_rates import HIDDEN, USUAL, WIDTH, bank_of, experts_reader

KERNELS_BYTES, COPIES_BYTES = 1 << 30, 256 << 20  # of the arena: what kernels read, and what goes each way
COPIED = "q4_0"  # the format of the experts that are copied: bytes are bytes


def measure(
    context: Context, gpu: int, place: torch.device, driver: Driver | None, up: Stream, down: Stream, rounds: int
) -> tuple[dict[str, dict[str, float]], str]:
    """Rates by pair, and why there are none, or "". driver: pins the memory; None: the place is RAM, and nothing is to
    be pinned. up, down: streams of the place."""
    needed = KERNELS_BYTES + 2 * COPIES_BYTES
    if free_memory() < 2 * needed:
        return {}, f"copies beside kernels not measured: less than {2 * needed / GB:.1f} GB of memory is free"
    arena = Arena(needed, cpu_kernels().numa_nodes())
    parts = [arena.take(name, size, 4096) for name, size in _areas().items()]
    pins = Pins(arena, driver, limit=arena.size, device=gpu)
    try:
        for part in parts:
            pins.filled(part.fill_(0x11))  # harmless numbers in every format
        report = pins.finish()
        if driver is not None and report.pinned < report.total:
            return {}, f"copies beside kernels not measured: their memory could not be pinned ({report.reason})"
        pairs = list(_pairs(context, gpu, place, parts, up, down))
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        return contention.measure(context, pairs, rounds), ""
    finally:
        pins.close()


def _areas() -> dict[str, int]:
    return {"kernels": KERNELS_BYTES, "up": COPIES_BYTES, "down": COPIES_BYTES}


def _pairs(
    context: Context, gpu: int, place: torch.device, parts: list[torch.Tensor], up: Stream, down: Stream
) -> Iterator[tuple[Way, Way]]:
    """Experts of the usual formats beside copies up; copies up beside copies down."""
    arena, goes_up, comes_down = parts
    layout = ExpertLayout(format=FORMATS[COPIED], hidden=HIDDEN, width=WIDTH)
    banks = [bank_of(part, layout.format) for part in (goes_up, comes_down)]
    count = piece_of(banks[0].experts, layout.bytes)
    buffers = [ExpertBank.empty(layout, count, str(place)) for _ in range(3)]
    upward, downward = _upward(banks[0], buffers[:2], up), _downward(buffers[2], banks[1], down)
    ways = [
        Way(name=name, step=copies.step, end=copies.end)
        for name, copies in ((up_name(gpu), upward), (down_name(gpu), downward))
    ]
    for name in USUAL:
        yield _kernel(context, name, arena), ways[0]
    yield ways[0], ways[1]


def _kernel(context: Context, format: str, arena: torch.Tensor) -> Way:
    """The expert kernel, one token an expert, walking through its memory."""
    read = experts_reader(kernels.load("cpu", context), bank_of(arena, FORMATS[format]), 1)
    at = 0

    def step() -> int:
        nonlocal at
        size = read(at)
        at = (at + size) % arena.nbytes
        return size

    return Way(name=experts_name(format), step=step)


def _upward(bank: ExpertBank, buffers: list[ExpertBank], stream: Stream) -> Copies:
    """Every other expert, so that each is a copy of its own, as those of a router are."""
    count = buffers[0].experts
    pieces = cycle([_every_other(first, count) for first in range(0, bank.experts - 2 * count + 1, 2 * count)])
    targets = cycle(buffers)

    def give() -> None:
        fill(next(targets).data, bank, next(pieces))

    return Copies(stream, give, buffers[0].nbytes)


def _every_other(first: int, count: int) -> Piece:
    """A full buffer of experts from `first` on, no two of which are neighbours."""
    return Piece(0, count, tuple(Run(at, first + 2 * at, 1) for at in range(count)))


def _downward(buffer: ExpertBank, bank: ExpertBank, stream: Stream) -> Copies:
    """A buffer into one place after another."""
    count = buffer.experts
    places, whole = cycle(range(0, bank.experts - count + 1, count)), cut(count, count)[0]

    def give() -> None:
        first = next(places)
        fill(bank.data[first : first + count], buffer, whole)

    return Copies(stream, give, buffer.nbytes)
