"""The expert cache by itself: places, copies that take their time, bytes by hand, what cannot be asked for."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from busy import undisturbed
from cached import PROMPTS, load, made, recorded, say
from placements import force
from slow_stream import SlowStream, layer_of

from headrace import LLM, MemoryNeeded, OptionError, SamplingParams
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.config import EngineConfig
from headrace.engine.devices.streams import HostStream, PacedStream
from headrace.engine.experts.cache.arrivals import Arrivals
from headrace.engine.experts.cache.shared_memory import SharedMemory, SharedRoom
from headrace.engine.experts.cache.slots import Slots
from headrace.engine.placement.placement import Tier
from headrace.engine.planning.replays import Replays
from headrace.engine.policies.protocol import Asked, Key, Moves, PolicyError, Shape
from headrace.engine.policies.replay.replay import Rates, replay
from headrace.engine.terminal import generate_report
from headrace.engine.traces import stored

Checkpoints = Callable[[str], Path]
CPU = torch.device("cpu")


# ---- places


@pytest.mark.parametrize("seed", range(3))
def test_a_place_is_not_written_before_its_reader_is_done(seed: int) -> None:
    """Two experts take turns in one place, under slow readers and slow copies."""
    bank = layer_of(2, 3, 1)[0]
    main, side = SlowStream(seed, 0.003), SlowStream(seed + 9, 0.003)
    memory = SharedMemory(SharedRoom.of_experts(bank.layout.bytes, [bank.layout.bytes]), CPU)
    slots = Slots(Shape((2,), (bank.layout.bytes,)), [bank.layout], memory, memory.room.rooms(0))
    main.copy = side.copy = lambda to, source: None  # type: ignore[attr-defined]
    side.copy = lambda to, source: side.do(lambda: to.copy_(source))  # type: ignore[attr-defined]
    side.reached = lambda event: event.is_set()  # type: ignore[attr-defined]
    arrivals, seen = Arrivals(slots, [bank], main, side), []  # type: ignore[arg-type,var-annotated]
    place = slots.banks[0]
    assert place is not None
    for turn in range(6):
        ready = arrivals.bring([(0, turn % 2)])
        main.wait(ready)
        main.do(lambda: seen.append(place.data[0].clone()))
        slots.give_back((0, turn % 2))
        arrivals.forget((0, turn % 2))
    for stream in (main, side):
        stream.end()
    assert all(torch.equal(found, bank.data[turn % 2]) for turn, found in enumerate(seen))


def test_a_paced_stream_takes_the_time_of_its_link() -> None:
    link, source, target = (
        PacedStream(1e6),
        torch.arange(20_000, dtype=torch.uint8),
        torch.zeros(20_000, dtype=torch.uint8),
    )
    start = time.perf_counter()
    first = link.stamp()
    link.copy(target, source)
    event, last = link.record(), link.stamp()
    assert not link.reached(event)
    HostStream().wait(event)
    assert time.perf_counter() - start >= 0.02
    assert link.reached(event)
    assert link.seconds(first, last) >= 0.02
    assert torch.equal(target, source)


# ---- time


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[list[int]], Replays]:
    return recorded(tmp_path_factory.mktemp("trace") / "run.trace", 1)


def test_what_is_still_on_its_way_is_computed_in_ram(said: tuple[list[list[int]], Replays]) -> None:
    """Over a link of 3 ms an expert, next-layer's prefetches are late: the count is the same, and so is the text."""
    with load("next-layer", expert_cache="30%", link_limit=0.03) as llm:
        assert say(llm, 1) == said[0]
        cache = llm.parts.expert_cache
        assert cache is not None
        assert cache.late_arrivals > 0
        steps = [one for one in llm.ledger.passes if one.phase == "decode"]
        on_cpu = sum(one.bytes.get("cpu_dram", {}).get("experts", 0) for one in steps)
        late = cache.late_arrivals * said[1].shape.expert_bytes[0]
        assert on_cpu == cache.counts.cpu_bytes + late


