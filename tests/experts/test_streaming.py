"""Experts of RAM computed on the GPU: buffers that are never overwritten too early, the same tokens, bytes by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import placements
import pytest
import torch
from busy import undisturbed
from expected_bytes import PassShape, placed_bytes
from late_streams import Log, a_gpu, is_right
from placements import force, placed, recorded
from slow_stream import SlowStream, layer_of
from terminal import folded

from headrace import LLM, MemoryNeeded, OptionError, SamplingParams
from headrace.engine.bandwidth_model import link_rate as link_rates
from headrace.engine.bandwidth_model.hardware import core_flops
from headrace.engine.bandwidth_model.link_rate import link_rate, nominal
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.config import EngineConfig
from headrace.engine.devices import streams
from headrace.engine.devices.pcie import PciLink
from headrace.engine.devices.streams import HostStream
from headrace.engine.experts import offload_plan
from headrace.engine.experts.offload_plan import OffloadPlan, cpu_seconds, crossover, distinct_of
from headrace.engine.experts.streaming import Ring, by_number, chosen_numbers, piece_of, runs
from headrace.engine.memory import kv_budget
from headrace.engine.model.kv_cache import pages_for
from headrace.engine.placement.placement import Tier
from headrace.engine.terminal import generate_report
from headrace.kernels import FORMATS, ExpertLayout, reference
from headrace.kernels.context import ISA, THREADS, Context

Checkpoints = Callable[[str], Path]
Run = Callable[..., tuple[int, str, str]]
PROMPTS = ["In the beginning", "And it came to pass, when the children", "Behold,"]
GREEDY = SamplingParams(max_new_tokens=24, ignore_eos=True)
PLACEMENTS = {name: placements.PLACEMENTS[name] for name in ("cpu-moe", "half", "gpu", "split", "file")}


# ---- pieces of the ring


def test_runs_of_neighbours() -> None:
    assert list(runs([0, 1, 2, 5, 7, 8])) == [(0, 3), (5, 1), (7, 2)]
    assert list(runs([4])) == [(4, 1)]
    assert list(runs([])) == []


def test_how_many_experts_a_buffer_holds() -> None:
    assert piece_of(128, 2_654_208) == 25, "64 MB hold 25 experts of Qwen3-30B-A3B in q4_0"
    assert piece_of(16, 1000) == 4, "a quarter of a small layer"
    assert piece_of(8, 100 << 20) == 1, "one that is larger than a piece"


def streamed(main: Any, side: Any, rounds: int = 6) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The same layer several times through a ring of 2 x 3 experts: the sums of each, and what they should be."""
    bank, x, ids, weights = layer_of(11, 7, 4)
    numbers = chosen_numbers(ids, 11)
    assert len(numbers) > 6, "more than both buffers hold"
    ring = Ring(bank.layout, 3, reference, torch.device("cpu"), main, side)  # type: ignore[arg-type]
    sums = [torch.zeros_like(x) for _ in range(rounds)]
    for y in sums:
        ring.add(y, x, ids, weights, bank, by_number(numbers, 3, 11))
    for stream in (side, main):
        if isinstance(stream, SlowStream):
            stream.end()
    return sums, reference.experts(x, ids, weights, bank)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("copies_s", "computes_s"), [(0.0, 0.004), (0.004, 0.0), (0.003, 0.003)])
def test_no_buffer_is_overwritten_before_its_reader_is_done(seed: int, copies_s: float, computes_s: float) -> None:
    """Slow readers, slow copies, both by chance."""
    sums, wanted = streamed(SlowStream(seed, computes_s), SlowStream(seed + 100, copies_s))
    assert is_right(sums, wanted)
    assert all(torch.equal(y, sums[0]) for y in sums)


@pytest.mark.parametrize("deaf", ["main", "side"])
@undisturbed
def test_without_waiting_the_sums_are_wrong(deaf: str) -> None:
    """That the test above can fail: one stream does not heed the other's marks."""
    main = SlowStream(1, 0.003 if deaf == "side" else 0.0, heeds=deaf != "main")
    side = SlowStream(2, 0.003 if deaf == "main" else 0.0, heeds=deaf != "side")
    assert not is_right(*streamed(main, side))


