"""A layer whose experts other machines compute: seconds worked out by hand, bytes of messages, who should get what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from headrace import LLM
from headrace.engine.bandwidth_model.hardware import Device, Hardware, Range, exactly
from headrace.engine.bandwidth_model.network import balance, wire_sizes
from headrace.engine.bandwidth_model.network.balance import Taker
from headrace.engine.bandwidth_model.network.hops import NOTHING as NO_COSTS
from headrace.engine.bandwidth_model.network.hops import Asked, Costs, Exchange, Hop, Network
from headrace.engine.bandwidth_model.pass_model import PassModel
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.hosts.messages import frames, rows
from headrace.engine.ledger.drift import WINDOW, DriftWatch
from headrace.engine.ledger.passes import CPU_DRAM, NET, HostWork, LayerWork, Pass, Times
from headrace.loaders.quants.by_format import ByFormat

NOTHING = Hardware(name="none")


def hop(name: str, memory: float, link: float, trip: float, **more: Any) -> Hop:
    """Bytes a second, and seconds."""
    device = Device(name=name, kind="cpu", memory=None, nominal=memory, bandwidth=exactly(memory), **more)
    return Hop(name=name, device=device, rate=exactly(link), round_trip=exactly(trip))


def asked(one: Hop, read: float, there: float, back: float, pieces: int = 1) -> Asked:
    return Asked(hop=one, read=ByFormat.of({"bf16": read}), flops=0, each=1, there=there, back=back, pieces=pieces)


def test_one_host_by_hand() -> None:
    left = hop("left", memory=1e9, link=1e8, trip=1e-3)
    # 2 ms of RAM, 1 ms there, 3 ms back, 1 ms of round trip
    assert Exchange((asked(left, 2e6, 1e5, 3e5),)).seconds(NOTHING) == pytest.approx(7e-3)
    # In three pieces two thirds of the computing hide behind the answer.
    assert Exchange((asked(left, 2e6, 1e5, 3e5, 3),)).seconds(NOTHING) == pytest.approx(5e-3 + 2e-3 / 3)
    assert Exchange(()).seconds(NOTHING) == 0


def test_hosts_share_the_link_of_the_coordinator() -> None:
    fast, slow = hop("fast", 1e9, 1e8, 1e-3), hop("slow", 1e9, 1e7, 0.0)
    found = dict(Exchange((asked(fast, 0, 1e5, 1e5), asked(slow, 1e6, 1e5, 0))).by_host())
    # 2e5 bytes leave by the coordinator's link of 1e8: 2 ms; the slow one's own 1e5 take it 10 ms.
    assert found["fast"] == pytest.approx(1e-3 + 2e-3 + 1e-3)
    assert found["slow"] == pytest.approx(10e-3 + 1e-3 + 1e-3)


def test_ranges_go_from_slow_to_fast() -> None:
    device = Device(name="h", kind="cpu", memory=None, nominal=1e9, bandwidth=Range(0.5e9, 0.7e9, 0.9e9))
    one = Hop(name="h", device=device, rate=Range(1e8, 2e8, 3e8), round_trip=Range(3e-3, 2e-3, 1e-3))
    exchange = Exchange((asked(one, 1e6, 1e5, 1e5),))
    slow, middle, fast = (exchange.seconds(NOTHING, end) for end in ("low", "mid", "high"))
    assert slow > middle > fast
    assert slow == pytest.approx(3e-3 + 2e-3 + 2e-3)


def test_costs_between_and_beyond_what_was_measured() -> None:
    costs = Costs(((1.0, exactly(1.0)), (4.0, exactly(4.0)), (16.0, exactly(6.0))))
    assert [costs.at(n) for n in (1, 2.5, 4, 10, 16, 28)] == pytest.approx([1, 2.5, 4, 5, 6, 8])
    assert [Costs(((1.0, exactly(2.0)),)).at(n) for n in (1, 500)] == [2, 2]
    falling = Costs(((1.0, exactly(3.0)), (4.0, exactly(2.0))))
    assert falling.at(64) == 2  # never below what was measured


@pytest.mark.parametrize("wire", wire_sizes.WIRES)
@pytest.mark.parametrize("weighted", [False, True])
def test_bytes_are_those_of_the_messages(wire: str, weighted: bool) -> None:
    format, hidden = rows.WIRES[wire], 100
    work = rows.Work(0, torch.rand(3, hidden), torch.tensor([0, 1, 2, 2]), torch.tensor([1, 1, 2, 3]),
                     torch.rand(4) if weighted else None)  # fmt: skip
    assert sum(map(len, rows.work_parts(work, format, 1))) == sum(wire_sizes.request(3, 4, hidden, wire, weighted))
    answer = rows.answer_parts(torch.rand(4, hidden), 0, format, 1)
    assert sum(map(len, answer)) == sum(wire_sizes.answer(4, 1, hidden, wire))
    assert (frames.HEADER.size, rows.TASK.size, rows.ANSWER.size) == (16, 16, 8)
    assert format.is_summed == (wire != "f32")


def test_expected_bytes_of_a_host() -> None:
    there, back, pieces = wire_sizes.expected(2, 6, 1000, "f32")
    assert (there, back, pieces) == (2 * 4000 + 32 + 24, 6 * 4000 + 24, 1)
    there, back, pieces = wire_sizes.expected(2, 6, 1000, "bf16")
    assert (there, back, pieces) == (2 * 2000 + 32 + 48, 2 * 2000 + 24, 1)
    assert wire_sizes.expected(512, 2048, 1024, "f32")[2] == 8  # 8 MB leave in as many pieces


def test_shares_end_at_the_same_time() -> None:
    takers = [Taker(0.0, 4.0), Taker(1.0, 4.0)]
    found = balance.shares(takers)
    assert sum(found) == pytest.approx(1)
    assert 4 * found[0] == pytest.approx(1 + 4 * found[1])
    # A round trip of 9 s saves nothing of 4.
    alone = balance.shares([Taker(0.0, 4.0), Taker(9.0, 4.0)])
    assert alone == [1.0, balance.LEAST]


def test_shares_within_rooms() -> None:
    takers = [Taker(0.0, 1.0), Taker(0.0, 1.0), Taker(5.0, 1.0)]
    assert balance.with_rooms(takers, [1, 1, 1]) == pytest.approx([0.5, 0.5, 0])
    assert balance.with_rooms(takers, [0.2, 1, 1]) == pytest.approx([0.2, 0.8, 0])
    assert balance.with_rooms(takers, [0.2, 0.3, 1]) == pytest.approx([0.2, 0.3, 0.5])
    assert sum(balance.with_rooms(takers, [0.2, 0.3, 0.1])) == pytest.approx(0.6)


def a_pass(layers: int, hosts: tuple[HostWork, ...], own: int = 0) -> Pass:
    """One token. own: bytes of the coordinator's experts in each layer."""
    works = [
        LayerWork(layer=i, tokens=1, bytes={NET: {"experts": 100}, CPU_DRAM: {"experts": own}}, pairs={CPU_DRAM: 1},
                  hosts=hosts)
        for i in range(layers)
    ]  # fmt: skip
    read = {CPU_DRAM: {"dense": 1000, "kv": 64, "head": 1000, "experts": layers * own}, NET: {"experts": layers * 100}}
    return Pass(index=0, phase="decode", sequences=[0], tokens=1, context=10, bytes=read, layers=works)


