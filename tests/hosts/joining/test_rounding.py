"""Two machines whose kernels have one name and round otherwise: what of it is said, and what is made the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from host_processes import said
from thread_hosts import near_hosts

from headrace import EngineConfig
from headrace.engine.hosts.joining import link_rate, meeting
from headrace.engine.hosts.joining.gathering import Gathering
from headrace.engine.hosts.messages import frames, greeting
from headrace.engine.hosts.messages.frames import Kind
from headrace.engine.hosts.messages.terms import Terms
from headrace.kernels import FORMATS, load
from headrace.kernels.cases.case import RandomSource
from headrace.kernels.context import ATTENTION, NEVER, Context
from headrace.kernels.isa import available_isas

TERMS = Terms.of(EngineConfig(), load("cpu", Context()), 1 << 20, ["q4_0", "bf16"])


@pytest.fixture
def door() -> Iterator[Gathering]:
    terms = replace(TERMS, rounding={"q4_0": "avx512", "bf16": "avx512, tiles of AVX512-BF16 from 4 tokens"})
    found = Gathering(meeting.Meeting("127.0.0.1", 0), b"", terms, "the hash")
    yield found
    found.close()


def comes_in(door: Gathering, rounding: Any) -> None:
    """A host that rounds so."""
    joined = meeting.join("127.0.0.1", door.meeting.port)
    assert joined is not None
    with joined as sock, ThreadPoolExecutor(1) as pool:
        sock.settimeout(10)
        greeting.answer(sock, b"", "h1")
        told = {"fingerprint": "the hash", "free": 10, "rate": 2.0, "experts": {"1": 3.0}, "rounding": rounding}
        frames.send_json(sock, Kind.MODEL, told)
        pool.submit(link_rate.receive, sock, Kind.SHARE)
        (one,) = door.first(1, 10)
        door.give(one, [[]])


def test_what_hosts_compute_with_is_compared(door: Gathering, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "headrace"):
        comes_in(door, {"q4_0": "avx512", "bf16": "avx512"})
    (text,) = [record.getMessage() for record in caplog.records]
    assert text == (
        "h1 rounds otherwise: bf16 by 'avx512', here by 'avx512, tiles of AVX512-BF16 from 4 tokens'; "
        "its rows may differ in bits"
    )


@pytest.mark.parametrize("rounding", [None, [], {}, {"fp8": "avx2"}, {"q4_0": "avx512", "f16": "portable"}])
def test_other_formats_are_not(door: Gathering, rounding: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "headrace"):
        comes_in(door, rounding)
    assert not caplog.records


def test_tiles_that_the_coordinator_lacks_are_not_used() -> None:
    """A coordinator that multiplies without tiles, as AVX-512 without AVX512-BF16 does for bf16: its hosts do so."""
    best = Context()
    plain = replace(best, tiles_from=dict.fromkeys(FORMATS, NEVER))
    terms = Terms.of(EngineConfig(), load("cpu", plain), 1 << 20, FORMATS)
    assert terms.computing["tiles_from"] == dict.fromkeys(FORMATS, NEVER)
    there = Terms.read(terms.as_json()).context(1)
    assert not terms.differing(there.rounding)
    usual = Terms.of(EngineConfig(), load("cpu", best), 1 << 20, FORMATS)
    assert Terms.read(usual.as_json()).context(1).tile_tokens == best.tile_tokens
    assert bool(usual.differing(there.rounding)) == bool(best.tile_tokens)


def test_other_products_of_attention_are_said_of_layers() -> None:
    """Hosts of experts do not attend."""
    context = Context()
    theirs = {ATTENTION: "products of another kind"}
    for split, count in (("layers", 1), ("experts", 0)):
        terms = Terms.of(EngineConfig(hosts=1, split_by=split), load("cpu", context), 1 << 20)
        assert len(terms.differing(theirs)) == count
        assert not terms.differing(context.rounding)


@pytest.mark.parametrize("activations", ["int8", "bf16"])
def test_who_says_the_same_has_the_same_bits(activations: str) -> None:
    """Instruction sets of this CPU, with tiles and without: by format either the words differ, or no bit does."""
    ways = [Context(isa=isa, threads=1, activations=activations) for isa in available_isas()]
    ways += [replace(way, tiles_from=dict.fromkeys(FORMATS, NEVER)) for way in ways]
    draw = torch.Generator().manual_seed(3)
    for name in ("bf16", "q8_0", "fp8"):
        matrix = RandomSource(draw).matrix(FORMATS[name], 48, 512)
        x_TD = torch.randn(40, 512, generator=draw)
        found: dict[str, torch.Tensor] = {}
        for way in ways:
            y_TR = load("cpu", way).linear(x_TD, matrix)
            assert torch.equal(found.setdefault(way.rounding[name], y_TR), y_TR), (name, way)
        assert len(found) >= len({isa.replace("amx", "avx512") for isa in available_isas()})


def test_a_run_says_nothing_of_hosts_like_itself(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "headrace"), near_hosts("demo", 1, no_measure=False) as llm:
        said(llm)
    assert not [record for record in caplog.records if "rounds otherwise" in record.getMessage()]