def test_in_ram_everything_is_done_at_once() -> None:
    assert is_right(*streamed(HostStream(), HostStream()))


def test_one_copy_for_each_run_of_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers 0 1 2 | 5 | 6 | 9 10 through buffers of three: runs 0-2, 5, 6, 9-10."""
    bank, x, _, _ = layer_of(11, 1, 1)
    seen: list[int] = []
    plain = torch.Tensor.copy_

    def copy(target: torch.Tensor, source: torch.Tensor, *more: Any, **options: Any) -> torch.Tensor:
        if source.shape[1:] == bank.data.shape[1:]:
            seen.append(len(source))
        return plain(target, source, *more, **options)

    ring = Ring(bank.layout, 3, reference, torch.device("cpu"), HostStream(), HostStream())  # type: ignore[arg-type]
    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    nobody = torch.full((1, 1), -1, dtype=torch.int32)
    ring.add(torch.zeros_like(x), x, nobody, torch.ones(1, 1), bank, by_number([0, 1, 2, 5, 6, 9, 10], 3, 11))
    assert seen == [3, 1, 1, 2]


def test_the_order_on_cuda_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pieces through two buffers: the third copy waits for what the first compute sets."""
    log = Log(monkeypatch)
    bank, x, ids, weights = layer_of(5, 3, 4)
    device = a_gpu()
    main, side = streams.of(device)
    ring = Ring(bank.layout, 2, reference, torch.device("cpu"), main, side)  # type: ignore[arg-type]
    y = torch.zeros_like(x)
    ring.add(y, x, ids, weights, bank, by_number(range(5), 2, 5))
    assert is_right([y], reference.experts(x, ids, weights, bank))
    assert log.lines == [
        "main sets 0", "main sets 1",
        "side waits for 0", "side works", "side sets 2",
        "side waits for 1", "side works", "side sets 3",
        "main waits for 2", "main works", "main sets 4",
        "side waits for 4", "side works", "side sets 5",
        "main waits for 3", "main works", "main sets 6",
        "main waits for 5", "main works", "main sets 7",
    ]  # fmt: skip


# ---- the model


@pytest.fixture(scope="module")
def cpu_only() -> dict[str, list[list[int]]]:
    """What the demo model says in RAM alone: to each prompt alone, and to all as a batch."""
    llm = LLM("demo", max_context=128)
    return {"alone": [r.token_ids for p in PROMPTS for r in llm.generate(p, GREEDY)],
            "batch": [r.token_ids for r in llm.generate(PROMPTS, GREEDY)]}  # fmt: skip


MOVES: dict[str, dict[str, Any]] = {
    "streamed prompts": {"stream_from": 4},
    "all streamed": {"stream_from": 1},
}


# Every placement with both chunks and with both moves, and every chunk with every move.
PAIRS = [
    (name, chunk, moved)
    for number, name in enumerate(PLACEMENTS)
    for chunk, moved in zip((3, 512), MOVES if number % 2 else reversed(MOVES), strict=True)
]


@pytest.mark.parametrize(("name", "chunk", "moved"), PAIRS)
def test_every_placement_says_the_same(
    name: str, chunk: int, moved: str, cpu_only: dict[str, list[list[int]]], tmp_path: Path
) -> None:
    options = {**placed(PLACEMENTS[name], tmp_path), **MOVES[moved]}
    llm = LLM("demo", device="simulated", max_context=128, prefill_chunk=chunk, **options)
    assert [r.token_ids for p in PROMPTS for r in llm.generate(p, GREEDY)] == cpu_only["alone"]
    assert [r.token_ids for r in llm.generate(PROMPTS, GREEDY)] == cpu_only["batch"]


