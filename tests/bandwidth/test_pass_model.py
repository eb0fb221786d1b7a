"""What a pass on several tiers should take: totals worked out by hand, where rates come from, what the residual is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stand_in_gpu
import torch
from cached import Fetches
from placements import force

from headrace import LLM, SamplingParams
from headrace.engine.bandwidth_model import hardware, machine_file, tier_rates
from headrace.engine.bandwidth_model import link_rate as link_rates
from headrace.engine.bandwidth_model.hardware import Hardware, exactly
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.bandwidth_model.tier_rates import Unknown
from headrace.engine.bench import bench
from headrace.engine.bench.grid import Grid
from headrace.engine.cuda_graphs import signals
from headrace.engine.cuda_graphs.signals import VARIANTS, Trial
from headrace.engine.devices.device import Device
from headrace.engine.devices.pcie import PciLink
from headrace.engine.ledger.drift import DriftWatch
from headrace.engine.ledger.passes import Pass, Prediction, Times
from headrace.engine.ledger.residual import causes, tier_times
from headrace.engine.ledger.summary import summarise
from headrace.engine.placement.placement import Tier
from headrace.engine.policies.protocol import Asked, Moves
from headrace.engine.terminal.bench import bench_report
from headrace.kernels import reference

Checkpoints = Callable[[str], Path]
EXPERT = 3 * 32 * 64 * 2  # bytes in bf16
HIDDEN, PAIR = 64 * 4, 4 + 4  # bytes of a token's hidden state; of a choice and its weight
PLACES = 3 * 4  # of a token's choices, which go up where some are cached
HBM, HBM1, UP, DOWN, ACROSS, CPU = 1e9, 0.5e9, 1e8, 0.5e8, 0.25e8, 1e10  # the profile fixture's CPU
FIXED = 1e-3


def gpu(rate: float, flops: float | None = None, up: float = UP) -> hardware.Device:
    compute = None if flops is None else exactly(flops)
    return hardware.Device(
        name="made up", kind="gpu", memory=None, nominal=rate, bandwidth=exactly(rate), flops=compute, link=exactly(up)
    )


def rates(profile: Profile, flops: float | None = None, hbm: float = HBM, up: float = UP, **changes: Any) -> Hardware:
    """Made up, all different."""
    known = machine_file.of_profile(profile)
    made = Hardware(
        name="made up", cpu=known.cpu, gpus=(gpu(hbm, flops, up), gpu(HBM1, flops)), fixed=exactly(FIXED),
        down=exactly(DOWN), across=exactly(ACROSS),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def load(checkpoints: Checkpoints, variant: str, chosen: list[list[int]], **options: Any) -> LLM:
    """qwen3_moe: hidden 64, 8 experts 32 wide in layers 0 and 2, layer 1 dense, top 3. Every token chooses these."""
    llm = LLM(str(checkpoints(variant)), device="simulated", dtype="bfloat16", **options)
    force(llm, chosen)
    return llm


def run(llm: LLM, prompt: int = 4, new: int = 3) -> list[Pass]:
    return llm.generate([list(range(5, 5 + prompt))], SamplingParams(max_new_tokens=new, ignore_eos=True))[0].ledger


def common(one: Pass) -> tuple[float, float]:
    """Of a pass without experts: seconds in all, of it those of the GPU."""
    main = one.bytes["gpu_hbm"]
    gpu = (main["dense"] + main["kv"] + main["head"]) / HBM
    rows = one.bytes.get("cpu_dram", {}).get("dense", 0) / CPU
    return FIXED + gpu + rows + one.bytes["h2d"]["inputs"] / UP + 12 / DOWN, gpu


TWO_TIERS = {"version": 1, "default": "gpu0", "rules": [{"layers": "all", "experts": "0-3", "tier": "cpu"}]}


def file(tmp_path: Path, content: dict[str, Any]) -> Path:
    (tmp_path / "placement.json").write_text(json.dumps(content))
    return tmp_path / "placement.json"


def test_a_decode_step_by_hand(checkpoints: Checkpoints, profile: Profile) -> None:
    """Layer 0 in RAM: three experts by the CPU, hidden states down and up. Layer 2 on the GPU: ids alone go down."""
    with load(checkpoints, "qwen3_moe", [[0, 3, 7], [1, 2, 4]], n_cpu_moe=1) as llm:
        llm.predictions.use_rates(rates(profile))
        step = run(llm)[-1]
        seconds, gpu = common(step)
        cpu_side = (HIDDEN + 3 * PAIR) / DOWN + 3 * EXPERT / CPU + HIDDEN / UP
        gpu_side = 3 * 4 / DOWN + 3 * EXPERT / HBM
        assert step.predicted is not None
        assert step.predicted.seconds == pytest.approx(seconds + cpu_side + gpu_side)
        assert step.predicted.terms["gpu_hbm"] == pytest.approx(gpu + 3 * EXPERT / HBM)
        assert step.predicted.terms["d2h"] == pytest.approx(step.total("d2h") / DOWN)
        assert step.predicted.terms["h2d"] == pytest.approx(step.total("h2d") / UP)
        assert step.predicted.terms["fixed"] == FIXED
        assert step.predicted.overlap_s == pytest.approx(0, abs=1e-12), "nothing beside anything"


@pytest.mark.parametrize(("slow", "hbm"), [("gpu", 1e6), ("cpu", 1e12)])
def test_the_slower_side_counts(
    slow: str, hbm: float, checkpoints: Checkpoints, profile: Profile, tmp_path: Path
) -> None:
    """Both layers split: two experts of the CPU, one of the GPU. What the other side takes is side by side."""
    where = file(tmp_path, TWO_TIERS)
    with load(checkpoints, "qwen3_moe", [[0, 3, 7], [1, 2, 4]], placement=where) as llm:
        llm.predictions.use_rates(rates(profile, hbm=hbm))
        step = run(llm)[-1]
        cpu_side = (HIDDEN + 3 * PAIR) / DOWN + 2 * EXPERT / CPU + HIDDEN / UP
        gpu_side = EXPERT / hbm
        assert (cpu_side > gpu_side) == (slow == "cpu")
        assert step.predicted is not None
        assert step.predicted.overlap_s == pytest.approx(2 * min(cpu_side, gpu_side))
        total = sum(step.predicted.terms.values())
        assert step.predicted.seconds == pytest.approx(total - 2 * min(cpu_side, gpu_side))


def test_a_shared_expert_is_the_gpus_side(checkpoints: Checkpoints, profile: Profile) -> None:
    """It is taken out of what comes before, and lies behind the CPU's experts."""
    with LLM(str(checkpoints("qwen2_moe")), device="simulated", dtype="bfloat16", cpu_moe=True) as llm:
        llm.predictions.use_rates(rates(profile, hbm=1e11))
        step = run(llm)[-1]
        layers = [layer.mlp for layer in llm.parts.weights.layers if layer.experts is not None]
        shared = sum(mlp.gate_up.nbytes + mlp.down.nbytes for mlp in layers if mlp is not None) / 1e11
        assert shared > 0
        assert step.predicted is not None
        assert step.predicted.terms["gpu_hbm"] == pytest.approx(common(step)[1] * HBM / 1e11)
        assert step.predicted.overlap_s == pytest.approx(shared), "the links alone take longer than it"


