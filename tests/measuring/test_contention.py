"""Two ways into memory at once: what is counted, and that a GPU's copies could be measured; RAM plays the GPU here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from busy import undisturbed
from slow_stream import Reached, SlowStream

from headrace.engine.bandwidth_model.contention import kept, lines
from headrace.engine.devices.cuda_driver import Driver
from headrace.engine.devices.streams import HostStream
from headrace.engine.measure import contention, contention_gpu, link_rates, other_load
from headrace.engine.measure.contention import AHEAD, Copies, Step, Way, moved, rates
from headrace.engine.measure.kernel_rates import USUAL
from headrace.engine.measure.link_rates import Links
from headrace.kernels import FORMATS
from headrace.kernels.context import Context

MB = 1 << 20
CPU = torch.device("cpu")


class ThreadStream(SlowStream):
    """A stream in a thread: work is done in order, while the giver goes on."""

    def __init__(self) -> None:
        super().__init__(0, 0.0)

    def wait(self, event: Reached) -> None:
        raise AssertionError("copies of a measurement wait for nobody")


@pytest.fixture
def two_streams() -> Iterator[tuple[ThreadStream, ThreadStream]]:
    both = ThreadStream(), ThreadStream()
    yield both
    for stream in both:
        stream.end()


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_load.Strangers, "cores", lambda self: 0.0)


# ---- what is counted


def test_only_bytes_within_the_time_of_both_count() -> None:
    """Steps of 10 bytes: half of the first, all of the second, a fifth of the third."""
    steps = [Step(0.0, 1.0, 10), Step(1.0, 2.0, 10), Step(2.0, 7.0, 10), Step(7.0, 8.0, 10)]
    assert moved(steps, 0.5, 3.0) == pytest.approx(5 + 10 + 2)
    assert moved(steps, 0.0, 8.0) == 40
    assert moved(steps, 8.0, 9.0) == 0


def pause(seconds: float, size: int) -> Callable[[], int]:
    def step() -> int:
        time.sleep(seconds)
        return size

    return step


@pytest.mark.alone
@undisturbed
def test_a_slow_way_is_used_as_long_as_a_fast_one() -> None:
    """One step of 50 ms is longer than the sample: the other goes on until that time is over."""
    ended: list[str] = []
    slow = Way(name="slow", step=pause(0.05, 50), end=lambda: ended.append("slow"))
    fast = Way(name="fast", step=pause(0.002, 2), end=lambda: ended.append("fast"))
    found = rates([slow, fast], 0.02)
    assert list(found) == ended == ["slow", "fast"]
    assert 100 < found["slow"] <= 1000
    assert 50 < found["fast"] <= 1000


def test_what_a_way_raises_comes_out_and_all_are_ended() -> None:
    ended: list[str] = []

    def broken() -> int:
        raise RuntimeError("a broken way")

    ways = [
        Way(name="a", step=broken, end=lambda: ended.append("a")),
        Way(name="b", step=pause(0.001, 1), end=lambda: ended.append("b")),
    ]
    with pytest.raises(RuntimeError, match="a broken way"):
        rates(ways, 0.01)
    assert ended == ["a", "b"]


class Memory:
    """Serves one piece after another, in the order of asking: who shares it gets half."""

    def __init__(self) -> None:
        self.stream = ThreadStream()

    def step(self) -> int:
        self.stream.do(lambda: time.sleep(0.003))
        self.stream.record().wait(20)
        return 3


@pytest.mark.alone
@undisturbed
def test_ways_that_share_a_memory_get_half_of_it() -> None:
    memory = Memory()
    one, other = (Way(name=name, step=memory.step) for name in ("experts", "copies"))
    found = contention.measure(Context(), [(one, other)], rounds=5, seconds=0.05)
    memory.stream.end()
    assert list(found) == ["experts + copies"]
    both = found["experts + copies"]
    assert set(both) == {"experts", "copies", "experts alone", "copies alone"}
    for name in ("experts", "copies"):
        assert 0.35 < both[name] / both[f"{name} alone"] < 0.65
    shares = kept(found, "experts", "copies")
    assert shares == (both["experts"] / both["experts alone"], both["copies"] / both["copies alone"])


def test_a_way_of_two_pairs_is_measured_alone_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first round is not counted; a crowded one is forgotten and repeated."""
    asked: list[tuple[str, ...]] = []

    def counted(ways: tuple[Way, ...], seconds: float) -> dict[str, float]:
        asked.append(tuple(way.name for way in ways))
        return {way.name: 10.0 / len(ways) for way in ways}

    monkeypatch.setattr(contention, "rates", counted)
    busy = iter([0.0, 1.0, 0.0])
    monkeypatch.setattr(other_load.Strangers, "cores", lambda self: next(busy))
    a, b, c = (Way(name=name, step=lambda: 1) for name in "abc")
    found = contention.measure(Context(), [(a, b), (c, b)], rounds=2)
    assert asked == [("a",), ("b",), ("c",), ("a", "b"), ("c", "b")] * 4
    assert found["a + b"] == {"a": 5.0, "b": 5.0, "a alone": 10.0, "b alone": 10.0}
    assert list(found) == ["a + b", "c + b"]


