"""Places for experts of several sizes in memory with pages: whatever fits into the bytes finds a place, and nobody is
written over while others move."""

from __future__ import annotations

import random

import pytest
import torch

from headrace.engine.experts.cache.shared_memory import SharedMemory, SharedRoom
from headrace.engine.experts.cache.zones import Room, Zones, dealt, guaranteed


class Marked:
    """Memory whose every unit of 64 bytes says who lies there, which moves as zones say."""

    def __init__(self, most: dict[int, int], nbytes: int) -> None:
        self.zones, self.units = Zones(most), [0] * (nbytes // 64)
        self.places: dict[tuple[int, int], int] = {}
        self.moved = 0

    def units_of(self, size: int, number: int) -> slice:
        return slice(number * size // 64, (number + 1) * size // 64)

    def do(self, moves: list) -> None:  # type: ignore[type-arg]
        for size, key, old, new in moves:
            assert self.places[key] == old
            self.units[self.units_of(size, new)] = self.units[self.units_of(size, old)]
            self.places[key] = new
            self.moved += 1

    def take(self, size: int, key: tuple[int, int]) -> None:
        number, moves = self.zones.take(size, key)
        self.do(moves)
        self.places[key] = number
        self.units[self.units_of(size, number)] = [key[1]] * (size // 64)

    def give_back(self, size: int, key: tuple[int, int]) -> None:
        self.zones.give_back(size, self.places.pop(key))

    def check(self, rooms: list[Room]) -> None:
        for (size, mark), number in self.places.items():
            assert self.units[self.units_of(size, number)] == [mark] * (size // 64), "written over"
            first, last = number * size, (number + 1) * size
            assert any(begin <= first and last <= end for begin, end in rooms), "where a page is"


@pytest.mark.parametrize("seed", range(40))
def test_whatever_fits_finds_a_place(seed: int) -> None:
    """Experts of one to four sizes come and go by chance, rooms grow and shrink, to the last byte that is promised."""
    flip = random.Random(seed)
    sizes = sorted(flip.sample(range(64, 64 * 40, 64), flip.randrange(1, 5)))
    most = {size: flip.randrange(1, 40) for size in sizes}
    parts = [flip.randrange(40, 400) * 64 for _ in range(flip.randrange(1, 4))]
    begins = [sum(parts[:n]) for n in range(len(parts))]
    memory = Marked(most, sum(parts))

    def rooms() -> list[Room]:
        share = flip.random() * flip.random()
        found = [(at + int(share * part) // 64 * 64, at + part) for at, part in zip(begins, parts, strict=True)]
        return [(first, last) for first, last in found if first < last]

    now, mark = rooms(), 0
    memory.do(memory.zones.keep(now))
    for _ in range(160):
        room = guaranteed(now, sizes)
        used = sum(size for size, _ in memory.places)
        if flip.random() < 0.08:
            after = rooms()
            while sum(size for size, _ in memory.places) > guaranteed(after, sizes):
                key = flip.choice(sorted(memory.places))
                memory.give_back(key[0], key)
            now = after
            memory.do(memory.zones.keep(now))
        elif memory.places and flip.random() < 0.45:
            key = flip.choice(sorted(memory.places))
            memory.give_back(key[0], key)
        else:
            held = [size for size, _ in memory.places]
            fitting = [s for s in sizes if used + s <= room and held.count(s) < most[s]]
            if fitting:
                mark += 1
                size = flip.choice(fitting)
                memory.take(size, (size, mark))
        memory.check(now)
    assert memory.zones.nbytes <= sum(parts)


def test_moves_by_hand() -> None:
    """Two large experts are at the end, two small ones before them; these go on to the beginning for a third large
    one."""
    memory = Marked({64: 6, 192: 3}, 832)
    memory.do(memory.zones.keep([(0, 832)]))
    assert guaranteed([(0, 832)], [64, 192]) == 832 - 2 * 128
    for mark in (1, 2):
        memory.take(192, (192, mark))
    for mark in (3, 4):
        memory.take(64, (64, mark))
    assert memory.places == {(192, 1): 3, (192, 2): 2, (64, 3): 5, (64, 4): 4}
    memory.take(192, (192, 5))
    assert memory.moved == 2, "both small ones lay where the third large one has to be"
    assert memory.places == {(192, 1): 3, (192, 2): 2, (192, 5): 1, (64, 3): 1, (64, 4): 2}
    memory.check([(0, 832)])


def test_experts_of_one_size_lose_nothing() -> None:
    assert guaranteed([(100, 1000), (1000, 2000)], [300]) == 900 - 200 - 100 + 600
    assert guaranteed([(0, 1000)], [300]) == 900
    assert SharedRoom.of_experts(1000, [300, 300]).nbytes == 1000
    assert SharedRoom.of_experts(0, [64, 192]).nbytes == 0


@pytest.mark.parametrize("seed", range(20))
def test_so_many_bytes_hold_any_experts(seed: int) -> None:
    """Memory that is made for experts alone, filled to the last byte by chance."""
    flip = random.Random(seed)
    sizes = sorted(flip.sample(range(64, 64 * 40, 64), flip.randrange(2, 5)))
    room = SharedRoom.of_experts(flip.randrange(20, 200) * 64, sizes)
    memory, left, mark = Marked(dict.fromkeys(sizes, 99), room.nbytes), room.budget(0), 0
    memory.do(memory.zones.keep(room.rooms(0)))
    while fitting := [size for size in sizes if size <= left]:
        size = flip.choice(fitting)
        mark, left = mark + 1, left - size
        memory.take(size, (size, mark))
    memory.check(room.rooms(0))
    assert left < sizes[0]


def test_what_is_left_goes_to_all_in_turn() -> None:
    assert dealt({64: 1, 192: 0}, {64: 4, 192: 9}, 64 + 2 * 256 + 64) == {64: 4, 192: 2}
    assert dealt({64: 2, 192: 2}, {64: 4, 192: 9}, 0) == {64: 2, 192: 2}


# ---- pages of several sizes


def test_tensors_of_several_units_have_the_same_numbers() -> None:
    """Three tensors of 128 bytes a page and six of 64: parts of three tensors, each with its own boundary."""
    units = (128, 64, 64) * 3
    room = SharedRoom(units=units, pages=5, spare=1, experts=1000, sizes=(100,))
    assert (room.stride, room.parts, room.page) == (3, (128, 64, 64), 768)
    assert room.nbytes == 6 * 768 + 1000
    memory = SharedMemory(room, torch.device("cpu"))
    assert not memory.data[:384].any(), "the spare page of the first part"
    memory.data.fill_(255)
    for tensor in range(9):
        rows = memory.rows(tensor)
        for place, page in enumerate(room.numbers):
            rows[page] = 10 * place + tensor
    for tensor in range(9):
        found = memory.rows(tensor)[room.numbers.start :: room.stride]
        assert found.shape == (5, units[tensor])
        assert torch.equal(found[:, 7], 10 * torch.arange(5, dtype=torch.uint8) + tensor), "written over"
    assert (memory.data == 255).sum() == 1000 + 768, "experts, and the spare page"
    first = memory.data.clone()
    memory.clear(1, 3)
    assert int((first != memory.data).sum()) == 2 * 768
    for tensor in range(9):
        rows = memory.rows(tensor)[room.numbers.start :: room.stride]
        assert [bool(row.any()) for row in rows] == [tensor > 0, False, False, True, True]


def test_rooms_behind_the_pages_of_each_part() -> None:
    room = SharedRoom(units=(128, 64, 128, 64), pages=4, spare=1, experts=500, sizes=(100,))
    assert room.opened(-1, 2) == [(0, 3 * 256), (1280, 1280 + 3 * 128)]
    assert room.rooms(2) == [(768, 1280), (1664, 1920 + 500)]
    assert room.rooms(4) == [(1920, 2420)], "all pages are open"
    assert room.budget(4) == 400, "from 2000 on"
    assert room.budget(2) == 400 + 700, "800 to 1200, and 1700 to 2400"


def test_nobody_moves_for_those_that_come_first() -> None:
    memory = Marked({64: 9, 192: 9}, 64 * 40)
    memory.do(memory.zones.keep([(0, 64 * 40)], {64: 9, 192: 6}))
    for mark in range(15):
        size = 192 if mark < 6 else 64
        memory.take(size, (size, mark))
    assert memory.moved == 0
    memory.check([(0, 64 * 40)])