@pytest.mark.parametrize(("bound", "flops"), [("copies", 1e18), ("compute", 1e8)])
def test_a_streamed_prompt_by_hand(bound: str, flops: float, checkpoints: Checkpoints, profile: Profile) -> None:
    """Four tokens. Of layer 0 three experts are copied and serve twelve choices; of layer 2 one row goes on, by the
    CPU. The GPU multiplies 2 x 3 x 32 x 64 a choice."""
    with load(checkpoints, "qwen3_moe", [[0, 3, 7], [1, 2, 4]], cpu_moe=True, stream_from=2) as llm:
        llm.predictions.use_rates(rates(profile, flops))
        prompt = run(llm)[0]
        copies, compute = 3 * EXPERT / UP, max(3 * EXPERT / HBM, 12 * 6 * 32 * 64 / flops)
        assert (copies > compute) == (bound == "copies")
        assert prompt.predicted is not None
        assert prompt.predicted.overlap_s == pytest.approx(min(copies, compute))
        assert prompt.predicted.terms["h2d"] == pytest.approx(prompt.total("h2d") / UP)
        assert prompt.predicted.terms["cpu_dram"] == pytest.approx(prompt.total("cpu_dram") / CPU)
        streamed = next(work for work in prompt.layers if work.is_streamed)
        assert (streamed.copied, streamed.pairs) == (3 * EXPERT, {"gpu_hbm": 12})


