"""No copy of experts to the GPU reads from two registrations of the driver, which may be refused."""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import stand_in_gpu

from headrace import LLM, SamplingParams
from headrace.engine.devices.cuda_driver import Driver
from headrace.engine.experts import streaming
from headrace.engine.experts.streaming import Run
from headrace.engine.memory import expert_arena
from headrace.engine.memory.pinned import PIECE, Arena, Pins
from headrace.kernels import FORMATS, ExpertLayout

LAYERS = 12
SHAPES = {  # experts, hidden, width
    "Qwen3-30B": (128, 2048, 768),
    "Qwen3-235B": (128, 4096, 1536),
    "DeepSeek-V3": (256, 7168, 2048),
}


@pytest.fixture
def driver(library: str, log: Path) -> Driver:
    return Driver(library)


def placed(runs: Iterable[Run]) -> list[tuple[int, int]]:
    """Of each expert its place in the buffer, and its number."""
    return [(run.at + i, run.number + i) for run in runs for i in range(run.experts)]


def ways(experts: int, size: int) -> Iterator[streaming.Piece]:
    """What the ring copies of a layer: all its experts, and those that were chosen."""
    piece, chosen = (
        streaming.piece_of(experts, size),
        sorted(random.Random(1).sample(range(experts), experts * 9 // 10)),
    )
    yield from streaming.cut(piece, experts)
    yield from streaming.by_number(chosen, piece, experts)


@pytest.mark.parametrize("format", ["q4_0", "q8_0", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_copy_of_the_ring_crosses_two_registrations(shape: str, format: str, driver: Driver) -> None:
    """In layers that fit a registration, and in larger ones. No page of the arena is touched."""
    experts, hidden, width = SHAPES[shape]
    layout = ExpertLayout(format=FORMATS[format], hidden=hidden, width=width)
    size, fits = experts * layout.bytes, experts * layout.bytes <= 2 * PIECE
    arena = Arena(Arena.room([size] * LAYERS))
    layers = [arena.take(f"layer {n}", size, layout.bytes).view(experts, layout.bytes) for n in range(LAYERS)]
    pins = Pins(arena, driver, limit=arena.size)
    borders = [begin for begin, _ in pins.pieces]
    for data in layers:
        cuts, start = pins.cuts(data, layout.bytes), arena.place(data)
        assert start is not None
        assert fits == (not cuts)
        for piece in ways(experts, layout.bytes):
            copies = list(streaming.within(piece.runs, cuts))
            assert placed(copies) == placed(piece.runs)
            for run in copies:
                first = start + run.number * layout.bytes
                last = first + run.experts * layout.bytes - 1
                assert bisect.bisect_right(borders, first) == bisect.bisect_right(borders, last), run
    assert all(end - begin <= 2 * PIECE for begin, end in pins.pieces)
    pins.close()


def test_runs_end_where_another_registration_begins() -> None:
    runs = [Run(0, 4, 3), Run(3, 9, 1), Run(4, 12, 5)]
    assert list(streaming.within(runs, ())) == runs
    assert list(streaming.within(runs, [4, 5, 9, 10, 13, 16])) == [
        Run(0, 4, 1), Run(1, 5, 2), Run(3, 9, 1), Run(4, 12, 1), Run(5, 13, 3), Run(8, 16, 1)
    ]  # fmt: skip


def test_a_model_s_copies_are_cut(library: str, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations of a page each: every copy of the demo model lies in one of them, and it says the same."""
    stand_in_gpu.install(monkeypatch, library)
    monkeypatch.setattr(expert_arena, "Pins", partial(Pins, piece=4096))
    seen: list[int] = []
    within = streaming.within

    def noted(runs: Sequence[Run], cuts: Sequence[int]) -> Iterator[Run]:
        found = list(within(runs, cuts))
        seen.append(len(found) - len(runs))
        return iter(found)

    monkeypatch.setattr(streaming, "within", noted)
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    said: list[Any] = []
    for options in ({"device": "cpu"}, {"device": "simulated", "cpu_moe": True, "stream_from": 2, "handoff": "eager"}):
        with LLM("demo", max_context=64, **options) as llm:
            said.append(llm.generate("In the beginning", params)[0].token_ids)
    assert said[0] == said[1]
    assert sum(seen) > 0
