"""Pinned arenas: where pieces are cut, what is pinned under which limit, and what is said of the rest."""

from __future__ import annotations

import gc
import logging
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from headrace.engine.devices.cuda_driver import Driver
from headrace.engine.memory.pinned import HUGE_PAGE, PAGE, Area, Arena, PinReport, Pins, pieces, resolve_limit
from headrace.engine.sizes import PINNED_SHARE
from headrace.errors import OptionError

BLOCK = 10 * 64  # no whole pages: an area can be cut at every 32nd block
SIZE = 64 * BLOCK


@pytest.fixture
def driver(library: str, log: Path) -> Driver:
    return Driver(library)


def arena_of(count: int) -> tuple[Arena, list[torch.Tensor]]:
    arena = Arena(Arena.room([SIZE] * count))
    return arena, [arena.take(f"layer {n}", SIZE, BLOCK) for n in range(count)]


def test_an_arena_lies_on_huge_pages_and_its_areas_on_pages() -> None:
    arena, areas = arena_of(3)
    assert arena.data.data_ptr() % HUGE_PAGE == 0
    assert arena.data.untyped_storage().data_ptr() == arena.data.data_ptr(), "what torch asks the driver about"
    assert all(area.data_ptr() % PAGE == 0 for area in areas)
    for number, area in enumerate(areas):
        area.fill_(number)
    assert [area.unique().tolist() for area in areas] == [[0], [1], [2]]
    assert not arena.interleaved
    with pytest.raises(AssertionError, match="layer 3"):
        arena.take("layer 3", SIZE, BLOCK)


def test_memory_is_taken_as_it_is_written_and_outlives_the_arena() -> None:
    arena = Arena(1 << 40)  # more than any machine that runs this has
    data = arena.take("all", 1 << 39, 64)[: 1 << 20].fill_(7)
    del arena
    gc.collect()
    assert data.unique().tolist() == [7]