def test_a_step_that_fetches_by_hand(checkpoints: Checkpoints, profile: Profile) -> None:
    """Two of three experts are copied; the CPU has beside them what a plain read leaves: 10 GB/s less the link's."""
    with load(checkpoints, "qwen3_moe", [[0, 3, 7], [1, 2, 4]], policy=Fetches(2)) as llm:
        up = 4e9
        llm.predictions.use_rates(rates(profile, up=up))
        step = run(llm)[-1]
        cpu_side = (HIDDEN + 3 * PAIR) / DOWN + EXPERT / (CPU - up) + (HIDDEN + PLACES) / up
        gpu_side = 2 * EXPERT / up + 2 * EXPERT / HBM
        assert step.predicted is not None
        assert step.predicted.overlap_s == pytest.approx(2 * min(cpu_side, gpu_side))
        assert step.predicted.terms["cpu_dram"] == pytest.approx(
            2 * EXPERT / (CPU - up) + step.bytes["cpu_dram"]["dense"] / CPU
        )
        llm.predictions.use_rates(rates(profile, up=CPU))
        assert run(llm)[-1].predicted is None, "copies could take all of the memory's bandwidth"


def test_a_step_that_fetches_beside_what_was_measured(checkpoints: Checkpoints, profile: Profile) -> None:
    """The CPU keeps 80 % of its rate beside copies, which keep half of theirs."""
    with load(checkpoints, "qwen3_moe", [[0, 3, 7], [1, 2, 4]], policy=Fetches(2)) as llm:
        name = llm.parts.checkpoint.formats.experts.name
        llm.predictions.use_rates(rates(profile, kept={name: (0.8, 0.5)}))
        step = run(llm)[-1]
        cpu_side = (HIDDEN + 3 * PAIR) / DOWN + EXPERT / (0.8 * CPU) + (HIDDEN + PLACES) / UP
        gpu_side = 2 * EXPERT / (0.5 * UP) + 2 * EXPERT / HBM
        assert step.predicted is not None
        assert step.predicted.overlap_s == pytest.approx(2 * min(cpu_side, gpu_side))
        others = (step.total("h2d") - 4 * EXPERT) / UP
        assert step.predicted.terms["h2d"] == pytest.approx(4 * EXPERT / (0.5 * UP) + others)


def test_what_comes_behind_layers_delays_a_pass_that_is_shorter(checkpoints: Checkpoints, profile: Profile) -> None:
    """Three experts a layer are admitted: over a slow link they take longer than all else, over a fast one nothing."""

    class Admits(Fetches):
        def layer(self, asked: Asked) -> Moves:
            return Moves(admit=tuple(asked.missing)) if asked.step == 0 else Moves()

    for up in (1e6, 1e12):
        with load(checkpoints, "qwen3_moe", [[0, 3, 7], [1, 2, 4]], policy=Admits(0)) as llm:
            llm.predictions.use_rates(rates(profile, up=up))
            step = next(one for one in run(llm) if one.phase == "decode")
            assert step.predicted is not None
            assert sum(work.behind for work in step.layers) == 6 * EXPERT
            assert step.predicted.terms["h2d"] == pytest.approx(step.total("h2d") / up)
            crossing = step.total("h2d") / up
            others = sum(step.predicted.terms.values()) - 6 * EXPERT / up
            assert step.predicted.seconds == pytest.approx(max(crossing, others))