@pytest.mark.parametrize("name", ["lru", "admit2", "next-layer"])
@undisturbed
def test_a_replay_says_how_long_it_takes(name: str, said: tuple[list[list[int]], Replays]) -> None:
    """Over a slow link, within 15 %; what a pass takes besides is measured where nothing moves."""
    of, link, params = said[1], 0.005e9, SamplingParams(max_new_tokens=10, ignore_eos=True)

    def seconds(policy: Any, **options: Any) -> tuple[float, int]:
        with load(policy, **options) as llm:
            llm.generate(PROMPTS[1], params)
            took = [one.measured_s for one in llm.ledger.passes if one.phase == "decode"]
            return sum(took), len(took)

    still, steps = seconds("uniform", expert_cache="30%")
    took, _ = seconds(made(name, of), expert_cache="30%", link_limit=0.005)
    first = next(n for n, one in enumerate(of.choices) if n == 19)  # the second prompt's steps are the 20th to 28th
    mine = list(of.choices)[first : first + steps]
    rates = Rates(cpu=1e12, link=link, gpu=1e12, fixed_s=still / steps)
    found = replay(made(name, of), of.shape, int(0.3 * of.shape.nbytes), mine, tokens=steps, rates=rates)
    assert found.seconds == pytest.approx(took, rel=0.15)


# ---- bytes


class Says:
    """Answers that are written down, by layer."""

    name = "says"

    def __init__(self, start: Sequence[Key], answers: dict[int, Moves]) -> None:
        self.first, self.answers = start, answers

    def start(self, shape: Shape, budget: int) -> Iterable[Key]:
        return self.first

    def layer(self, asked: Asked) -> Moves:
        return self.answers.get(asked.layer, Moves()) if asked.step == 0 else Moves()


def test_bytes_of_a_step_worked_out_by_hand(checkpoints: Checkpoints) -> None:
    """qwen3_moe: layers 0 and 2 with 8 experts, top 3, which choose 0, 3, 7 and 1, 2, 4. Of the first layer 3 is in
    VRAM, 7 is fetched and 0 admitted; of the second 4 is in VRAM, 5 comes and 3 of the first one leaves."""
    says = Says([(0, 3), (1, 4)], {0: Moves(fetch=(7,), admit=(0,)), 1: Moves(prefetch=((1, 5),), evict=((0, 3),))})
    options: dict[str, Any] = {"device": "simulated", "dtype": "bfloat16", "expert_cache": "50%"}
    llm = LLM(str(checkpoints("qwen3_moe")), policy=says, **options)
    force(llm, [[0, 3, 7], [1, 2, 4]])
    first, second = llm.generate([[5, 6]], SamplingParams(max_new_tokens=3, ignore_eos=True))[0].ledger[-2:]
    expert, hidden, routing, places = 3 * 32 * 64 * 2, 64 * 4, 3 * (4 + 4), 3 * 4
    assert first.bytes["h2d"]["experts"] == 3 * expert + 2 * hidden
    assert first.bytes["h2d"]["routing"] == 3 * places, "of what was there in either layer, and of what was fetched"
    assert first.bytes["gpu_hbm"]["experts"] == 3 * expert
    assert first.bytes["cpu_dram"]["experts"] == 3 * expert
    assert first.bytes["d2h"] == {"experts": 2 * hidden, "routing": 2 * routing, "samples": 4 + 8}
    assert second.bytes["h2d"]["experts"] == 2 * hidden, "nothing comes; 7 and 0 are there, and 4"
    assert second.bytes["gpu_hbm"]["experts"] == 3 * expert
    assert [work.pairs for work in first.layers] == [{"gpu_hbm": 2, "cpu_dram": 1}, {"gpu_hbm": 1, "cpu_dram": 2}]
    assert [(work.copied, work.behind) for work in first.layers] == [(expert, expert), (0, expert)]


class Stores(Says):
    """The same, and experts on a second GPU."""

    store_bytes = 1 << 20

    def store(self) -> Iterable[Key]:
        return [(0, 0), (0, 3), (1, 1)]


def test_bytes_of_a_step_with_a_store_on_a_second_gpu(checkpoints: Checkpoints) -> None:
    """Of the first layer's 0, 3, 7 the GPU has 3, the store 0 (and 3, which is nearer): 7 is the CPU's. Of the second's
    1, 2, 4 the store has 1."""
    options: dict[str, Any] = {"device": "simulated", "dtype": "bfloat16", "expert_cache": "50%", "second_vram": 0.001}
    llm = LLM(str(checkpoints("qwen3_moe")), policy=Stores([(0, 3)], {}), **options)
    force(llm, [[0, 3, 7], [1, 2, 4]])
    step = llm.generate([[5, 6]], SamplingParams(max_new_tokens=2, ignore_eos=True))[0].ledger[-1]
    expert, hidden = 3 * 32 * 64 * 2, 64 * 4
    assert [work.pairs for work in step.layers] == [
        {"gpu1_hbm": 1, "gpu_hbm": 1, "cpu_dram": 1}, {"gpu1_hbm": 1, "cpu_dram": 2},
    ]  # fmt: skip
    assert step.bytes["gpu1_hbm"] == {"experts": 2 * expert}
    assert step.bytes["d2d"] == {"experts": 4 * hidden, "routing": 2 * 3 * 4}
    assert step.bytes["h2d"]["routing"] == 3 * 3 * 4, "places: of what the GPU has, and of what the store has in either"
    assert step.bytes["cpu_dram"]["experts"] == 3 * expert
    assert llm.parts.expert_cache is not None
    assert llm.parts.expert_cache.counts.store_bytes == 2 * expert
    assert llm.parts.memory_plan.memory[Tier.GPU1].needed["stored experts"] == 1_000_000