def test_pieces_end_at_pages_and_between_blocks() -> None:
    """Random areas: pieces cover them without gaps, are no larger than asked wherever a cut was possible."""
    rng = random.Random(3)
    for _ in range(200):
        areas, start = [], 0
        for n in range(rng.randint(1, 6)):
            block = 64 * rng.choice([1, 3, 10, 64, 100, 640])
            areas.append(Area(name=str(n), start=start, size=block * rng.randint(1, 300), block=block))
            start = areas[-1].end
        most = rng.choice([1, 20, 100, 1000]) * PAGE
        found = pieces(areas, most)
        assert found[0][0] == 0
        assert found[-1][1] == start
        assert all(a[1] == b[0] for a, b in pairwise(found))
        for begin, end in found:
            area = next(a for a in areas if a.start < end <= a.end)
            assert end % PAGE == 0
            is_whole = area.end - area.start <= 2 * most
            assert end == area.end or (not is_whole and (end - area.start) % area.block == 0)
            step = area.end - area.start if is_whole else max(area.block * PAGE // 64, PAGE)
            assert end - begin <= max(most, step)


def test_no_areas_no_pieces() -> None:
    assert pieces([]) == []


def test_all_is_pinned_in_pieces_as_it_is_filled(driver: Driver, log: Path) -> None:
    arena, areas = arena_of(4)
    pins = Pins(arena, driver, limit=1 << 30, piece=2 * SIZE + 32 * BLOCK)
    for area in reversed(areas):
        for part in area.split(SIZE // 8):
            pins.filled(part)
    pins.filled(torch.zeros(100, dtype=torch.uint8))  # lies elsewhere
    report = pins.finish()
    assert report == PinReport(total=4 * SIZE, pinned=4 * SIZE, seconds=report.seconds)
    assert str(report) == "yes"
    assert report.warning is None
    assert all(map(pins.is_pinned, areas))
    assert not pins.is_pinned(torch.zeros(8, dtype=torch.uint8))
    for expert in areas[1].split(BLOCK):
        assert driver.device_pointer(expert.data_ptr()) - expert.data_ptr() == 1 << 44
    sizes = [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("register")]
    assert sum(sizes) == 4 * SIZE
    assert max(sizes) == 2 * SIZE
    pins.close()
    assert log.read_text().count("unregister") == len(sizes) == 2
    assert not pins.is_pinned(areas[0])


def test_pinning_goes_on_beside_the_filling(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA_PIN_MS", "50")
    arena, areas = arena_of(3)
    pins = Pins(arena, driver, limit=1 << 30, piece=SIZE)
    for area in areas:
        pins.filled(area)
    assert not pins.is_pinned(areas[-1]), "the caller waited for the driver"
    report = pins.finish()
    assert report.pinned == 3 * SIZE
    assert report.seconds >= 0.15
    pins.close()


def test_the_limit_is_kept_in_whole_layers(driver: Driver, log: Path, caplog: pytest.LogCaptureFixture) -> None:
    arena, areas = arena_of(3)
    pins = Pins(arena, driver, limit=2 * SIZE + SIZE // 2)
    with caplog.at_level(logging.WARNING):
        for area in areas:
            pins.filled(area)
        report = pins.finish()
    assert [pins.is_pinned(area) for area in areas] == [True, True, False]
    assert report.pinned == 2 * SIZE
    assert "are not pinned (the limit is 0.0 GB): copies of them to the GPU go through" in caplog.text
    pins.close()


def test_what_the_driver_refuses_stays_pageable(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It fails in the middle of the third layer: two are pinned, the run goes on, and the reason is told once."""
    monkeypatch.setenv("FAKE_CUDA_PIN_LIMIT", str(2 * SIZE + 40 * BLOCK))
    arena, areas = arena_of(4)
    pins = Pins(arena, driver, limit=1 << 30, piece=24 * BLOCK)
    for area in areas:
        pins.filled(area)
    report = pins.finish()
    assert [pins.is_pinned(area) for area in areas] == [True, True, False, False]
    assert report.reason == "cuMemHostRegister_v2: CUDA_ERROR_OUT_OF_MEMORY (said the fake driver)"
    assert report.reason in (report.warning or "")
    assert caplog.text.count("not pinned") == 1
    pins.close()


def test_without_a_driver_nothing_is_pinned_and_nothing_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    arena, areas = arena_of(2)
    pins = Pins(arena, None, limit=1 << 30)
    pins.filled(areas[0])
    report = pins.finish()
    assert report.pinned == 0
    assert str(report) == "no"
    assert "no driver of a GPU" in (report.warning or "")
    assert not caplog.text
    pins.close()


def test_registrations_do_not_outlive_their_owner(driver: Driver, log: Path) -> None:
    arena, areas = arena_of(1)
    pins = Pins(arena, driver, limit=1 << 30)
    pins.filled(areas[0])
    pins.finish()
    del pins
    gc.collect()
    assert log.read_text().count("unregister") == 1


def test_a_byte_is_filled_once_and_all_are(driver: Driver) -> None:
    arena, areas = arena_of(1)
    pins = Pins(arena, driver, limit=1 << 30)
    pins.filled(areas[0][:128])
    with pytest.raises(AssertionError, match="never filled"):
        pins.finish()
    pins = Pins(arena, driver, limit=1 << 30)
    pins.filled(areas[0])
    with pytest.raises(AssertionError, match="twice"):
        pins.filled(areas[0][:1])
    pins.close()


def test_the_limit_as_asked_or_a_share() -> None:
    assert resolve_limit(None, 1000) == int(1000 * PINNED_SHARE)
    assert resolve_limit(0, 1000) == 0
    assert resolve_limit(1.5, 10**10) == resolve_limit("1.5", 10**10) == resolve_limit("15%", 10**10) == 1_500_000_000
    with pytest.raises(OptionError, match=r"must be between 0 and the 10\.0 GB"):
        resolve_limit(11.0, 10**10)
    for bad in (-1.0, float("nan"), "101%", "much", True):
        with pytest.raises(OptionError, match=r"pinned_limit is .*give GB from 0 on, as 8 or 512MB, or a share"):
            resolve_limit(bad, 10**10)