def test_the_cpu_computes_nothing_while_experts_are_streamed() -> None:
    llm = LLM("demo", device="simulated", max_context=64, cpu_moe=True, stream_from=2)

    def refused(*args: Any) -> torch.Tensor:
        raise AssertionError("the CPU's op was called")

    host = llm.parts.devices[Tier.CPU]
    ops = type("Ops", (), {"experts": staticmethod(refused)})
    llm.parts.decoder.experts.devices = {**llm.parts.devices, Tier.CPU: dataclasses.replace(host, ops=ops)}  # type: ignore[attr-defined]
    ids = list(range(5, 25))
    assert torch.isfinite(llm.logits(ids)).all()
    with pytest.raises(AssertionError, match="the CPU's op was called"):
        llm.logits([5])


# ---- the account


EXPERT, ROUTING = 3 * 32 * 64 * 2, 3 * (4 + 4)  # bytes of an expert in bf16; of a token's ids and weights


def by_hand(checkpoints: Checkpoints, **options: Any) -> LLM:
    """qwen3_moe: hidden 64, layers 0 and 2 with 8 experts 32 wide in RAM, layer 1 dense, top 3."""
    llm = LLM(str(checkpoints("qwen3_moe")), device="simulated", cpu_moe=True, dtype="bfloat16", **options)
    force(llm, [[0, 3, 7], [1, 2, 4]])
    return llm


def test_bytes_of_a_streamed_prompt_worked_out_by_hand(checkpoints: Checkpoints) -> None:
    """Four tokens: layer 0 is streamed, of layer 2 one token's row goes on, by the CPU."""
    llm = by_hand(checkpoints, stream_from=2)
    plain = by_hand(checkpoints)
    params = SamplingParams(max_new_tokens=1, ignore_eos=True)
    one, other = (each.generate([[5, 6, 7, 8]], params)[0].ledger[0] for each in (llm, plain))
    hidden = 64 * 4
    assert one.bytes["h2d"]["experts"] == 3 * EXPERT + hidden
    assert one.bytes["gpu_hbm"]["experts"] == 3 * EXPERT
    assert one.bytes["cpu_dram"]["experts"] == 3 * EXPERT
    assert one.bytes["d2h"] == {"experts": hidden, "routing": 4 * 3 * 4 + ROUTING, "samples": 4 + 8}
    assert other.bytes["h2d"]["experts"] == 4 * hidden + hidden
    assert "experts" not in other.bytes["gpu_hbm"]
    assert other.bytes["cpu_dram"]["experts"] == 6 * EXPERT
    assert other.bytes["d2h"]["routing"] == 5 * ROUTING


@pytest.mark.parametrize("moved", MOVES)
@pytest.mark.parametrize("name", PLACEMENTS)
def test_counted_bytes_equal_the_prediction(name: str, moved: str, tmp_path: Path) -> None:
    """Every pass of a batch with its own routing and chunks, on every memory and link."""
    options = {**placed(PLACEMENTS[name], tmp_path), **MOVES[moved]}
    llm = LLM("demo", device="simulated", max_context=128, prefill_chunk=16, **options)
    seen, shapes = recorded(llm)
    prompts = [list(range(3, 43)), [4, 5], [7]]
    llm.generate(prompts, SamplingParams(max_new_tokens=6, ignore_eos=True))
    longest = [pages_for(len(p) + 6) for p in prompts]
    for done in llm.ledger.passes:
        contexts, rows = shapes[done.index]
        shape = PassShape(
            tokens=done.tokens, contexts=contexts, rows=rows, pages=max(longest[s] for s in done.sequences)
        )
        chosen = [seen[done.index].get(layer, []) for layer in range(len(llm.spec.layers))]
        formats, decided = llm.parts.checkpoint.formats, llm.parts.memory_plan.offload
        assert done.bytes == placed_bytes(
            llm.spec, formats, llm.parts.kv_format, llm.parts.placement, shape, chosen, decided
        )


# ---- where it pays


