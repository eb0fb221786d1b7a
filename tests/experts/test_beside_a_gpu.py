"""Pinned memory, hand-off and graphs behind `LLM`, on a driver without a GPU: tokens, bytes, errors, what is given
back."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import stand_in_gpu
import torch
from busy import HANG_S, regions, undisturbed
from placements import placed
from stand_in_gpu import WORKS, StandIn

from headrace import LLM, DeviceError, EngineConfig, OptionError, SamplingParams
from headrace.engine.bench.random_weights import random_llm
from headrace.engine.core import build as build_module
from headrace.engine.core.experts import made
from headrace.engine.cuda_graphs import saved_trials, signal_choice, signals
from headrace.engine.cuda_graphs.gpu_runtime import find
from headrace.engine.cuda_graphs.signals import Trial
from headrace.engine.devices import device as devices
from headrace.engine.measure import tile_thresholds
from headrace.engine.placement.placement import Tier
from headrace.engine.policies.protocol import Asked, Key, Moves, Shape
from headrace.engine.terminal import generate_report
from headrace.kernels import cpu, reference
from headrace.kernels.context import NEVER, Context
from headrace.kernels.cpu import CpuOps
from headrace.loaders.weights import converted

Checkpoints = Callable[[str], Path]
PROMPTS = ["In the beginning", "And it came to pass, when the children", "Behold,", "The", "And he said unto them"]
GREEDY = SamplingParams(max_new_tokens=12, ignore_eos=True)
SPLIT = {"version": 1, "default": "gpu0", "rules": [{"layers": "0-5", "experts": "0-9", "tier": "cpu"},
                                                    {"layers": 6, "tier": "cpu"}]}  # fmt: skip


@pytest.fixture
def placement(tmp_path: Path) -> dict[str, Any]:
    """Layers with experts on both sides, one with all in RAM, one with none."""
    (tmp_path / "split.json").write_text(json.dumps(SPLIT))
    return {"placement": tmp_path / "split.json"}


def load(**options: Any) -> LLM:
    return LLM("demo", device="simulated", max_context=96, max_sequences=5, **options)


def tokens(llm: LLM, count: int) -> list[list[int]]:
    return [one.token_ids for one in llm.generate(PROMPTS[:count], GREEDY)]


@pytest.fixture
def no_tiles(cache_home: Path) -> None:
    """Dot products for any number of tokens: three sequences in a step of four round like three."""
    if names := Context().tile_tokens:
        tile_thresholds.save(Context(), dict.fromkeys(names, NEVER))


@pytest.fixture
def cpu_only(no_tiles: None) -> dict[int, list[list[int]]]:
    with LLM("demo", max_context=96, max_sequences=5) as llm:
        return {count: tokens(llm, count) for count in (1, 2, 3, 5)}


# ---- graphs


@pytest.mark.parametrize("way", ["memop", "hostfunc"])
def test_the_same_tokens_as_on_the_cpu_for_every_batch(
    way: str, gpu: StandIn, cpu_only: dict[int, list[list[int]]], placement: dict[str, Any]
) -> None:
    for options in ({"cpu_moe": True}, {"n_cpu_moe": 3}, placement, {"placement": "gpu"}):
        with load(handoff=way, **options) as llm:
            assert llm.parts.graphed is not None
            for count, wanted in cpu_only.items():
                before = gpu.recorders[-1].replays
                assert tokens(llm, count) == wanted, (options, count)
                assert gpu.recorders[-1].replays == before + 11, "decode steps ran without graphs"


def test_bytes_equal_those_of_the_eager_path(gpu: StandIn, placement: dict[str, Any], no_tiles: None) -> None:
    """Pass by pass, on every memory and link: all experts in RAM, layers split between both, all on the GPU; a batch
    that fills a graph, and one that is padded."""
    for options in ({"cpu_moe": True}, {"n_cpu_moe": 3}, placement, {"placement": "gpu"}):
        with load(handoff="eager", **options) as eager, load(handoff="memop", **options) as graphed:
            for count in (1, 2, 3):
                assert tokens(eager, count) == tokens(graphed, count)
            assert len(graphed.ledger.passes) == len(eager.ledger.passes)
            for one, other in zip(eager.ledger.passes, graphed.ledger.passes, strict=True):
                assert one.bytes == other.bytes, (options, one.index, one.phase)


@pytest.mark.parametrize(
    "options",
    [
        {"n_cpu_moe": 0, "tensor_split": "1,1"},
        {"n_cpu_moe": 2, "tensor_split": "1,1"},
        {"n_cpu_moe": 1, "tensor_split": "0,1"},
        {"placement": "file"},
    ],
    ids=str,
)
def test_graphs_go_over_two_gpus(options: dict[str, Any], gpu: StandIn, tmp_path: Path, no_tiles: None) -> None:
    """The second one has the experts of half of the layers, of all, or some of a layer beside the first one's and those
    in RAM: tokens, and bytes on every memory and link, are those of steps by hand."""
    options = placed(options, tmp_path)
    with load(handoff="eager", **options) as eager, load(handoff="memop", **options) as graphed:
        assert graphed.parts.graphed is not None
        assert graphed.parts.graphed.experts.second is not None
        for count in (1, 3):
            before = gpu.recorders[-1].replays
            assert tokens(eager, count) == tokens(graphed, count)
            assert gpu.recorders[-1].replays == before + 11
        for one, other in zip(eager.ledger.passes, graphed.ledger.passes, strict=True):
            assert one.bytes == other.bytes, (one.index, one.phase)
        assert "d2d" in one.bytes


class Stores:
    """Has an expert of a layer in the first GPU's memory, and others in the second one's, one of them too."""

    name, store_bytes = "stores", 4 << 20

    def start(self, shape: Shape, budget: int) -> Iterable[Key]:
        return [(0, 3), (1, 5)]

    def layer(self, asked: Asked) -> Moves:
        return Moves()

    def store(self) -> Iterable[Key]:
        return [(layer, expert) for layer in (0, 2, 3) for expert in range(9)]


def test_a_store_on_a_second_gpu_is_asked_in_the_graph(gpu: StandIn, no_tiles: None) -> None:
    """Of layers with experts in all three memories, in two and in RAM alone."""
    options: dict[str, Any] = {"expert_cache": "20%", "second_vram": 0.01}
    with load(handoff="eager", policy=Stores(), **options) as eager, \
         load(handoff="memop", policy=Stores(), **options) as graphed:  # fmt: skip
        assert graphed.parts.graphed is not None
        second = graphed.parts.graphed.experts.second
        assert second is not None
        assert len(second.banks) == 3
        for count in (1, 3):
            assert tokens(eager, count) == tokens(graphed, count)
        memories = ("cpu_dram", "gpu_hbm", "gpu1_hbm")
        for one, other in zip(eager.ledger.passes, graphed.ledger.passes, strict=True):
            assert [one.bytes.get(name) for name in memories] == [other.bytes.get(name) for name in memories]
        assert one.bytes["gpu1_hbm"]["experts"] > 0
        assert one.bytes["d2d"]["experts"] == other.bytes["d2d"]["experts"]


def test_the_rows_of_a_table_on_the_gpu_are_looked_up_in_the_graph(gpu: StandIn) -> None:
    with load(handoff="memop", placement="gpu") as llm:
        assert llm.parts.graphed is not None
        assert llm.parts.graphed.mailbox is None
        assert all(static.inputs.x_TD is None for static in llm.parts.graphed.graphs.statics)
        tokens(llm, 1)
    with load(handoff="memop", cpu_moe=True) as llm:
        assert llm.parts.graphed is not None
        assert all(static.inputs.x_TD is not None for static in llm.parts.graphed.graphs.statics) == (
            not llm.spec.tied_head
        )


@undisturbed
def test_a_worker_that_hangs_is_an_error_that_names_the_layer(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else holds the team for longer than the timeout."""
    monkeypatch.setattr(build_module, "HANDOFF_TIMEOUT", 0.4)
    with load(handoff="memop", cpu_moe=True, threads=1) as llm:
        stream = llm.stream(PROMPTS[0], GREEDY)
        next(stream)
        next(stream)
        held = threading.Thread(target=cpu.region_ns, args=(llm.parts.context, regions(llm.parts.context, 2.0)))
        assert llm.parts.graphed is not None
        mail, jobs = llm.parts.graphed.experts.mail, []
        assert mail is not None
        pack = mail.pack

        def hold(*job: Any) -> None:
            """The GPU writes the third layer's job; from now on the team is busy."""
            jobs.append(job)
            if len(jobs) == 3:
                held.start()
                time.sleep(0.1)
            pack(*job)

        monkeypatch.setattr(mail, "pack", hold)
        with pytest.raises(DeviceError, match=r"no result for the experts of layer 2 \(batch of 1\) within 0\.[4-9] s"):
            next(stream)
        held.join()
        with pytest.raises(DeviceError, match="Load the model again"):
            tokens(llm, 1)