def test_a_second_gpu_works_beside(checkpoints: Checkpoints, profile: Profile) -> None:
    """Layer 0 on the second GPU: hidden states and choices there, its sum back."""
    with load(checkpoints, "qwen3_moe", [[0, 3, 7], [1, 2, 4]], n_cpu_moe=1, tensor_split="0,1") as llm:
        llm.predictions.use_rates(rates(profile))
        step = run(llm)[-1]
        assert step.predicted is not None
        assert step.predicted.terms["gpu1_hbm"] == pytest.approx(3 * EXPERT / HBM1)
        crossed = 2 * HIDDEN + 3 * PAIR
        assert step.bytes["d2d"] == {"experts": 2 * HIDDEN, "routing": 3 * PAIR}
        assert step.predicted.terms["d2d"] == pytest.approx(crossed / ACROSS)
        assert step.predicted.seconds == pytest.approx(sum(step.predicted.terms.values()))


def test_without_compute_prompts_have_no_prediction(checkpoints: Checkpoints, profile: Profile) -> None:
    with load(checkpoints, "qwen3_moe", [[0, 3, 7], [1, 2, 4]], n_cpu_moe=1) as llm:
        llm.predictions.use_rates(rates(profile))
        prompt, *steps = run(llm)
        assert prompt.predicted is None
        assert all(step.predicted is not None for step in steps)
        line = steps[-1].as_json()
        total = sum(line["predicted_time_ms"].values()) - line["predicted_overlap_ms"]
        assert total == pytest.approx(line["predicted_ms"], abs=1e-3)


def test_the_hand_off_counts_where_it_was_measured(
    library: str, log: Path, monkeypatch: pytest.MonkeyPatch, profile: Profile
) -> None:
    works = {name: Trial(name=name, us=us) for name, us in zip(VARIANTS, (500.0, 60.0, 900.0, 3.0), strict=True)}
    monkeypatch.setattr(signals, "probe", lambda *_: works)
    stand_in_gpu.install(monkeypatch, library)
    predicted = {}
    for way in ("memop", "eager"):
        with LLM("demo", device="simulated", max_context=64, cpu_moe=True, handoff=way) as llm:
            llm.predictions.use_rates(rates(profile))
            step = run(llm)[-1]
            assert step.predicted is not None
            predicted[way] = step.predicted
            layers = llm.spec.moe_layers
    assert predicted["memop"].terms["handoff"] == pytest.approx(layers * 500e-6)
    assert "handoff" not in predicted["eager"].terms
    assert predicted["memop"].seconds - predicted["eager"].seconds == pytest.approx(layers * 500e-6, rel=0.05)


# ---- where rates come from


def a_gpu(name: str, number: int = 0) -> Device:
    ops: Any = reference
    tier = (Tier.GPU0, Tier.GPU1)[number]
    place = torch.device("cuda", number)
    return Device(tier=tier, place=place, backend="gpu", ops=ops, name=f"{name} (cuda:{number})", free=1)