def rates(profile: Profile, **more: Any) -> Profile:
    """10 GB/s for everything; 16 tokens of an expert take four times as long as one, 2 no longer."""
    crowd = {"2": dict.fromkeys(FORMATS, 1e10), "16": dict.fromkeys(FORMATS, 0.25e10)}
    return dataclasses.replace(profile, crowd=crowd, **more)


def test_the_threshold_worked_out_by_hand(profile: Profile) -> None:
    """One expert of a layer is 3 x 16 x 32 x 2 bytes, all tokens choose all of 4: an expert has t tokens. Time of the
    CPU over the link's is (2.5 / 10) x (1 + (t - 2) 3 / 14), plus hidden states: 2 t 32 x 4 bytes to 4 x 3072."""

    class Spec:
        hidden = 32

        class moe:
            experts, top_k, width = 4, 4, 16

    spec: Any = Spec
    layout = ExpertLayout(format=FORMATS["bf16"], hidden=32, width=16)
    assert layout.bytes == 3072
    assert distinct_of(spec, 3) == 4
    wanted = next(t for t in range(2, 99) if 0.25 * (1 + (t - 2) * 3 / 14) + 256 * t / 12288 > 1)
    assert wanted == 12, "0.79 + 0.25; with 11 tokens 0.73 + 0.23"
    assert crossover(spec, layout, rates(profile), 2.5e9, 512, Context()) == wanted
    assert crossover(spec, layout, rates(profile), 2.5e9, wanted - 1, Context()) is None
    assert crossover(spec, layout, rates(profile), 20e9, 512, Context()) == 1, (
        "a link that is faster than the CPU's memory"
    )
    seconds = 4 * 3072 / 0.25e10 + 2 * 16 * 128 / 2.5e9
    assert cpu_seconds(spec, layout, rates(profile), 2.5e9, 16, Context()) == pytest.approx(seconds)


