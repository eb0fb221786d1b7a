"""Times per tier: laps and waits by hand, in slow streams, through whole models; none of it on the CPU alone."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stand_in_gpu
import torch
from busy import undisturbed
from placements import PLACEMENTS, placed
from slow_stream import SlowStream, layer_of
from terminal import folded

from headrace import LLM, SamplingParams
from headrace.engine.devices import streams
from headrace.engine.devices.streams import CudaStream, HostStream
from headrace.engine.experts.streaming import Ring, by_number, chosen_numbers
from headrace.engine.ledger.ledger import Ledger
from headrace.engine.ledger.passes import Pass, Times
from headrace.engine.ledger.summary import summarise
from headrace.engine.ledger.timers import Spans, Timers, wait
from headrace.engine.placement.placement import Tier
from headrace.kernels import reference

Run = Callable[..., tuple[int, str, str]]
PARAMS = SamplingParams(max_new_tokens=6, ignore_eos=True)


class ByHand:
    """A stream whose stamps are the times that the test says."""

    def __init__(self) -> None:
        self.now = 0.0
        self.kept: list[float] = []

    def after(self, seconds: float) -> None:
        self.now += seconds

    def stamp(self) -> float:
        return self.now

    def seconds(self, first: float, last: float) -> float:
        return last - first

    def give_back(self, stamps: Iterator[float]) -> None:
        self.kept += stamps


def is_whole(times: Times, measured: float) -> bool:
    """Time of all tiers - overlap + idle + outside = measured; and none is below 0."""
    assert times.overlap_s is not None
    assert times.idle_s is not None
    assert times.outside_s is not None
    parts = sum(times.busy.values()) - times.overlap_s + times.idle_s + times.outside_s
    positive = all(s >= 0 for s in (*times.busy.values(), *times.waits.values(), times.overlap_s, times.idle_s))
    return positive and abs(parts - measured) < 1e-9


def test_a_pass_worked_out_by_hand() -> None:
    """3 s of the GPU and 1 s of links; the CPU works 5 s, of which the GPU waits for 4; copies take 2 s, and the GPU
    waits for them 2.5 s: half a second in which nobody works. 0.5 s belong to nobody, 1 s lie outside."""
    main, side = ByHand(), ByHand()
    timers = Timers(main)
    copies = timers.beside(side)
    timers.is_on = True
    timers.begin()
    for seconds, what in ((0.5, None), (3, "gpu_hbm"), (1, "d2h"), (4, wait("cpu_dram")), (2.5, wait("h2d"))):
        main.after(seconds)
        timers.span(what)
    side.after(9)
    copies.span(None)
    side.after(2)
    copies.span("h2d")
    timers.spend("cpu_dram", 5)
    times = timers.end(12.0)
    assert times.busy == {"gpu_hbm": 3, "d2h": 1, "cpu_dram": 5, "h2d": 2}
    assert times.waits == {"cpu_dram": 4, "h2d": 2.5}
    assert (times.overlap_s, times.idle_s, times.outside_s) == (1, 0.5, 1.5)
    assert is_whole(times, 12)
    assert len(main.kept) == 6, "stamps are given back"
    timers.begin()
    assert timers.end(1.0).busy == {}, "nothing is left of the pass before"


def test_without_the_clock_only_the_cpu_is_known() -> None:
    stream = ByHand()
    timers = Timers(stream)
    timers.begin()
    timers.span("gpu_hbm")
    timers.spend("cpu_dram", 0.25)
    assert timers.end(1.0) == Times(busy={"cpu_dram": 0.25}, waits={}, overlap_s=None, idle_s=None, outside_s=None)
    assert not stream.kept


def test_laps_of_a_captured_step_are_read_after_each_replay() -> None:
    stream = ByHand()
    timers, spans = Timers(stream), Spans(stream)
    spans.begin()
    stream.after(2)
    spans.span("gpu_hbm")
    timers.is_on = True
    for _ in range(2):
        timers.begin()
        stream.after(7)  # the replay
        timers.span(None)
        timers.add(spans)
        times = timers.end(8.0)
        assert times.busy == {"gpu_hbm": 2}
        assert times.outside_s == 6


def test_on_the_host_copies_are_work_of_the_one_thread() -> None:
    timers = Timers(HostStream())
    assert timers.beside(HostStream()) is timers.main
    assert timers.others == []


# ---- slow sides


def streamed(copies_s: float, computes_s: float) -> Times:
    """A layer through a ring of two buffers whose streams are threads that take so long for each piece."""
    bank, x, ids, weights = layer_of(12, 7, 4)
    main, side = SlowStream(1, computes_s, shortest_s=computes_s), SlowStream(2, copies_s, shortest_s=copies_s)
    timers = Timers(main)
    timers.is_on = True
    ring = Ring(bank.layout, 3, reference, torch.device("cpu"), main, side, timers)  # type: ignore[arg-type]
    numbers = chosen_numbers(ids, 12)
    assert len(numbers) > 9, "four pieces"
    y = torch.zeros_like(x)
    start = time.perf_counter()
    timers.begin()
    ring.add(y, x, ids, weights, bank, by_number(numbers, 3, 12))
    timers.span("gpu_hbm")
    side.end()
    main.end()
    seconds = time.perf_counter() - start
    times = timers.end(seconds)
    assert (y - reference.experts(x, ids, weights, bank)).abs().max() < 1e-3
    assert is_whole(times, seconds)
    return times


@pytest.mark.alone
@undisturbed
def test_slow_copies_show_as_waiting_for_copies() -> None:
    """Four copies of 40 ms; the GPU stands still for nearly all of it, and next to nothing is hidden."""
    times = streamed(0.04, 0.0)
    assert times.busy["h2d"] >= 0.16
    assert times.waits["h2d"] >= 0.14
    assert times.busy["gpu_hbm"] < 0.5 * times.waits["h2d"]
    assert times.overlap_s is not None
    assert times.overlap_s < 0.25 * times.busy["h2d"]


@pytest.mark.alone
@undisturbed
def test_slow_computing_hides_the_copies() -> None:
    """Only the first of four copies of 10 ms has nothing to hide behind."""
    times = streamed(0.01, 0.05)
    assert times.busy["gpu_hbm"] >= 0.2
    assert times.busy["h2d"] >= 0.04
    assert times.waits["h2d"] < 0.7 * times.busy["h2d"]
    assert times.overlap_s is not None
    assert times.overlap_s > 0.3 * times.busy["h2d"]


def slowed(llm: LLM, tier: Tier, seconds: float) -> None:
    """Every call of a tier's experts takes so much longer."""
    device = llm.parts.devices[tier]
    plain = device.ops.experts

    def slow(*args: Any) -> torch.Tensor:
        time.sleep(seconds)
        return plain(*args)

    ops = type("Ops", (), {"experts": staticmethod(slow), "gated_add_": staticmethod(device.ops.gated_add_)})
    llm.parts.decoder.experts.devices = {
        **llm.parts.decoder.experts.devices,
        tier: dataclasses.replace(device, ops=ops),
    }  # type: ignore[attr-defined]


