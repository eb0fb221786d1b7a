"""Graphs are taken only after a step of the model itself was held against the eager path, and only where they are
faster: on a driver without a GPU, with the times of steps given."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from busy import undisturbed
from stand_in_gpu import WORKS, StandIn, StreamRecorder
from torch import Tensor

from headrace import LLM, DeviceError, OptionError, SamplingParams
from headrace.engine.cuda_graphs import saved_trials, signals, verify
from headrace.engine.cuda_graphs.capture import Static
from headrace.engine.cuda_graphs.mailbox_experts import MailboxExperts, Posted
from headrace.engine.cuda_graphs.saved_trials import StepTimes
from headrace.engine.cuda_graphs.signals import VARIANTS, Trial
from headrace.engine.experts.tiered import TieredExperts
from headrace.engine.model.kv_cache import KeysAndValues, KVCache
from headrace.engine.terminal import generate_report

PROMPTS = ["In the beginning", "And it came to pass, when the children", "Behold,"]
GREEDY = SamplingParams(max_new_tokens=8, ignore_eos=True)
Pace = Callable[[float, float], list[str]]


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Pace:
    """pace(hand, graph): seconds that steps take from now on, in turns; the list grows with every timed step."""
    seen: list[str] = []

    def set_to(hand: float, graph: float) -> list[str]:
        turns = itertools.cycle([("hand", hand), ("graph", graph)])

        def seconds(step: Callable[[int], Tensor], number: int) -> float:
            step(number)
            name, took = next(turns)
            seen.append(name)
            return took

        monkeypatch.setattr(verify, "_seconds", seconds)
        return seen

    return set_to


def load(**options: Any) -> LLM:
    return LLM("demo", device="simulated", **{"cpu_moe": True, "max_context": 96, "max_sequences": 3, **options})


def title(llm: LLM) -> str:
    return str(generate_report.startup_table(llm).title)


# ---- what auto takes


def test_auto_takes_graphs_that_are_faster(gpu: StandIn, pace: Pace) -> None:
    timed = pace(0.004, 0.003)
    with load() as llm, load(handoff="eager") as plain:
        assert llm.parts.graphed is not None
        assert timed == ["hand", "graph"] * (1 + verify.ROUNDS)
        assert (
            "hand-off: memop, fastest in a graph (memop 5.0 us; hostfunc 60.0 us; spin 9.0 us; eager 3.0 us); "
            "same bits as by hand, a step 3.00 ms, by hand 4.00 ms" in title(llm)
        )
        before = gpu.recorders[-1].replays
        assert llm.generate(PROMPTS[0], GREEDY)[0].token_ids == plain.generate(PROMPTS[0], GREEDY)[0].token_ids
        assert gpu.recorders[-1].replays == before + 7


def test_auto_takes_the_eager_path_where_that_is_faster(gpu: StandIn, pace: Pace, log: Path) -> None:
    pace(0.003, 0.004)
    with load() as llm:
        assert llm.parts.graphed is None
        assert "eager, memop was tried, and as a graph it is no faster: a step 4.00 ms, by hand 3.00 ms" in title(llm)
        assert "mailbox" not in {row[0] for row in generate_report.placement_rows(llm)}
        calls = [line.split()[0] for line in log.read_text().splitlines()]
        assert (calls.count("register"), calls.count("unregister")) == (3, 2), (
            "all but the experts' memory was given back"
        )
        assert llm.generate(PROMPTS[0], GREEDY)


@pytest.mark.alone
@undisturbed
def test_the_times_are_those_of_real_steps(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that waits for 20 ms takes at least that; the other does not."""
    saved_trials.path().unlink(missing_ok=True)
    inner = StreamRecorder.replay

    def slow(self: StreamRecorder, graph: Any, meanwhile: Callable[[], None]) -> None:
        inner(self, graph, meanwhile)
        verify.time.sleep(0.02)

    monkeypatch.setattr(StreamRecorder, "replay", slow)
    found: list[StepTimes] = []
    time_steps = verify._time
    monkeypatch.setattr(verify, "_time", lambda *all: found.append(time_steps(*all)) or found[-1])  # type: ignore[arg-type,func-returns-value]
    with load() as llm:
        assert llm.parts.graphed is None
    assert found[0].graph_s > 0.02
    assert 0 < found[0].eager_s < found[0].graph_s