def test_after_close_a_step_is_refused_and_nothing_stays_registered(gpu: StandIn, log: Path) -> None:
    llm = load(handoff="memop", cpu_moe=True)
    tokens(llm, 1)
    llm.close()
    calls = [line.split()[0] for line in log.read_text().splitlines()]
    assert calls.count("register") == calls.count("unregister") == 3, "experts, mailbox, results"
    with pytest.raises(DeviceError, match="closed: load the model again"):
        tokens(llm, 1)
    llm.close()


def test_a_forced_choice_is_not_recorded(gpu: StandIn) -> None:
    with load(handoff="memop", cpu_moe=True) as llm:
        asked: list[int] = []
        llm.parts.decoder.choose = lambda layer, choice: asked.append(layer) or choice  # type: ignore[func-returns-value]
        before = gpu.recorders[-1].replays
        tokens(llm, 1)
        assert gpu.recorders[-1].replays == before
        assert len(asked) == 12 * len(llm.spec.layers)


def test_a_table_that_is_the_head_lies_where_the_head_does(checkpoints: Checkpoints) -> None:
    """Looked up by the device that has it, whatever lies in RAM."""
    for variant, is_head in (("granitemoe", True), ("qwen3_moe", False)):
        with LLM(str(checkpoints(variant)), device="simulated", cpu_moe=True) as llm:
            assert llm.spec.tied_head == is_head
            assert (llm.parts.decoder.device_inputs.table is llm.parts.main) == is_head
            assert ("embedding" in llm.parts.memory_plan.memory[Tier.CPU].needed) != is_head