def decode(llm: LLM) -> list[Pass]:
    llm.time_tiers()
    llm.generate([[5, 6, 7]], PARAMS)
    passes = [p for p in llm.ledger.passes if p.phase == "decode"]
    assert all(p.times is not None and is_whole(p.times, p.measured_s) for p in llm.ledger.passes)
    return passes


def times_of(passes: list[Pass]) -> Times:
    found = summarise(passes, "decode").times
    assert found is not None
    return found


@pytest.mark.alone
@undisturbed
def test_a_slow_cpu_shows_as_waiting_for_it() -> None:
    """10 ms more for the CPU in each layer: nearly all of it is waiting, and nothing hides it."""
    with LLM("demo", device="simulated", max_context=64, cpu_moe=True) as llm:
        slowed(llm, Tier.CPU, 0.01)
        passes = decode(llm)
        times, slow = times_of(passes), 0.01 * llm.spec.moe_layers * len(passes)
        assert times.busy["cpu_dram"] >= slow
        assert times.waits["cpu_dram"] >= 0.9 * slow
        assert times.overlap_s is not None
        assert times.overlap_s < 0.1 * slow


@pytest.mark.alone
@undisturbed
def test_a_slow_gpu_hides_the_cpu(tmp_path: Path) -> None:
    options = placed({"placement": "file"}, tmp_path)
    with LLM("demo", device="simulated", max_context=64, **options) as llm:
        experts: Any = llm.parts.decoder.experts
        slowed(llm, Tier.CPU, 0.002)
        here = experts._on_gpu

        def slow(*args: Any) -> torch.Tensor:
            time.sleep(0.04)  # long enough for a CPU that others use too
            part: torch.Tensor = here(*args)
            return part

        experts._on_gpu = slow
        times = times_of(decode(llm))
        assert times.overlap_s is not None
        assert times.overlap_s > 0.5 * times.busy["cpu_dram"], "most of the CPU's time lay behind the GPU's"
        assert times.waits["cpu_dram"] < 0.5 * times.busy["cpu_dram"] + 0.1 * times.busy["gpu_hbm"]