def test_prompts_use_what_is_there_and_move_nothing() -> None:
    with load("lru", expert_cache="40%") as llm:
        llm.logits(list(range(5, 40)))
        llm.generate(PROMPTS[:1], SamplingParams(max_new_tokens=1, ignore_eos=True))
        cache, prompt = llm.parts.expert_cache, llm.ledger.passes[0]
        assert cache is not None
        assert cache.counts.choices == 0
        assert prompt.bytes["gpu_hbm"]["experts"] > 0
        assert prompt.bytes["h2d"].get("experts", 0) > 0, "the CPU's sums go up"
        assert all(work.copied == work.behind == 0 for work in prompt.layers)


def test_tokens_beside_a_streamed_prompt_are_told_to_the_policy() -> None:
    """Passes of 8 tokens and more are streamed, also where text is generated in them."""
    options: dict[str, Any] = {"max_sequences": 3, "prefill_chunk": 16, "dtype": "float32"}
    prompts = [[5, 6], list(range(5, 40)), list(range(9, 30))]
    params = SamplingParams(max_new_tokens=9, ignore_eos=True)
    with load("lru", stream_from=8, expert_cache="40%", **options) as llm, load(None, **options) as plain:
        found, wanted = ([one.token_ids for one in each.generate(prompts, params)] for each in (llm, plain))
        assert found == wanted
        streamed = [one for one in llm.ledger.passes if one.phase == "mixed" and one.layers[0].is_streamed]
        assert streamed, "no pass of both"
        cache = llm.parts.expert_cache
        assert cache is not None
        assert cache.steps + 1 == sum(one.phase != "prefill" for one in llm.ledger.passes)


def test_a_layer_that_fails_leaves_the_cache_whole(said: tuple[list[list[int]], Replays]) -> None:
    """Experts that were to leave behind it have left, and those that were to come are there."""
    with load(made("admit2", said[1]), expert_cache="30%") as llm:
        cache, experts = llm.parts.expert_cache, llm.parts.decoder.experts
        assert cache is not None
        inner, calls = experts._on_gpu, [0]  # type: ignore[attr-defined]

        def broken(*args: Any) -> Any:
            calls[0] += 1
            if calls[0] % 40 == 0:
                raise RuntimeError("broken")
            return inner(*args)

        experts._on_gpu = broken  # type: ignore[attr-defined]
        for _ in range(5):
            with pytest.raises(RuntimeError, match="broken"):
                say(llm, 1)
            there = [set(row.nonzero().flatten().tolist()) for row in cache.slots.of_LE >= 0]
            assert there == cache.residents.by_layer
        experts._on_gpu = inner  # type: ignore[attr-defined]
        assert say(llm, 1) == said[0]


# ---- memory and options