@pytest.fixture
def llm(profile: Profile) -> Iterator[LLM]:
    with LLM("demo", device="cpu", max_context=128) as found:
        yield found


def test_a_pass_with_hosts_by_hand(llm: LLM) -> None:
    """The profile reads 10 GB/s and has no costs."""
    layers, known = sum(llm.spec.is_moe), llm.predictions.pass_model
    assert known is not None
    hops = {1: hop("left", 1e9, 1e8, 1e-3), 2: hop("right", 1e9, 1e8, 2e-3)}
    network = Network(wire="f32", hops=hops, costs=Costs(((1.0, exactly(5e-4)),)))
    model = PassModel(llm.spec, llm.parts.checkpoint.formats, llm.parts.kv_format, known.machine, network=network)
    expert = model.sizes.layers[0].expert.total
    work = HostWork(host=2, experts=2, pairs=2, there=1000, back=2000, pieces=1)
    there = 2e-3 + 1000 / 1e8 + 2 * expert / 1e9 + 2000 / 1e8
    here = 2064 / 1e10
    found = model(a_pass(layers, (work,)))
    assert found is not None
    assert found.seconds == pytest.approx(here + layers * (there + 5e-4))
    assert found.terms[NET] == pytest.approx(layers * (there + 5e-4))
    # The coordinator's own experts hide behind the exchange, unless they take longer; where no host is asked nothing
    # is to be paid for hosts.
    own = round(1e10 * 3 * there)
    beside = model(a_pass(layers, (work,), own=round(1e10 * there / 2)))
    longer, alone = model(a_pass(layers, (work,), own=own)), model(a_pass(layers, (), own=own))
    assert beside is not None
    assert longer is not None
    assert alone is not None
    assert beside.seconds == pytest.approx(found.seconds)
    assert longer.seconds == pytest.approx(here + layers * (own / 1e10 + 5e-4))
    assert alone.seconds == pytest.approx(here + layers * own / 1e10)
    network.costs = None
    assert model(a_pass(layers, (work,))) is None


def test_the_watch_names_the_network(llm: LLM) -> None:
    said: list[str] = []
    watch, layers = DriftWatch(said.append), sum(llm.spec.is_moe)
    known = llm.predictions.pass_model
    assert known is not None
    network = Network(wire="f32", hops={1: hop("left", 1e9, 1e8, 1e-3)}, costs=NO_COSTS)
    model = PassModel(llm.spec, llm.parts.checkpoint.formats, llm.parts.kv_format, known.machine, network=network)
    for _ in range(WINDOW):
        done = a_pass(layers, (HostWork(host=1, experts=1, pairs=1, there=10, back=10, pieces=1),))
        done.expect = model
        found = model(done)
        assert found is not None
        done.measured_s = 3 * found.seconds
        done.times = Times(busy={NET: done.measured_s * 0.9}, waits={}, overlap_s=0.0, idle_s=0.0, outside_s=0.0)
        watch(done)
    assert len(said) == 1
    assert "slower than predicted" in said[0]
    assert "net gives" in said[0]