def test_with_all_experts_in_vram_there_is_nothing_to_hand_over(gpu: StandIn, pace: Pace) -> None:
    pace(0.004, 0.003)
    with load(cpu_moe=False, placement="gpu") as llm:
        assert llm.parts.graphed is not None
        assert "hand-off: graphs, no expert is in RAM: graphs, and nothing to hand over; same bits" in title(llm)


# ---- what an earlier start found


def test_later_starts_compare_and_do_not_time(gpu: StandIn, pace: Pace) -> None:
    timed = pace(0.004, 0.003)
    with load():
        once = len(timed)
    with load() as llm:
        assert len(timed) == once
        assert gpu.recorders[-1].replays == verify.COMPARED
        assert "a step 3.00 ms, by hand 4.00 ms (measured at an earlier start)" in title(llm)
    with load(handoff="memop") as llm:
        assert len(timed) == once
        assert "asked for (memop 5.0 us; hostfunc 60.0 us; spin 9.0 us; eager 3.0 us); same bits as by hand" in title(
            llm
        )
    for other in ({"max_sequences": 2}, {"n_cpu_moe": 3, "cpu_moe": False}, {"expert_format": "q8_0"}):
        with load(**other):
            once += 2 * (1 + verify.ROUNDS)
            assert len(timed) == once, other


def test_a_slower_graph_is_timed_again(gpu: StandIn, pace: Pace) -> None:
    pace(0.003, 0.004)
    with load() as llm:
        assert llm.parts.graphed is None
    pace(0.003, 0.002)
    with load() as llm:
        assert llm.parts.graphed is not None