def test_a_team_leaves_a_core_to_python_where_layers_run_by_hand() -> None:
    """Of three and more; sums do not depend on the number of threads."""
    for threads, left in ((16, 15), (3, 2), (2, 2), (1, 1)):
        context = Context(threads=threads)
        ops = CpuOps(context)
        assert made.leave_a_core(context, ops) == ops.context == dataclasses.replace(context, threads=left)
    assert made.leave_a_core(Context(threads=4), reference).threads == 4  # type: ignore[arg-type]


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _number: (9, 0))


def test_auto_takes_the_gpu_that_is_there(one_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[EngineConfig] = []

    def of_these(config: EngineConfig, count: int) -> list[devices.Device]:
        asked.append(config)
        return [
            devices._simulated(Tier.GPU0, EngineConfig(device="simulated"), devices.ram(reference, "reference", config))
        ]

    monkeypatch.setattr(devices, "_gpus", of_these)
    with LLM("demo", max_context=64) as llm:
        assert llm.parts.main.tier is Tier.GPU0
        assert generate_report.startup_table(llm).caption is None
    assert [config.device for config in asked] == ["auto"]
    for without in ({"device": "cpu"}, {"placement": "cpu"}):
        with LLM("demo", max_context=64, **without) as llm:
            assert list(llm.parts.devices) == [Tier.CPU]


@pytest.mark.parametrize(
    ("module", "name", "value", "reason"),
    [
        (devices, "_has_triton", False, "its kernels need Triton, which is not installed: pip install"),
        (torch.cuda, "get_device_capability", (7, 5), "it is of compute capability 7.5, and the kernels need 8.0"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_named(
    one_gpu: None, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, value: Any, reason: str
) -> None:
    """`auto` takes the CPU then, and says why."""
    monkeypatch.setattr(module, name, lambda *_: value)
    for device, is_said in (("auto", True), ("cpu", False)):
        with LLM("demo", max_context=64, device=device) as llm:
            assert list(llm.parts.devices) == [Tier.CPU]
            caption = str(generate_report.startup_table(llm).caption)
            assert (f"there is a GPU, which is not used: {reason}" in caption) == is_said


def test_without_a_gpu_auto_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with LLM("demo", max_context=64) as llm:
        assert generate_report.startup_table(llm).caption is None


# ---- the choice


def test_by_hand_where_that_was_asked_for(gpu: StandIn) -> None:
    with load(cpu_moe=True, handoff="eager") as llm:
        assert llm.parts.graphed is None
        assert llm.parts.memory_plan.spare_pages == 0
        assert "hand-off: eager, asked for" in str(generate_report.startup_table(llm).title)


def test_the_table_names_the_way_and_the_times(gpu: StandIn) -> None:
    with load(cpu_moe=True, handoff="hostfunc") as llm:
        title = str(generate_report.startup_table(llm).title)
        assert "hand-off: hostfunc, asked for (memop 5.0 us; hostfunc 60.0 us; spin 9.0 us; eager 3.0 us)" in title
        rows = {row[0]: row for row in generate_report.placement_rows(llm)}
        assert rows["mailbox"][1] == "RAM pinned"
        assert rows["mailbox"][4] == "hostfunc"


def test_graphs_need_a_gpu(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.engine.cuda_graphs.gpu_runtime.find", find)
    with pytest.raises(OptionError, match=r"handoff is 'memop'.*simulated is no GPU.*take handoff 'eager'"):
        load(handoff="memop", n_cpu_moe=2)
    with pytest.raises(OptionError, match="handoff is 'shout'; choose one of auto, memop, hostfunc, spin, eager"):
        load(handoff="shout")
    for option in ({"handoff": "memop"}, {"pinned_limit": 3}):
        with pytest.raises(OptionError, match=f"{next(iter(option))} is about a GPU, and device is 'cpu'"):
            LLM("demo", device="cpu", **option)  # type: ignore[arg-type]


def test_a_way_that_does_not_work_ends_the_start(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {**WORKS, "memop": Trial(name="memop", problem="no answer within 5 s (captured jobs)")}
    monkeypatch.setattr(signals, "probe", lambda *_: broken)
    with pytest.raises(DeviceError, match=r"'memop' does not work here .*no answer within 5 s"):
        load(handoff="memop", cpu_moe=True)


def test_the_probe_is_asked_once_for_a_machine(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real probe, on the fake driver: kept; asked again for another GPU, another build, and what did not work."""
    made, asked = stand_in_gpu.StandIn(library), []
    runtime, _ = made.find(None)  # type: ignore[arg-type]
    probe = signals.probe

    def counted(*arguments: Any) -> dict[str, Trial]:
        asked.append(arguments)
        return probe(*arguments, stage=HANG_S) if len(asked) == 1 else WORKS

    monkeypatch.setattr(signals, "probe", counted)
    first = signal_choice.trials("memop", runtime, 4)
    assert first["memop"].us is not None
    assert signal_choice.trials("hostfunc", runtime, 4) == first
    assert asked == [(library, 0, 4)]
    signal_choice.trials("memop", dataclasses.replace(runtime, name="another"), 4)
    monkeypatch.setattr(saved_trials, "kernels_digest", lambda: "another")
    signal_choice.trials("memop", runtime, 4)
    assert len(asked) == 3
    saved_trials.keep_trials(runtime, {**WORKS, "memop": Trial(name="memop", problem="hangs")})
    assert signal_choice.trials("hostfunc", runtime, 4)["memop"].problem == "hangs"
    assert signal_choice.trials("memop", runtime, 4) == WORKS
    saved_trials.path().write_text('{"trials": [3]}')
    signal_choice.trials("memop", runtime, 4)
    assert len(asked) == 5


# ---- pinned memory


@pytest.mark.parametrize("format", ["native", "q4_0"])
def test_experts_in_ram_are_pinned_while_they_are_loaded(format: str, gpu: StandIn, log: Path) -> None:
    with load(handoff="eager", n_cpu_moe=3, expert_format=format) as llm:
        assert llm.parts.expert_arena is not None
        assert llm.parts.expert_arena.report is not None
        assert (
            llm.parts.expert_arena.report.pinned
            == llm.parts.expert_arena.report.total
            == sum(llm.parts.memory_plan.bytes_in_ram)
            > 0
        )
        banks = [layer.experts.banks["cpu"] for layer in llm.parts.weights.layers[:3]]  # type: ignore[union-attr]
        assert all(llm.parts.expert_arena.is_pinned(bank.data) for bank in banks)
        shown = {row[0]: row for row in generate_report.placement_rows(llm)}
        assert [row[1] for row in shown.values() if "experts" in row[0]] == ["gpu0", "RAM pinned"]
        assert len(set(shown["pinned"][3].split(" of "))) == 1
        assert "pinned: all experts in RAM" in str(generate_report.startup_table(llm).title)
        assert not log.read_text().count("unregister")
    assert log.read_text().count("unregister") == 1


def test_a_limit_leaves_layers_pageable_and_says_what_that_costs(gpu: StandIn) -> None:
    with load(handoff="eager", n_cpu_moe=4) as whole:
        layer = whole.parts.memory_plan.bytes_in_ram[0]
    with load(handoff="eager", n_cpu_moe=4, pinned_limit=(2 * layer + 5000) / 1e9) as llm:
        assert llm.parts.expert_arena is not None
        assert llm.parts.expert_arena.report is not None
        assert llm.parts.expert_arena.report.pinned == 2 * layer
        title = str(generate_report.startup_table(llm).title)
        assert "experts are not pinned (the limit is" in title
        assert "go through a buffer of the driver, and hold up other work" in title
    with load(handoff="eager", n_cpu_moe=4, pinned_limit=0) as none:
        shown = [row[1] for row in generate_report.placement_rows(none) if "experts" in row[0]]
        assert shown == ["gpu0", "RAM pageable"]


def test_a_driver_that_refuses_ends_nothing(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA_PIN_LIMIT", "4096")
    with load(handoff="eager", n_cpu_moe=3) as llm:
        assert "CUDA_ERROR_OUT_OF_MEMORY" in str(generate_report.startup_table(llm).title)
        assert tokens(llm, 1)


def test_without_a_driver_nothing_is_pinned_and_the_table_says_why() -> None:
    with load(handoff="eager", n_cpu_moe=3) as llm:
        title = str(generate_report.startup_table(llm).title)
        assert "experts in RAM are not pinned: simulated is no GPU that a driver knows" in title
    with load(placement="gpu") as llm:
        assert llm.parts.expert_arena is None


def test_blocks_with_padding_and_converted_files_are_pinned_too(
    gpu: StandIn, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """olmoe's experts end inside 64 bytes or not; a converted file brings whole blocks; random weights whole banks."""
    for source in ("qwen3_moe", "olmoe"):
        with LLM(str(checkpoints(source)), device="simulated", cpu_moe=True) as llm:
            assert llm.parts.expert_arena is not None
            assert llm.parts.expert_arena.report is not None
            assert llm.parts.expert_arena.report.pinned == sum(llm.parts.memory_plan.bytes_in_ram)
    with LLM("demo", max_context=64, expert_format="q8_0") as whole:
        converted.save(
            whole.parts.checkpoint.directory, tmp_path / "q8", whole.parts.weights, whole.parts.checkpoint.formats
        )
    with LLM(str(tmp_path / "q8"), device="simulated", max_context=64, n_cpu_moe=2) as llm:
        assert llm.parts.expert_arena is not None
        assert llm.parts.expert_arena.report is not None
        assert llm.parts.expert_arena.report.pinned == sum(llm.parts.memory_plan.bytes_in_ram) > 0
    with random_llm("demo", device="simulated", max_context=64, cpu_moe=True, handoff="memop") as random:
        assert random.parts.expert_arena is not None
        assert random.parts.expert_arena.report is not None
        assert random.parts.expert_arena.report.pinned == sum(random.parts.memory_plan.bytes_in_ram) > 0
        assert random.generate([[3, 4]], GREEDY)