def test_shares_are_never_above_one() -> None:
    found = {"a + b": {"a": 11.0, "b": 5.0, "a alone": 10.0, "b alone": 10.0}}
    assert kept(found, "a", "b") == (1.0, 0.5)
    assert kept(found, "b", "a") is None
    assert kept({}, "a", "b") is None
    assert list(lines({"a + b": {k: v * 1e9 for k, v in found["a + b"].items()}})) == [
        "together, GB/s: a 11.0 of 10.0 alone, b 5.0 of 10.0 alone"
    ]


# ---- copies in a stream


class StreamByHand:
    """Notes what is given; events are reached when the test says so."""

    def __init__(self) -> None:
        self.given = 0
        self.events: list[Reached] = []

    def do(self, work: Callable[[], None]) -> None:
        self.given += 1
        work()

    def record(self) -> Reached:
        self.events.append(Reached())
        return self.events[-1]

    def wait(self, event: Reached) -> None: ...


def test_copies_are_given_ahead_and_counted_when_they_are_there() -> None:
    stream = StreamByHand()
    copies = Copies(stream, lambda: None, 7)
    done: list[int] = []
    waiting = threading.Thread(target=lambda: done.append(copies.step()), daemon=True)
    waiting.start()
    while len(stream.events) < AHEAD:
        time.sleep(0.001)
    time.sleep(0.01)
    assert (stream.given, done) == (AHEAD, [])
    stream.events[0].set()
    waiting.join(20)
    assert (stream.given, done) == (AHEAD, [7])
    for event in stream.events:
        event.set()
    copies.end()
    assert not copies.events
    assert Copies(HostStream(), lambda: None, 3).step() == 3


# ---- RAM in the GPU's place


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory and short samples, which is wrong and fast."""
    monkeypatch.setattr(contention_gpu, "KERNELS_BYTES", 64 * MB)
    monkeypatch.setattr(contention_gpu, "COPIES_BYTES", 32 * MB)
    monkeypatch.setattr(contention.measure, "__defaults__", (0.002,))


def calls(library: str) -> Driver:
    driver = Driver(library)
    driver.make_current(0)
    return driver


@pytest.mark.usefixtures("small")
def test_experts_beside_copies(library: str, two_streams: tuple[ThreadStream, ThreadStream]) -> None:
    """The real kernel of each usual format beside copies from RAM to RAM, in memory that a driver pinned."""
    driver = calls(library)
    taken, given_back = [], []
    register, unregister = driver.register, driver.unregister
    driver.register = lambda at, size: (taken.append(at), register(at, size))[1]  # type: ignore[method-assign,func-returns-value]
    driver.unregister = lambda at: (given_back.append(at), unregister(at))[1]  # type: ignore[method-assign,func-returns-value]
    found, problem = contention_gpu.measure(Context(), 0, CPU, driver, *two_streams, rounds=1)
    assert problem == ""
    pairs = [f"experts {name} + gpu0 h2d pinned" for name in USUAL]
    assert list(found) == [*pairs, "gpu0 h2d pinned + gpu0 d2h pinned"]
    assert all(rate > 1e7 for both in found.values() for rate in both.values())
    assert taken
    assert sorted(taken) == sorted(given_back)


def test_each_copy_is_of_one_expert_and_goes_where_it_should() -> None:
    """Experts 0, 2, 4, 6 in two pieces into two buffers; and down again one after the other."""
    bank = contention_gpu.bank_of(torch.zeros(40 * MB, dtype=torch.uint8), FORMATS["q4_0"])
    for number, expert in enumerate(bank.data):
        expert.fill_(number + 1)
    buffers = [type(bank).empty(bank.layout, 2) for _ in range(2)]
    up = contention_gpu._upward(bank, buffers, HostStream())
    up.step()
    assert up.size == 2 * bank.layout.bytes
    first = [buffer.data[:, 0].tolist() for buffer in buffers]
    assert sorted(first) == [[1, 3], [5, 7]]
    down = contention_gpu._downward(buffers[0], bank, HostStream())
    while not down.events:
        down.step()
    assert bank.data[:4, -1].tolist() == first[0] * 2


@pytest.mark.usefixtures("small")
def test_memory_that_cannot_be_pinned_is_not_measured(
    library: str, two_streams: tuple[ThreadStream, ThreadStream]
) -> None:
    driver = calls(library)

    def refuse(address: int, size: int) -> None:
        raise link_rates.DeviceError("the driver takes no more")

    driver.register = refuse  # type: ignore[method-assign]
    found, problem = contention_gpu.measure(Context(), 0, CPU, driver, *two_streams, rounds=1)
    assert found == {}
    assert "could not be pinned" in problem
    assert "the driver takes no more" in problem


def test_a_full_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contention_gpu, "free_memory", lambda: 10**9)
    found, problem = contention_gpu.measure(Context(), 0, CPU, None, HostStream(), HostStream(), rounds=1)
    assert found == {}
    assert "less than 3.2 GB of memory is free" in problem


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is a driver")
def test_without_a_driver_there_is_a_note() -> None:
    found = Links()
    link_rates.beside(Context(), 0, 1, found)
    assert found.together == {}
    assert "no NVIDIA driver" in found.notes[0]
