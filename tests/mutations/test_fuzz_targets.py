"""What `tools/fuzz.py` gives to headrace: every target takes its seeds, and what was found once stays mended."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from fuzz_targets import REFUSED, TARGETS

FOUND = sorted((Path(__file__).parent / "found").rglob("*.bin"))


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_its_seeds(name: str) -> None:
    """At least one of them is read to its end: a target that refuses all tests nothing."""
    seeds = TARGETS[name].seeds()
    assert seeds
    taken = 0
    for seed in seeds:
        with contextlib.suppress(*REFUSED):
            TARGETS[name].run(seed)
            taken += 1
    assert taken >= len(seeds) // 2 + 1


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_was_found_is_read_or_refused(path: Path) -> None:
    """found/TARGET/WHAT.bin"""
    with contextlib.suppress(*REFUSED):
        TARGETS[path.parent.name].run(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_and_noise_are_refused(name: str) -> None:
    for data in (b"", b"\0" * 64, b"\xff" * 64, b"[]", b"{}", b"null", b'{"a":' * 3000, b"\0" + b"[" * 3000):
        with contextlib.suppress(*REFUSED):
            TARGETS[name].run(data)