# ---- whole models


@pytest.mark.parametrize("moved", [{}, {"stream_from": 2}])
@pytest.mark.parametrize("name", PLACEMENTS)
def test_every_placement_says_where_its_time_went(name: str, moved: dict[str, Any], tmp_path: Path) -> None:
    with LLM("demo", device="simulated", max_context=64, **placed(PLACEMENTS[name], tmp_path), **moved) as llm:
        for one in decode(llm):
            assert one.times is not None
            worked = {tier for tier, groups in one.bytes.items() if sum(groups.values())}
            assert {tier for tier, seconds in one.times.busy.items() if seconds > 0} == worked


@pytest.mark.parametrize("link", [None, 0.2])
@pytest.mark.parametrize("policy", ["lru", "admit2", "next-layer"])
def test_a_cache_says_where_its_time_went(policy: str, link: float | None) -> None:
    options: dict[str, Any] = {"policy": policy, "expert_cache": "30%", "link_limit": link}
    with LLM("demo", device="simulated", max_context=64, **options) as llm:
        for one in decode(llm):
            assert one.times is not None
            worked = {tier for tier, groups in one.bytes.items() if sum(groups.values())}
            assert {tier for tier, seconds in one.times.busy.items() if seconds > 0} == worked


def test_a_line_of_the_ledger(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "run.jsonl"
    where = ["--device", "simulated", "--n-cpu-moe", "3", "--ledger", path]
    status, _, err = run("generate", "demo", "In the", "-n", "4", *where)
    assert status == 0, err
    for line in map(json.loads, path.read_text().splitlines()):
        assert {"time_ms", "wait_ms", "overlap_ms", "idle_ms", "outside_ms"} <= set(line)
        assert set(line["time_ms"]) == {"gpu_hbm", "cpu_dram", "h2d", "d2h"}
        assert set(line["wait_ms"]) == {"cpu_dram"}
        total = sum(line["time_ms"].values()) - line["overlap_ms"] + line["idle_ms"] + line["outside_ms"]
        assert total == pytest.approx(line["measured_ms"], abs=1e-3)
        assert line["predicted_ms"] is None
        assert line["predicted_time_ms"] is None
    text = folded(err)
    assert "cpu_dram ms" in text
    assert "GPU waits for cpu_dram ms" in text
    assert "side by side ms" in text


def test_on_the_cpu_alone_no_event_is_made(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """With the clock on and off: the forward pass is the CPU's, the rest lies outside."""

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("an event, or a stamp")

    monkeypatch.setattr(torch.cuda, "Event", refused)
    monkeypatch.setattr(HostStream, "stamp", refused)
    with LLM("demo", max_context=64) as llm:
        for is_on in (False, True):
            llm.time_tiers(is_on)
            llm.generate([[5, 6, 7]], PARAMS)
        assert llm.parts.timers.main is None
        for one in llm.ledger.passes:
            assert one.times is not None
            assert set(one.times.busy) == {"cpu_dram"}
            assert is_whole(one.times, one.measured_s)
            assert one.times.busy["cpu_dram"] > 0
    status, out, _ = run("generate", "demo", "In the", "-n", "4", "--json")
    assert status == 0
    assert json.loads(out)["tiers"] is None


def test_an_error_in_a_pass_leaves_nothing_to_the_next() -> None:
    with LLM("demo", device="simulated", max_context=64, cpu_moe=True) as llm:
        forward = llm.parts.decoder.forward

        def fails(inputs: Any) -> torch.Tensor:
            forward(inputs)
            raise RuntimeError("made up")

        llm.time_tiers()
        llm.parts.decoder.forward = fails  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="made up"):
            llm.generate([[5, 6, 7]], PARAMS)
        llm.parts.decoder.forward = forward  # type: ignore[method-assign]
        llm.ledger = llm.parts.decoder.ledger = Ledger()
        llm.parts.timers.begin()
        assert llm.parts.timers.end(0.0).busy == {}


# ---- graphs


@pytest.mark.parametrize("options", [{"cpu_moe": True}, {"n_cpu_moe": 3}, {"placement": "gpu"}])
def test_graphed_steps_are_timed(gpu: stand_in_gpu.StandIn, options: dict[str, Any]) -> None:
    with LLM("demo", device="simulated", max_context=64, max_sequences=2, handoff="memop", **options) as llm:
        untimed = [one.token_ids for one in llm.generate([[5, 6, 7], [8]], PARAMS)]
        plain = [p for p in llm.ledger.passes if p.phase == "decode"]
        assert all(p.times is not None and p.times.overlap_s is None for p in plain)
        before = len(llm.ledger.passes)
        for is_on in (True, False, True):
            llm.time_tiers(is_on)
            assert [one.token_ids for one in llm.generate([[5, 6, 7], [8]], PARAMS)] == untimed
        timed = [
            p for p in llm.ledger.passes[before:] if p.phase == "decode" and p.times and p.times.overlap_s is not None
        ]
        assert len(timed) == 2 * len(plain)
        in_ram = options != {"placement": "gpu"}
        for one in timed:
            assert one.times is not None
            assert is_whole(one.times, one.measured_s)
            assert one.times.busy["gpu_hbm"] > 0
            assert ("cpu_dram" in one.times.waits) == in_ram
            assert (one.times.busy["cpu_dram"] > 0) == in_ram
        assert timed[0].bytes == plain[0].bytes


def test_a_slow_cpu_in_a_graph(gpu: stand_in_gpu.StandIn) -> None:
    """The coordinator's clock and the stream's waiting agree: what the CPU works, the stream waits for."""
    with LLM("demo", device="simulated", max_context=64, handoff="memop", cpu_moe=True) as llm:
        times = times_of(decode(llm))
        assert times.waits["cpu_dram"] >= 0.9 * times.busy["cpu_dram"], "the GPU has no experts to hide it behind"


# ---- events


class FakeEvent:
    """An event whose time is the count of events that were recorded before it."""

    made = 0
    recorded = 0

    def __init__(self, **kinds: bool) -> None:
        self.kinds = kinds
        FakeEvent.made += 1

    def record(self, stream: object) -> None:
        self.at = FakeEvent.recorded
        FakeEvent.recorded += 1

    def elapsed_time(self, other: FakeEvent) -> float:
        return 1.0 * (other.at - self.at)


def test_events_are_used_again_and_those_of_a_graph_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeEvent.made = FakeEvent.recorded = 0
    capturing = False
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda place: "stream")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    stream = CudaStream(torch.device("cuda", 0))
    timers = Timers(stream)
    timers.is_on = True
    for _ in range(3):
        timers.begin()
        timers.span("h2d")
        timers.span("gpu_hbm")
        assert timers.end(1.0).busy == pytest.approx({"h2d": 1e-3, "gpu_hbm": 1e-3}), "milliseconds"
    assert FakeEvent.made == 3
    capturing = True
    spans = Spans(stream)
    spans.begin()
    spans.span("gpu_hbm")
    assert [stamp.kinds for _, stamp in spans.taken] == [{"enable_timing": True, "external": True}] * 2
    assert FakeEvent.made == 5
    assert len(stream.spare) == 3


def test_lanes_of_a_device_in_ram_are_one() -> None:
    with LLM("demo", device="simulated", max_context=32, cpu_moe=True) as llm:
        main, side = streams.of(llm.parts.main)
        assert main == side == HostStream()
