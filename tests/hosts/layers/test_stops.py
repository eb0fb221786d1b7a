"""What a pass through whole layers on several machines should take: by hand, and as the start measures it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from host_processes import GREEDY, said
from thread_hosts import ThreadHosts, layered, layers_of

from headrace import LLM
from headrace.engine.bandwidth_model.hardware import Device, exactly
from headrace.engine.bandwidth_model.network.hops import Costs, Hop
from headrace.engine.bandwidth_model.network.stops import Route, Stop, Work
from headrace.engine.bandwidth_model.network.wire_sizes import HEADER
from headrace.engine.hosts.layers import how_many

Checkpoints = Callable[[str], Path]


def hop(rate: float, round_trip: float) -> Hop:
    device = Device(name="h", kind="cpu", memory=None, nominal=1e9, bandwidth=exactly(1e9), by_format={}, source="test")
    return Hop(name="h", device=device, rate=exactly(rate), round_trip=exactly(round_trip))


def costs(fixed: float, each: float) -> Costs:
    return Costs(tuple((float(tokens), exactly(fixed + each * tokens)) for tokens in (1, 100)))


def stop(fixed: float, each: float, link: Hop | None) -> Stop:
    return Stop(hop=link, decode=costs(fixed, each), prompt=costs(fixed, 2 * each), context_s=1e-6)


def test_by_hand() -> None:
    """The coordinator 1 ms, two hosts 2 ms and 3 ms, a millisecond of round trip each and rows of 1000 bytes at 1 MB/s:
    a part more costs what takes longest, which may be the coordinator's link with the rows for both."""
    link = hop(1e6, 1e-3)
    route = Route(stops=(stop(1e-3, 0, None), stop(2e-3, 0, link), stop(3e-3, 0, link)), row=1000)
    wire = (1000 + HEADER) / 1e6
    one = Work(tokens=1, is_prompt=False, context=100)
    assert route.seconds(one) == pytest.approx(6e-3 + 3 * 100e-6 + 2e-3 + 4 * wire)
    assert route.own_s(one) == pytest.approx(1e-3 + 100e-6)
    four = Work(tokens=4, is_prompt=False, context=0)
    whole, halves = (4000 + HEADER) / 1e6, (2000 + HEADER) / 1e6
    assert route.seconds(four, 1) == pytest.approx(8e-3 + 4 * whole)
    assert route.seconds(four, 2) == pytest.approx(8e-3 + 4 * halves + 2 * halves)
    fast = hop(1e7, 1e-3)
    faster = Route(stops=(stop(1e-3, 0, None), stop(2e-3, 0, fast), stop(3e-3, 0, fast)), row=1000)
    assert faster.seconds(four, 2) == pytest.approx(8e-3 + 4 * halves / 10 + 3e-3)
    assert route.own_s(four, 2) == pytest.approx(2e-3)
    assert route.stops[1].times(0.5).work_s(four) == pytest.approx(1e-3)


def test_how_many_parts() -> None:
    """Weights that every part reads anew make one part best, work by tokens many."""
    link = hop(1e9, 1e-4)
    weights = Route(stops=(stop(5e-3, 1e-6, link), stop(5e-3, 1e-6, link)), row=1000)
    rows = Route(stops=(stop(1e-4, 1e-4, link), stop(1e-4, 1e-4, link)), row=1000)
    prompt = ((256, 256),)
    assert how_many.parts(prompt, 2, weights) == 1
    count = how_many.parts(prompt, 2, rows)
    work = Work(tokens=256, is_prompt=True, context=256)
    assert count > 2
    assert rows.seconds(work, count) < 0.65 * rows.seconds(work, 1)
    assert how_many.parts(((1, 9),), 2, rows) == 1
    assert [how_many.parts(((tokens, tokens),), 2, None) for tokens in (1, 63, 64, 999)] == [1, 1, 2, 2]


@pytest.mark.parametrize("variant", ["demo", "qwen3_next", "gpt_oss"])
def test_measured_at_the_start(variant: str, checkpoints: Checkpoints) -> None:
    """Every machine has seconds of a few sizes; what was written into caches meanwhile changes no token; a
    host that is lost leaves a prediction with the others."""
    model = "demo" if variant == "demo" else checkpoints(variant)
    with LLM(model, device="cpu", no_measure=True, max_context=128) as llm:
        expected = said(llm) if variant == "demo" else [r.token_ids for r in llm.generate([[5, 7, 9] * 9], GREEDY)]
    hosts = ThreadHosts(model, 2)
    try:
        with layered(hosts, placement="hosts", no_measure=False, host_timeout=5.0) as llm:
            route = layers_of(llm).network.route
            assert route is not None
            assert [stop.hop is None for stop in route.stops] == [False, False]
            for one in route.stops:
                assert [tokens for tokens, _ in one.prompt.points] == [16, 64]  # of 128 that the context holds
                assert [tokens for tokens, _ in one.decode.points][:3] == [1, 2, 4]
            work = Work(tokens=64, is_prompt=True, context=0)
            assert sum(one.work_s(work) for one in route.stops) > 0
            assert sum(one.context_s for one in route.stops) > 0
            if variant == "demo":
                assert said(llm) == expected
                hosts.end("h2")
                assert said(llm) == expected
                after = layers_of(llm).network.route
                assert after is not None
                assert len(after.stops) == 1
            else:
                assert [r.token_ids for r in llm.generate([[5, 7, 9] * 9], GREEDY)] == expected
    finally:
        hosts.close()