def test_the_cache_takes_what_is_left() -> None:
    llm = load("lru", vram_limit=0.012, prefill_chunk=8)
    plan = llm.parts.memory_plan
    assert 0 < plan.expert_cache < sum(plan.experts)
    assert plan.memory[Tier.GPU0].total == 12_000_000
    assert load("lru").parts.memory_plan.expert_cache == sum(plan.experts)
    assert load("lru", expert_cache=0).parts.memory_plan.expert_cache == 0
    assert load("lru", expert_cache="25%").parts.memory_plan.expert_cache == sum(plan.experts) // 4
    with pytest.raises(MemoryNeeded, match=r"expert cache .*give experts less of it \(--expert-cache\)"):
        load("lru", vram_limit=0.012, prefill_chunk=8, expert_cache=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "lru", "device": "cpu"}, "policy is about a GPU, and device is 'cpu'"),
        ({"policy": "lru", "placement": "cpu"}, "placement 'cpu' leaves out every GPU: leave out policy"),
        ({"policy": "lru", "n_cpu_moe": 3}, "policy and n_cpu_moe both say where experts lie"),
        ({"policy": "lru", "tensor_split": "1,1"}, "policy has its cache on one GPU"),
        (
            {"policy": "lru", "expert_cache": "120%"},
            "expert_cache is '120%'; give GB from 0 on, as 8 or 512MB, or a share such as 50%",
        ),
        ({"expert_cache": 3}, r"expert_cache is about a policy: give one \(policy 'lru'\)"),
        ({"policy_trace": "a.trace"}, "policy_trace is about a policy"),
        ({"link_limit": 3, "device": "cuda"}, "link_limit is about a GPU that is played"),
        ({"link_limit": 0, "device": "simulated"}, "link_limit is 0"),
        ({"policy": 7}, "policy is 7; it must be text or a Policy"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        EngineConfig(**options)


def test_policies_that_cannot_be(tmp_path: Path, checkpoints: Checkpoints) -> None:
    """Before a weight is loaded."""
    with pytest.raises(OptionError, match="there is no policy 'mru': take one of all-ram, "):
        load("mru")
    with pytest.raises(OptionError, match="policy 'frequency' needs how often experts are chosen: give a trace"):
        load("frequency")
    with LLM(str(checkpoints("qwen3_moe")), trace=tmp_path / "other.trace") as llm:
        llm.generate([[5, 6]], SamplingParams(max_new_tokens=3, ignore_eos=True))
    with pytest.raises(OptionError, match=r"other.trace: the trace is of 2 layers of 8 experts, the model has 7 of 16"):
        load("frequency", policy_trace=tmp_path / "other.trace")


def test_a_policy_that_learns_from_a_trace(said: tuple[list[list[int]], Replays], tmp_path: Path) -> None:
    with load(None, trace=tmp_path / "run.trace") as llm:
        assert say(llm, 1) == said[0]
    hits = {}
    for name in ("uniform", "frequency", "belady"):
        learns = {} if name == "uniform" else {"policy_trace": tmp_path / "run.trace"}
        with load(name, expert_cache="30%", **learns) as llm:
            assert say(llm, 1) == said[0]
            assert llm.parts.expert_cache is not None
            hits[name] = llm.parts.expert_cache.counts.hit_rate
    assert hits["uniform"] < hits["frequency"] < hits["belady"]


def test_a_start_that_does_not_fit() -> None:
    with pytest.raises(PolicyError, match=r"policy says has .* bytes of experts resident at the start"):
        load(Says([(0, 0), (0, 1)], {}), expert_cache="1%")


# ---- a policy that is chosen


def test_auto_takes_the_best_of_a_trace_that_is_kept(profile: Profile, tmp_path: Path) -> None:
    """Without a trace nothing moves, and it says what to do; with one the choice is a replay's, with its reasons."""
    options: dict[str, Any] = {"expert_cache": "40%", "link_limit": 5}
    with load("auto", **options) as llm:
        cache = llm.parts.expert_cache
        assert cache is not None
        assert cache.policy.name == "uniform"
        (why,) = cache.why
        assert re.fullmatch(r"policy auto: uniform, as long as no trace is kept for \S+: headrace trace record .*", why)
        assert why in str(generate_report.startup_table(llm).title)
    with load(None, trace=tmp_path / "run.trace") as llm:
        wanted = say(llm, 1)
    stored.keep(tmp_path / "run.trace", move=False)
    with load("auto", **options) as llm:
        assert say(llm, 1) == wanted
        cache = llm.parts.expert_cache
        assert cache is not None
        assert cache.why[0].startswith(f"policy auto: {cache.policy.name} for ")
        assert any("belady" in one for one in cache.why)
    with load("auto", policy_trace=tmp_path / "run.trace", **options) as llm:
        assert llm.parts.expert_cache is not None
        assert llm.parts.expert_cache.why == cache.why


def test_auto_needs_rates(profile: Profile) -> None:
    with pytest.raises(OptionError, match=r"policy 'auto' goes by rates .*: run headrace measure, or name a policy"):
        load("auto", expert_cache="40%")


def test_split_fetches_by_the_rates_of_this_machine(profile: Profile) -> None:
    """Reads of 10 GB/s, of which a link of 4 leaves 6: of six missing ones some come."""
    with load("split", expert_cache="40%", link_limit=4) as llm:
        policy: Any = llm.parts.expert_cache and llm.parts.expert_cache.policy
        assert policy.name == "split"
        assert len(policy.fetched) == llm.spec.moe.top_k + 1
    with pytest.raises(OptionError, match="policy 'split' needs rates of link and CPU"):
        load("split", expert_cache="40%")