LINK = PciLink(device="GPU 0000:01:00.0", lanes=16, most_lanes=16, speed=16.0, most_speed=16.0)


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PCIe 4.0 link that the system tells of."""
    monkeypatch.setattr(link_rates, "bus_address", lambda number: "0000:01:00.0")
    monkeypatch.setattr(link_rates, "pci_links", lambda: [LINK])


def test_measured_rates_win(profile: Profile, link: None) -> None:
    copies = {"gpu0 hbm": 7e11, "gpu0 h2d pinned": 2e10, "gpu0 d2h pinned": 1.5e10}
    found = tier_rates.find(dataclasses.replace(profile, copies=copies), {Tier.GPU0: a_gpu("NVIDIA GeForce RTX 3090")})
    assert found.gpus[0].bandwidth.mid == 7e11
    assert (found.links["h2d"].mid, found.links["d2h"].mid) == (2e10, 1.5e10)
    assert found.gpus[0].flops == hardware.part("rtx-3090").flops
    told = "; ".join(found.sources)
    assert "memory 700 GB/s measured by a copy" in told
    assert "TFLOP/s not measured" in told
    assert "20.0 GB/s measured" in told


def test_nominal_rates_are_said_to_be(profile: Profile, link: None) -> None:
    found = tier_rates.find(profile, {Tier.GPU0: a_gpu("NVIDIA GeForce RTX 3090")})
    assert found.gpus[0].bandwidth.mid == pytest.approx(0.8 * 936e9)
    assert found.links["h2d"] == found.links["d2h"]
    assert found.links["h2d"].mid == pytest.approx(0.8 * 16 * 1.969e9)
    told = "; ".join(found.sources)
    assert "memory 749 GB/s not measured, a share of nominal" in told
    assert "80% of PCIe 4.0 x16" in told


@pytest.mark.parametrize("name", tier_rates.DRIVER_NAMES)
def test_names_of_the_driver_are_in_the_catalogue(name: str, profile: Profile, link: None) -> None:
    assert tier_rates.find(profile, {Tier.GPU0: a_gpu(name)}).gpus[0].flops is not None


def test_what_is_not_known_is_named(profile: Profile, link: None, monkeypatch: pytest.MonkeyPatch) -> None:
    known, other = a_gpu("NVIDIA GeForce RTX 3090"), a_gpu("NVIDIA Made Up 9")
    with pytest.raises(Unknown, match="this machine was not measured yet"):
        tier_rates.find(None, {Tier.GPU0: known})
    with pytest.raises(Unknown, match=r"the memory of NVIDIA Made Up 9 \(cuda:0\) is neither measured"):
        tier_rates.find(profile, {Tier.GPU0: other})
    measured = dataclasses.replace(profile, copies={"gpu0 hbm": 1e12})
    found = tier_rates.find(measured, {Tier.GPU0: other})
    assert found.gpus[0].flops is None
    assert "its compute unknown: no prediction of prompts" in "; ".join(found.sources)
    with pytest.raises(Unknown, match="copies between gpu0 and gpu1 are not measured"):
        tier_rates.find(profile, {Tier.GPU0: known, Tier.GPU1: a_gpu("NVIDIA GeForce RTX 3090", 1)})
    both = dataclasses.replace(profile, copies={"gpu0 to gpu1": 2e10, "gpu1 to gpu0": 1e10})
    found = tier_rates.find(both, {Tier.GPU0: known, Tier.GPU1: a_gpu("NVIDIA GeForce RTX 3090", 1)})
    assert found.links["d2d"].mid == 1e10
    monkeypatch.setattr(link_rates, "pci_links", list)
    with pytest.raises(Unknown, match=r"the link to .* is not measured .* and the system does not tell it"):
        tier_rates.find(profile, {Tier.GPU0: known})


def test_a_simulated_gpu_has_no_prediction_of_its_own(profile: Profile) -> None:
    with LLM("demo", device="simulated", max_context=32, cpu_moe=True) as llm:
        llm.predictions.use_profile(profile)
        assert llm.ledger.predict is None
        assert llm.predictions.unpredicted == "a simulated GPU has no bandwidths of its own"


# ---- the residual


def a_pass(busy: dict[str, float], terms: dict[str, float], seconds: float, **more: float) -> Pass:
    times = {"overlap_s": 0.0, "idle_s": 0.0, "outside_s": 0.0, **more}
    measured = sum(busy.values()) - times["overlap_s"] + times["idle_s"] + times["outside_s"]
    return Pass(
        index=0, phase="decode", sequences=[0], tokens=1, context=1, measured_s=measured,
        bytes={"cpu_dram": {"experts": 8_000_000}, "gpu_hbm": {"dense": 1_000_000}},
        times=Times(busy=busy, waits={}, **times), expect=lambda _: Prediction(terms=terms, seconds=seconds),
    )  # fmt: skip


TERMS = {"cpu_dram": 0.8e-3, "gpu_hbm": 0.4e-3, "fixed": 0.1e-3, "handoff": 0.05e-3}  # of it 0.3 ms side by side
AS_PREDICTED = {"cpu_dram": 0.8e-3, "gpu_hbm": 0.4e-3}
CASES: list[tuple[str, dict[str, float], dict[str, float]]] = [
    ("cpu_dram", {"cpu_dram": 1.9e-3, "gpu_hbm": 0.5e-3}, {"overlap_s": 0.25e-3, "outside_s": 0.1e-3}),
    ("outside", AS_PREDICTED, {"overlap_s": 0.25e-3, "outside_s": 1.1e-3}),
    ("overlap", AS_PREDICTED, {"idle_s": 0.5e-3, "outside_s": 0.1e-3}),
]


@pytest.mark.parametrize(("cause", "busy", "more"), CASES)
def test_the_parts_add_up_to_the_residual(cause: str, busy: dict[str, float], more: dict[str, float]) -> None:
    one = a_pass(busy, TERMS, 1.05e-3, **more)
    window = summarise([one, one], "decode")
    found = causes(window)
    assert found[0].name == cause
    assert sum(c.costs_s for c in found) == pytest.approx(window.measured_s - 2 * 1.05e-3)
    times = tier_times(window)
    assert times is not None
    assert times.cause == cause
    assert times.measured_ms == pytest.approx(1e3 * one.measured_s)
    assert times.predicted_overlap_ms == pytest.approx(0.3)


def test_the_watch_names_the_tier_that_was_timed() -> None:
    said: list[str] = []
    for cause, busy, more in CASES:
        watch = DriftWatch(said.append)
        for _ in range(32):
            watch(a_pass(busy, TERMS, 1.05e-3, **more))
        assert len(said) == len(CASES[: [c[0] for c in CASES].index(cause) + 1])
    assert "cpu_dram gives 4.2 of 10.0 GB/s" in said[0], "8 MB in 1.9 ms"
    assert "no tier" in said[1]
    assert "less ran side by side" in said[2]


def test_the_watch_blames_no_tier_that_was_not_timed() -> None:
    said: list[str] = []
    watch = DriftWatch(said.append)
    slow = a_pass({"cpu_dram": 1.9e-3}, TERMS, 1.05e-3)
    times = Times(busy={"cpu_dram": 1.9e-3}, waits={}, overlap_s=None, idle_s=None, outside_s=None)
    for _ in range(32):
        watch(dataclasses.replace(slow, times=times))
    assert said == ["slower than predicted: 1.90 ms a token, predicted 1.05; a run with --ledger FILE says which tier"]


def test_rows_of_a_bench_have_times_and_prediction(profile: Profile) -> None:
    """One more round with the clock on; it counts for no rate."""
    with LLM("demo", device="simulated", max_context=64, cpu_moe=True, max_sequences=2) as llm:
        llm.predictions.use_rates(rates(profile, 1e15))
        grid = Grid(prompt=(8,), new=(4,), batch=(1, 2), rounds=2)
        rows = list(bench.run(llm, grid, "cpu-moe"))
        steps = [p for p in llm.ledger.passes if p.phase == "decode"]
        assert sum(p.times is not None and p.times.overlap_s is not None for p in steps) == 2 * 4
        assert not llm.parts.timers.is_on
    assert [len(row.rounds) for row in rows] == [2, 2, 2]
    for row in rows:
        assert row.tiers is not None
        assert row.tiers.predicted_time_ms is not None
        assert row.predicted_tok_s is not None
        assert row.tiers.cause in (*row.tiers.time_ms, "overlap", "outside")
        total = sum(row.tiers.time_ms.values()) - row.tiers.overlap_ms + row.tiers.idle_ms + row.tiers.outside_ms
        assert total == pytest.approx(row.tiers.measured_ms)
    shown = bench_report.tier_table(rows)
    assert shown is not None
    assert [str(c.header) for c in shown.columns][:7] == ["test", "batch", "ms", "gpu_hbm", "cpu_dram", "h2d", "d2h"]
    assert bench_report.tier_table([dataclasses.replace(row, tiers=None) for row in rows]) is None