def test_what_is_decided_for_a_gpu(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured, not measured, and asked for; the notes say which."""
    monkeypatch.setattr(link_rates, "bus_address", lambda number: "none")
    spec, devices = LLM("demo", max_context=32).spec, {Tier.GPU0: a_gpu()}
    layout = ExpertLayout(format=FORMATS["bf16"], hidden=spec.hidden, width=spec.moe.width)

    def decided(profile: Profile | None, **options: Any) -> OffloadPlan:
        return offload_plan.plan(EngineConfig(device="cuda", **options), spec, [layout], devices, profile)

    copies = {"gpu0 h2d pinned": 4e9, "gpu0 hbm": 1e12}
    fast = rates(profile, copies=copies, stream=20e9)
    found = decided(fast)
    assert found.stream_from == crossover(spec, layout, fast, 4e9, 512, Context())
    assert found.stream_from is not None
    assert f"passes from {found.stream_from} tokens on (link 4.0 GB/s measured; CPU measured)" in found.notes[0]
    old = decided(dataclasses.replace(fast, kernels="other"))
    assert "CPU measured, with other kernels (headrace measure)" in old.notes[0]
    pair = {"experts bf16": 9e9, "gpu0 h2d pinned": 3e9, "experts bf16 alone": 1e10, "gpu0 h2d pinned alone": 4e9}
    both = decided(dataclasses.replace(fast, together={"experts bf16 + gpu0 h2d pinned": pair}))
    assert both.stream_from == found.stream_from, "alone, all go over the link or none does"
    nominal_link = decided(rates(profile))
    assert "not measured, 80% of PCIe 3.0 x16, a guess" in nominal_link.notes[0]
    flops = core_flops("avx512").times(8).mid
    monkeypatch.setattr(offload_plan, "assumed_flops", lambda context: flops)
    link = nominal(None).bytes_s
    wanted = next(
        t
        for t in range(1, 10**4)
        if distinct_of(spec, t) * layout.bytes / link
        < t * (spec.moe.top_k * 6 * spec.hidden * spec.moe.width / flops + 2 * spec.hidden * 4 / link)
    )
    assert wanted > 1
    unknown = decided(None, prefill_chunk=wanted)
    assert unknown.stream_from == wanted
    assert "this CPU is not measured (headrace measure)" in unknown.notes[0]
    assert f"{THREADS} cores of {ISA}, {flops / 1e12:.2f} TFLOP/s assumed" in unknown.notes[0]
    assert decided(None, prefill_chunk=wanted - 1).stream_from is None, "never for passes that the CPU takes less for"
    slow = decided(rates(profile, copies={**copies, "gpu0 h2d pinned": 1e6}))
    assert slow.stream_from is None
    assert "with up to 512 the CPU is faster" in slow.notes[0]
    assert decided(None, stream_from="never").stream_from is None


def test_rates_of_a_link(profile: Profile) -> None:
    gen4 = PciLink(device="GPU 0000:01:00.0", lanes=16, most_lanes=16, speed=2.5, most_speed=16.0)
    rate = nominal(gen4)
    assert rate.bytes_s == pytest.approx(0.8 * 16 * 1.969e9)
    assert not rate.is_measured
    assert "80% of PCIe 4.0 x16" in rate.source
    narrow = nominal(dataclasses.replace(gen4, lanes=4, most_speed=32.0))
    assert narrow.bytes_s == pytest.approx(0.8 * 4 * 3.938e9)
    assert "a guess" in nominal(None).source
    copies = {"gpu1 h2d pinned": 50e9, "gpu1 hbm": 3e12}
    measured = link_rate(dataclasses.replace(profile, copies=copies), torch.device("cuda", 1))
    assert (measured.bytes_s, measured.gpu_bytes_s, measured.is_measured) == (50e9, 3e12, True)


def test_a_link_is_found_by_its_address(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = type("Properties", (), {"pci_domain_id": 0, "pci_bus_id": 0x41, "pci_device_id": 0})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    links = [
        PciLink(device=f"GPU 0000:{bus}:00.0", lanes=16, most_lanes=16, speed=8.0, most_speed=speed)
        for bus, speed in (("01", 8.0), ("41", 32.0))
    ]
    assert "PCIe 5.0 x16" in link_rate(profile, torch.device("cuda", 0), links).source
    assert "a guess" in link_rate(None, torch.device("cuda", 0), links[:1]).source


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stream_from": 0}, "stream_from is 0; give a whole number of at least 1, or auto or never"),
        ({"stream_from": "sometimes"}, "stream_from is 'sometimes'"),
        ({"stream_from": True}, "stream_from is True"),
        ({"stream_from": 8, "placement": "cpu"}, "placement 'cpu' leaves out every GPU: leave out stream_from"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        EngineConfig(**options)


def test_an_option_about_copies_asks_for_a_gpu() -> None:
    assert EngineConfig(stream_from="64").wants_gpu
    assert not EngineConfig().wants_gpu


# ---- memory


def test_buffers_are_counted(tmp_path: Path) -> None:
    """Two of 4 experts, and the sum of 16 tokens; `auto` gives them room; nothing where no expert lies in RAM."""
    common: dict[str, Any] = {"device": "simulated", "max_context": 128, "prefill_chunk": 16, "stream_from": 4}
    llm = LLM("demo", cpu_moe=True, **common)
    experts = llm.parts.decoder.experts
    expert = llm.parts.memory_plan.offload.expert
    assert llm.parts.memory_plan.memory[Tier.GPU0].needed["stream buffers"] == 2 * 4 * expert + 16 * llm.spec.hidden * 4
    assert experts.ring.nbytes == 2 * 4 * expert  # type: ignore[attr-defined]
    assert "stream buffers" not in LLM("demo", placement="gpu", **common).parts.memory_plan.memory[Tier.GPU0].needed
    assert (
        "stream buffers"
        not in LLM("demo", cpu_moe=True, **{**common, "stream_from": 17}).parts.memory_plan.memory[Tier.GPU0].needed
    )
    limited = LLM("demo", vram_limit=0.012, **common)
    assert limited.parts.memory_plan.memory[Tier.GPU0].total <= 0.012e9
    assert "stream buffers" in limited.parts.memory_plan.memory[Tier.GPU0].needed
    with pytest.raises(MemoryNeeded, match=r"stream buffers .*copy none there \(--stream-from never\)"):
        LLM("demo", cpu_moe=True, vram_limit=0.004, **common)


def test_a_piece_says_of_how_many_experts_it_is() -> None:
    """By it kernels tell how many tokens meet an expert: not as if all choices were of these."""
    llm = LLM("demo", device="simulated", cpu_moe=True, max_context=64, stream_from=4)
    experts = llm.parts.decoder.experts
    ring, banks = experts.ring, experts.banks  # type: ignore[attr-defined]
    bank = next(split.banks["cpu"] for split in banks if split is not None)
    assert bank.among == ring.among == llm.spec.moe.experts
    assert ring._held(0, bank, 2).among == llm.spec.moe.experts


def test_memory_for_unpacked_experts_is_counted() -> None:
    """bf16 of all three matrices, from 128 tokens an expert on; of experts in bf16 none, and never more than fits."""
    spec = LLM("demo", max_context=64).spec
    q4, bf16 = (ExpertLayout(format=FORMATS[name], hidden=64, width=32) for name in ("q4_0", "bf16"))
    experts, tokens = spec.moe.experts, 128 * spec.moe.experts // spec.moe.top_k
    assert kv_budget.unpacked_bytes(spec, [bf16, q4], tokens) == 2 * 3 * 64 * 32 * experts
    assert kv_budget.unpacked_bytes(spec, [q4], tokens - 1) == 0
    assert kv_budget.unpacked_bytes(spec, [bf16], tokens) == 0
    large = ExpertLayout(format=FORMATS["q4_0"], hidden=8192, width=4096)
    assert kv_budget.unpacked_bytes(spec, [large], tokens) == 2 * 3 * 8192 * 4096


def test_the_start_up_table_says_what_was_decided(run: Run) -> None:
    llm = LLM("demo", device="simulated", max_context=64, cpu_moe=True)
    title = str(generate_report.startup_table(llm).title)
    assert (
        "experts in RAM are copied to gpu0 in no pass (a simulated GPU has no link; --stream-from N tries it)" in title
    )
    where = ["--device", "simulated", "--cpu-moe", "--stream-from", "2"]
    status, _, err = run("generate", "demo", "In the beginning", "-n", "4", *where)
    assert status == 0, err
    text = folded(err)
    assert "in passes from 2 tokens on (as asked)" in text
    assert "stream buffers" in text
    assert "h2d experts" in text
    status, _, err = run("generate", "demo", "x", "--stream-from", "2", "--device", "cpu")
    assert status == 1
    assert "stream_from is about a GPU" in err


def test_nothing_is_copied_by_default() -> None:
    assert not OffloadPlan().streams(512)
    assert OffloadPlan().buffer_bytes(512) == 0


@pytest.mark.usefixtures("whole_model")
def test_streamed_by_the_triton_kernels_in_the_interpreter(checkpoints: Checkpoints) -> None:
    ids, params = [5, 6, 7, 8, 9], SamplingParams(max_new_tokens=3, ignore_eos=True)
    options: dict[str, Any] = dict(dtype="float32", kernels="reference", max_context=32)
    model = str(checkpoints("qwen2_moe"))
    plain = LLM(model, **options)
    moved = LLM(model, device="simulated:gpu", cpu_moe=True, stream_from=1, **options)
    assert moved.parts.main.backend == "gpu"
    one, two = plain.logits(ids), moved.logits(ids)
    assert (one - two).abs().max() < 1e-4 * one.abs().max()
    said, told = (llm.generate([ids], params)[0].token_ids for llm in (plain, moved))
    assert said == told
    assert len(moved.ledger.passes) == 3
    assert all(p.bytes["h2d"]["experts"] for p in moved.ledger.passes)