def test_a_check_of_an_earlier_start_does_not_replace_the_comparison(
    gpu: StandIn, pace: Pace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace(0.004, 0.003)
    with load():
        pass
    falsify(monkeypatch, gpu)
    with load() as llm:
        assert llm.parts.graphed is None
        assert "differs from the same step by hand" in title(llm)


def test_what_is_kept(gpu: StandIn, cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, _ = gpu.find(None)  # type: ignore[arg-type]
    times = StepTimes(graph_s=0.5, eager_s=0.75)
    assert saved_trials.check(runtime, "a") is None
    saved_trials.keep_check(runtime, "a", times)
    saved_trials.keep_trials(runtime, WORKS)
    assert saved_trials.check(runtime, "a") == times
    assert saved_trials.trials(runtime) == WORKS
    assert saved_trials.check(dataclasses.replace(runtime, name="another"), "a") is None
    for number in range(saved_trials.KEPT):
        saved_trials.keep_check(runtime, f"{number}", times)
    assert saved_trials.check(runtime, "a") is None
    assert saved_trials.check(runtime, "0") == times
    saved = json.loads(saved_trials.path().read_text())
    for damage in ([], {"0": 3}, {"0": {"graph_s": 1}}, {"0": {"graph_s": "1", "eager_s": 2.0}},
                   {"0": {"graph_s": 3.0, "eager_s": 2.0}}):  # fmt: skip
        saved_trials.path().write_text(json.dumps({**saved, "checks": damage}))
        assert saved_trials.check(runtime, "0") is None
    saved_trials.path().write_text("{")
    assert saved_trials.trials(runtime) is None


# ---- what fails


def falsify(monkeypatch: pytest.MonkeyPatch, gpu: StandIn) -> None:
    """Every result of the CPU comes up with one value changed in its last bit."""
    collect = MailboxExperts.collect

    def off(self: MailboxExperts, job: Posted) -> Tensor:
        y = collect(self, job).clone()
        y[0, 0] = torch.nextafter(y[0, 0], torch.tensor(9.0))
        return y

    monkeypatch.setattr(MailboxExperts, "collect", off)


def wrong_slot(monkeypatch: pytest.MonkeyPatch, gpu: StandIn) -> None:
    """Keys and values of a step go elsewhere; what it reads was there before, or not at all."""
    inner = Static.load

    def load_off(self: Static, inputs: Any) -> None:
        inner(self, inputs)
        self.inputs.places.slots_T.add_(7)

    monkeypatch.setattr(Static, "load", load_off)


def no_capture(monkeypatch: pytest.MonkeyPatch, gpu: StandIn) -> None:
    def refuse(self: StreamRecorder, step: Callable[[], None]) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be ...")

    monkeypatch.setattr(StreamRecorder, "capture", refuse)


def no_replay(monkeypatch: pytest.MonkeyPatch, gpu: StandIn) -> None:
    def refuse(self: StreamRecorder, graph: Any, meanwhile: Callable[[], None]) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(StreamRecorder, "replay", refuse)


def late_replay(monkeypatch: pytest.MonkeyPatch, gpu: StandIn) -> None:
    """Steps fail when they are timed."""
    inner = StreamRecorder.replay

    def refuse(self: StreamRecorder, graph: Any, meanwhile: Callable[[], None]) -> None:
        if self.replays == verify.COMPARED + 1:
            raise RuntimeError("CUDA error: late")
        inner(self, graph, meanwhile)

    monkeypatch.setattr(StreamRecorder, "replay", refuse)


class Launch(Exception):
    """As of Triton's launcher, whose errors share no base with torch's."""


def odd(error: Exception) -> Callable[[pytest.MonkeyPatch, StandIn], None]:
    """A capture that ends so."""

    def install(monkeypatch: pytest.MonkeyPatch, gpu: StandIn) -> None:
        def refuse(self: StreamRecorder, step: Callable[[], None]) -> None:
            raise type(error)(*error.args)  # one of its own each time: it keeps the frames that it went through

        monkeypatch.setattr(StreamRecorder, "capture", refuse)

    return install


def odd_replay(monkeypatch: pytest.MonkeyPatch, gpu: StandIn) -> None:
    def refuse(self: StreamRecorder, graph: Any, meanwhile: Callable[[], None]) -> None:
        raise Launch("out of resource: shared memory")

    monkeypatch.setattr(StreamRecorder, "replay", refuse)


def odd_start(monkeypatch: pytest.MonkeyPatch, gpu: StandIn) -> None:
    """A recorder that cannot be made."""

    def refuse(self: StreamRecorder, driver: Any) -> None:
        raise ValueError("Pointer argument (at 3) cannot be accessed from Triton (cpu tensor?)")

    monkeypatch.setattr(StreamRecorder, "__init__", refuse)


COMPILER = "at 12:8:\n    x = tl.load(x_ptr)\n        ^\nunsupported tensor index: bf16"


def no_pinning(monkeypatch: pytest.MonkeyPatch, gpu: StandIn) -> None:
    monkeypatch.setenv("FAKE_CUDA_PIN_LIMIT", "4096")


FAILURES: dict[str, tuple[Callable[[pytest.MonkeyPatch, StandIn], None], str]] = {
    "bits": (falsify, "a step as a graph differs from the same step by hand"),
    "slot": (wrong_slot, "a step as a graph differs from the same step by hand"),
    "capture": (no_capture, "a decode step of 4 sequences cannot be captured in a graph"),
    "replay": (no_replay, "a step as a graph failed: CUDA error: an illegal memory access"),
    "late": (late_replay, "a step as a graph failed: CUDA error: late"),
    "pinning": (no_pinning, "CUDA_ERROR_OUT_OF_MEMORY"),
    "compiler": (odd(Launch(COMPILER)), r"in a graph \(Launch: unsupported tensor index: bf16\)"),
    "assertion": (odd(AssertionError("int32, not float32")), r"in a graph \(AssertionError: int32, not float32\)"),
    "no words": (odd(Launch()), r"in a graph \(Launch\)"),
    "launcher": (odd_replay, "a step as a graph failed: Launch: out of resource: shared memory"),
    "start": (odd_start, r"ValueError: Pointer argument \(at 3\) cannot be accessed from Triton"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_auto_falls_back_with_the_reason_and_asked_ways_end(
    name: str, gpu: StandIn, pace: Pace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(handoff="eager") as plain:
        wanted = [one.token_ids for one in plain.generate(PROMPTS, GREEDY)]
    pace(0.004, 0.003)
    fail, message = FAILURES[name]
    fail(monkeypatch, gpu)
    with load() as llm:
        assert llm.parts.graphed is None
        assert "hand-off: eager, memop was tried, and " in title(llm)
        assert re.search(message, title(llm))
        assert re.search(f"^decode steps run without graphs: memop was tried, and .*{message}", llm.notes[-1])
        assert [one.token_ids for one in llm.generate(PROMPTS, GREEDY)] == wanted
    with pytest.raises(DeviceError, match=f"handoff is 'memop', and .*{message}.*handoff 'eager'") as error:
        load(handoff="memop")
    assert "\n" not in str(error.value)


def test_a_gpu_that_does_not_go_on_is_an_error(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    no_replay(monkeypatch, gpu)

    def refuse(self: verify.Steps, number: int) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(verify.Steps, "by_hand", refuse)
    with pytest.raises(DeviceError, match=r"the GPU does not go on after a trial of graphs .*illegal.*'eager'"):
        load()


def test_asked_for_and_slower_is_said_and_taken(gpu: StandIn, pace: Pace) -> None:
    pace(0.003, 0.004)
    with load(handoff="memop") as llm:
        assert llm.parts.graphed is not None
        assert "same bits as by hand, a step 4.00 ms, by hand 3.00 ms" in title(llm)


# ---- what keeps decode from being graphs


def test_what_auto_does_not_try(gpu: StandIn, pace: Pace, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = pace(0.004, 0.003)
    for options, reason in (
        ({"stream_from": 1}, "stream_from 1 copies the experts of every step, which graphs do not"),
        ({"kernels": "reference"}, "computed by the C++ kernels, and kernels is 'reference'"),
    ):
        with load(**options) as llm:
            assert llm.parts.graphed is None
            assert reason in title(llm)
        told = f"handoff is 'memop': .*{re.escape(reason)}.*: take handoff 'eager', or "
        with pytest.raises(OptionError, match=told):
            load(handoff="memop", **options)
    broken = {name: Trial(name=name, problem="hangs") for name in VARIANTS}
    monkeypatch.setattr(signals, "probe", lambda *_: broken)
    saved_trials.path().unlink(missing_ok=True)
    with load() as llm:
        assert "eager, no way to hand over works in a graph here (memop: hangs; hostfunc: hangs" in title(llm)
    assert not timed


def test_without_a_driver_auto_says_so() -> None:
    with load() as llm:
        assert "eager, graphs are what the stream of a GPU runs, and simulated is no GPU" in title(llm)
        assert llm.parts.memory_plan.spare_pages == 0


def test_decode_steps_whose_experts_are_streamed_go_by_hand(gpu: StandIn) -> None:
    """With two sequences or more all experts are copied; a graph would have the CPU compute them."""
    with load(handoff="memop", stream_from=2) as llm, load(handoff="eager", stream_from=2) as plain:
        assert llm.parts.graphed is not None
        assert llm.parts.graphed.sizes == [1]
        before = gpu.recorders[0].replays
        for count in (1, 3):
            found, wanted = (one.generate(PROMPTS[:count], GREEDY) for one in (llm, plain))
            assert [r.token_ids for r in found] == [r.token_ids for r in wanted]
        assert gpu.recorders[0].replays == before + 7
        assert [p.bytes for p in llm.ledger.passes] == [p.bytes for p in plain.ledger.passes]


# ---- no trace


@pytest.mark.parametrize(("hand", "graph"), [(0.004, 0.003), (0.003, 0.004)])
def test_the_check_leaves_no_trace(hand: float, graph: float, gpu: StandIn, pace: Pace) -> None:
    """No page taken, none known, nothing booked: the first request's account is that of a model without a check."""
    pace(hand, graph)
    with load(n_cpu_moe=3, cpu_moe=False) as llm, load(n_cpu_moe=3, cpu_moe=False, handoff="eager") as plain:
        experts = llm.parts.decoder.experts
        assert isinstance(experts, TieredExperts)
        assert llm.loop.pages.available == len(llm.loop.pages.free) == llm.parts.kv_budget.pages
        assert not llm.loop.pages.page_of
        assert not llm.ledger.passes
        assert experts.offload == llm.parts.memory_plan.offload
        results = [one.generate(PROMPTS, GREEDY) for one in (llm, plain)]
        assert [r.token_ids for r in results[0]] == [r.token_ids for r in results[1]]
        assert [p.bytes for p in llm.ledger.passes] == [p.bytes for p in plain.ledger.passes]


def halves(cache: KVCache) -> list[Tensor]:
    """Keys and values of every layer, by page."""
    return [half for layer in cache.layers if isinstance(layer, KeysAndValues) for half in (layer.k, layer.v)]


def test_the_check_writes_into_the_spare_page_alone(gpu: StandIn, pace: Pace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other page of the cache is what it was before."""
    pace(0.004, 0.003)
    before: list[Tensor] = []
    start = verify.start

    def noted(how: Any, steps: verify.Steps, build: Any) -> Any:
        for half in halves(steps.decoder.cache):
            half.fill_(0.5)
            before.append(half[:-1].clone())
        return start(how, steps, build)

    monkeypatch.setattr(verify, "start", noted)
    with load() as llm:
        after = halves(llm.parts.decoder.cache)
        assert all(torch.equal(half[:-1], one) for half, one in zip(after, before, strict=True))
        assert not all((half[-1] == 0.5).all() for half in after)
