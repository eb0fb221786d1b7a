"""headrace plan: bytes against the engine's own, placements and times by hand, what it prints, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import Run
from expected_bytes import pass_bytes
from terminal import folded

from headrace import ConfigError, MemoryNeeded, OptionError
from headrace.engine.bandwidth_model import hardware, machine_file, tier_rates
from headrace.engine.bandwidth_model.hardware import Device, Hardware, exactly
from headrace.engine.bandwidth_model.pass_model import PassModel
from headrace.engine.bandwidth_model.profile import Profile, load_profile, save_profile
from headrace.engine.ledger import in_formats
from headrace.engine.ledger.passes import Pass
from headrace.engine.placement.tier_memory import GPU_RESERVE
from headrace.engine.planning import layouts, routing_trace, storage
from headrace.engine.planning.articles import distinct_experts
from headrace.engine.planning.options import Options
from headrace.engine.planning.plan import Plan, make, refuse_if_too_large
from headrace.engine.planning.speed import Model, Workload, cache_read, cache_traffic, cache_written
from headrace.engine.terminal.plan.plan_plot import crossover_batch
from headrace.engine.terminal.plan.plan_report import as_json, n_cpu_moe
from headrace.kernels import FORMATS, ExpertLayout
from headrace.kernels.context import Context
from headrace.kernels.formats import KV_BF16
from headrace.loaders import model_source
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.quants import of_config, of_text
from headrace.loaders.weights.model_weights import Formats, allocate

GB = 1e9
KEYS = {
    "total_parameters", "active_parameters", "bytes_per_token", "memory", "n_cpu_moe", "decode_tok_s", "prefill_tok_s",
    "bottleneck",
}  # fmt: skip


def plain(name: str, gbs: float, memory: float | None, kind: Any = "cpu", **more: Any) -> Device:
    """A device whose figures are certain."""
    size = None if memory is None else int(memory * GB)
    return Device(name=name, kind=kind, memory=size, nominal=gbs * GB, bandwidth=exactly(gbs * GB), **more)


def machine(*, ram: float | None = 1000, vram: float | None = 24, gpus: int = 1, **more: Any) -> Hardware:
    """100 GB/s of RAM, 1000 GB/s a GPU, no cost besides."""
    cpu = plain("cpu", 100, ram, flops=exactly(1e12)) if ram else None
    cards = tuple(plain(f"gpu{i}", 1000, vram, "gpu", flops=exactly(1e15), link=exactly(25 * GB)) for i in range(gpus))
    nothing = {"sync": exactly(0.0), "fixed": exactly(0.0)}
    return Hardware(name="test", cpu=cpu, gpus=cards, **{**nothing, **more})


def plan(name: str, hw: Hardware | None, **options: Any) -> Plan:
    return make(model_source.find(name), hw, Options(**{"quant": "q4_0", **options}))


# Bytes


@pytest.mark.parametrize("variant", tiny.VARIANTS)
@pytest.mark.parametrize(("experts", "dense"), [("q4_0", "q8_0"), ("bf16", "bf16"), ("f32", "f32")])
def test_bytes_are_those_of_the_engine(variant: str, experts: str, dense: str, checkpoints: Any) -> None:
    """Storage equals what the engine allocates, and a decode step reads what the engine books, both to the byte."""
    directory = checkpoints(variant)
    _, spec = spec_of(ConfigReader.open(directory / "config.json"))
    formats = Formats(experts=FORMATS[experts], dense=FORMATS[dense], embed=FORMATS["f32"])
    source = model_source.find(str(directory))
    quant = of_text.parse(f"experts={experts},dense={dense},embed=f32", of_config.native({}, ""))
    found = storage.computed(source.described.architecture, quant)
    assert found.in_memory == allocate(spec, formats, "meta").nbytes
    engines = in_formats.of_model(spec, formats).layers
    assert [layer.behind_in for layer in found.layers] == [layer.behind for layer in engines]
    context, banks = 17, spec.moe_layers
    engine = Model(source.described.architecture, found, machine(gpus=0))
    everything = layouts.on_cpu(found, engine.hardware, _no_demand(len(spec.layers)))
    counted = engine.bytes_per_token(everything, Workload(context=context, batch=1, prompt=1))
    wanted = pass_bytes(spec, formats, KV_BF16, tokens=1, contexts=[context], distinct_experts=[spec.moe.top_k] * banks)
    assert counted == wanted


@pytest.mark.parametrize("batch", [1, 4, 7])
@pytest.mark.parametrize("variant", ["qwen3_moe", "qwen2_moe", "granitemoe"])
def test_time_is_that_of_the_engine(variant: str, batch: int, checkpoints: Any, profile: Profile) -> None:
    """With measured bandwidths and costs, a step takes what the running engine predicts for the same bytes."""
    directory = checkpoints(variant)
    _, spec = spec_of(ConfigReader.open(directory / "config.json"))
    rates = {name: (i + 1) * GB for i, name in enumerate(FORMATS)}
    known = dataclasses.replace(
        profile, linear=rates, experts={n: 3 * r for n, r in rates.items()}, attention={"1": 2 * GB, "8": 1 * GB},
        batch={"4": {n: r / 2 for n, r in rates.items()}, "16": {n: r / 5 for n, r in rates.items()}},
        crowd={"2": {n: 2 * r for n, r in rates.items()}}, layer_s=3e-5, layer_batch={"4": 5e-5}, shared_s=2e-5,
        pass_s=1e-4, logit_s=1e-9,
    )  # fmt: skip
    formats = Formats(experts=FORMATS["q4_0"], dense=FORMATS["q8_0"], embed=FORMATS["f32"])
    none = [0] * spec.moe_layers
    read = pass_bytes(spec, formats, KV_BF16, tokens=batch, contexts=[17] * batch, distinct_experts=none)
    layout = ExpertLayout(format=formats.experts, hidden=spec.hidden, width=spec.moe.width)
    touched = distinct_experts(spec.moe.experts, spec.moe.top_k, batch)  # not whole: an average
    read["cpu_dram"]["experts"] = touched * spec.moe_layers * layout.bytes
    source = model_source.find(str(directory))
    quant = of_text.parse("experts=q4_0,dense=q8_0,embed=f32", of_config.native({}, ""))
    hw = machine_file.of_profile(known)
    engine = Model(source.described.architecture, storage.computed(source.described.architecture, quant), hw)
    everything = layouts.on_cpu(engine.storage, hw, _no_demand(len(spec.layers)))
    step = engine.seconds(engine.decode(everything, Workload(context=17, batch=batch, prompt=1)))
    done = Pass(
        index=0, phase="decode", sequences=list(range(batch)), tokens=batch, context=17 * batch, bytes=read
    )  # fmt: skip
    wanted = PassModel(spec, formats, KV_BF16, tier_rates.of_cpu(known))(done)
    assert wanted is not None
    assert step.seconds == pytest.approx(wanted.seconds, rel=1e-6)
    assert step.terms == pytest.approx(wanted.terms, rel=1e-6)


@pytest.mark.parametrize("variant", ["qwen3_moe", "qwen2_moe", "deepseek_v3", "gpt_oss"])
def test_a_run_s_prompt_ends_with_its_last_token(variant: str, checkpoints: Any, profile: Profile) -> None:
    """Matrices of four tokens take twice the time of one, but for those behind the last layer's mixer, which the last
    token alone meets: output projection, shared expert."""
    _, spec = spec_of(ConfigReader.open(checkpoints(variant) / "config.json"))
    flat = dict.fromkeys(FORMATS, 1e10)
    known = dataclasses.replace(
        profile, linear=flat, experts=flat, batch={"4": dict.fromkeys(FORMATS, 5e9)}, crowd={"4": flat},
        attention={"1": 1e10, "8": 1e10, "4096": 1e10}, layer_s=0.0, layer_batch={}, shared_s=0.0, pass_s=0.0,
        logit_s=0.0, row_s=0.0,
    )  # fmt: skip
    formats = Formats(experts=FORMATS["q4_0"], dense=FORMATS["q8_0"], embed=FORMATS["f32"])
    distinct = [spec.moe.top_k] * spec.moe_layers
    read = pass_bytes(spec, formats, KV_BF16, tokens=4, contexts=[4], distinct_experts=distinct)
    done = Pass(index=0, phase="prefill", sequences=[0], tokens=4, context=4, bytes=read)
    predicted = PassModel(spec, formats, KV_BF16, tier_rates.of_cpu(known))(done)
    last = allocate(spec, formats, "meta").layers[-1]
    assert last.mixer is not None
    shared = 0 if last.mlp is None else last.mlp.gate_up.nbytes + last.mlp.down.nbytes
    counted = read["cpu_dram"]
    wanted = sum(counted.values()) + counted["dense"] - last.mixer.o.nbytes - shared
    assert predicted is not None
    assert predicted.seconds == pytest.approx(wanted / 1e10)


def test_a_prompt_on_a_measured_cpu_by_hand(checkpoints: Any, profile: Profile) -> None:
    """All at 10 GB/s whatever the tokens: two chunks read all experts that they touch, in the last layer those of
    the last token alone, where the first chunk reads nothing behind the mixer; keys are read once a chunk; the head
    once."""
    source = model_source.find(str(checkpoints("qwen3_moe")))
    architecture = source.described.architecture
    quant = of_text.parse("experts=q4_0,dense=q8_0,embed=f32", of_config.native({}, ""))
    flat = dict.fromkeys(FORMATS, 1e10)
    known = dataclasses.replace(
        profile, batch={"512": flat}, crowd={"512": flat}, attention={"1": 1e10, "4096": 1e10}, layer_s=1e-3,
        layer_batch={"128": 2e-3}, pass_s=1e-4,
    )  # fmt: skip
    hw = machine_file.of_profile(known)
    engine = Model(architecture, storage.computed(architecture, quant), hw)
    layers = engine.storage.layers
    everything = layouts.on_cpu(engine.storage, hw, _no_demand(len(layers)))
    found = engine.prefill(everything, Workload(context=1024, batch=1, prompt=1024))
    assert found is not None
    seconds = engine.seconds(found).seconds
    read = 2 * sum(layer.common for layer in layers) + engine.storage.outside
    read -= layers[-1].behind_in.total
    read += 2 * sum(engine.touched(i, 512) * layer.expert for i, layer in enumerate(layers[:-1]))
    read += round(engine.touched(len(layers) - 1, 1) * layers[-1].expert)
    read += sum(cache_read(x, 512) + cache_read(x, 1024) + cache_written(x, 1024, 1024) for x in architecture.layers)
    assert seconds == pytest.approx(read / 1e10 + 2 * len(layers) * 8e-3 + 2e-4)


def _no_demand(layers: int) -> layouts.Demand:
    return layouts.Demand(cache=(0,) * layers, activations=0)


@pytest.mark.parametrize(
    ("name", "rows", "cols", "stored", "packed"),
    [
        ("q4_k", 3, 512, 3 * 2 * 144, 3 * (2 * (4 + 12) + 256)),
        ("q4_k", 3, 256, 3 * 144, 3 * 144),
        ("q3_k", 3, 256, 3 * 110, 3 * (32 + 96)),  # 2 + 16 bytes of scales, padded
        ("iq4_xs", 3, 512, 3 * 2 * 136, 3 * (32 + 256)),  # 2 x (2 + 8) bytes of scales, padded
        ("q6_k", 3, 256, 3 * 210, 3 * (32 + 192)),
        ("mxfp4", 2, 64, 2 * 2 * 17, 2 * (16 + 32)),
        ("iq2_s", 3, 512, 3 * 2 * 82, 3 * (2 * (2 + 16) + 12 + 3 * 512 // 8)),  # points of a grid: codes of 3 bits
        ("tq2_0", 3, 512, 3 * 2 * 66, 3 * 2 * 66),
        ("fp8", 576, 7168, 576 * 7168 + 5 * 56 * 4, 576 * (7168 + 56 * 4)),
        ("int4-g32", 4, 64, 4 * 2 * 18, 4 * 2 * 18),
        ("bf16", 3, 5, 2 * 15, 2 * 15),
        ("4.5bpw", 8, 100, 450, 450),
    ],
)
def test_bytes_of_a_matrix(name: str, rows: int, cols: int, stored: int, packed: int) -> None:
    """By hand, in a file and in memory: there a row of the engine's own formats has its scales padded to 16 bytes."""
    found = of_text.find(name)
    assert (found.stored_bytes(rows, cols), found.bytes(rows, cols)) == (stored, packed)


def test_formats_of_released_checkpoints() -> None:
    """FP8 DeepSeek, MXFP4 gpt-oss, int4 experts of Kimi-K2-Thinking, fp4 experts of DeepSeek-V4."""
    names = {}
    for model in ("DeepSeek-V3", "gpt-oss-120b", "Kimi-K2-Thinking", "DeepSeek-V4-Flash", "Qwen3-30B-A3B"):
        quant = of_config.native(model_source.find(model).config, model)
        names[model] = (quant.experts.name, quant.dense.name, quant.head.name)
    assert names == {
        "DeepSeek-V3": ("fp8", "fp8", "bf16"),
        "gpt-oss-120b": ("mxfp4", "bf16", "bf16"),
        "Kimi-K2-Thinking": ("int4-g32", "bf16", "bf16"),
        "DeepSeek-V4-Flash": ("mxfp4", "fp8", "bf16"),
        "Qwen3-30B-A3B": ("bf16", "bf16", "bf16"),
    }


# Time by hand


def test_one_device_is_bytes_over_bandwidth() -> None:
    found = plan("Qwen3-30B-A3B", machine(gpus=0), placement="cpu")
    total = sum(found.bytes_per_token["cpu_dram"].values())
    assert found.best is not None
    assert found.best.decode is not None
    assert found.best.decode["mid"].seconds == pytest.approx(total / (100 * GB))
    assert found.best.decode["mid"].bottleneck == "cpu_dram"


def test_two_tiers_add_up_where_nothing_overlaps() -> None:
    """Qwen3 has no shared expert: common weights and cache on the GPU, then the experts in RAM, then a hand-off."""
    sync = exactly(50e-6)
    found = plan("Qwen3-30B-A3B", machine(sync=sync), placement="cpu-moe")
    gpu, ram = (sum(found.bytes_per_token[tier].values()) for tier in ("gpu_hbm", "cpu_dram"))
    assert found.best is not None
    assert found.best.decode is not None
    assert found.best.decode["mid"].seconds == pytest.approx(gpu / (1000 * GB) + ram / (100 * GB) + 48 * 50e-6)


def test_a_shared_expert_hides_behind_experts_in_ram() -> None:
    """Kimi-K2: 60 shared experts are read by the GPU while the CPU works, which takes longer."""
    found = plan("Kimi-K2", machine(vram=48), placement="cpu-moe")
    gpu, ram = (sum(found.bytes_per_token[tier].values()) for tier in ("gpu_hbm", "cpu_dram"))
    shared = sum(layer.shared for layer in found.storage.layers)
    assert shared > 0
    assert found.best is not None
    assert found.best.decode is not None
    assert found.best.decode["mid"].seconds == pytest.approx((gpu - shared) / (1000 * GB) + ram / (100 * GB))


def test_a_measured_kernel_is_not_bound_by_an_assumed_rate() -> None:
    """q4_0 at 100 GB/s is 2 / 0.5625 x 100 = 356 GFLOP/s, whatever is assumed of the cores."""
    rates = {"q4_0": 100 * GB}
    rates["bf16"] = 100 * GB
    cpu = plain("cpu", 100, 1000, flops=exactly(1e10), by_format=rates, dense_by_format=rates)
    hw = Hardware(name="m", cpu=cpu, sync=exactly(0), fixed=exactly(0))
    found = plan("Qwen3-30B-A3B", hw, context=1)
    read = sum(found.bytes_per_token["cpu_dram"].values())
    assert found.best is not None
    assert found.best.decode is not None
    assert found.best.decode["mid"].seconds == pytest.approx(read / (100 * GB), rel=0.01)


def test_a_prompt_takes_the_cheaper_way() -> None:
    """512 tokens touch all experts: copied over a link of 25 GB/s, or computed by a CPU of 1 or 100 TFLOP/s. The
    one token that needs the last layer's experts has them computed."""
    slow = plan("Qwen3-30B-A3B", machine(), placement="cpu-moe").best
    fast_cpu = plain("cpu", 100, 1000, flops=exactly(1e14))
    fast = plan("Qwen3-30B-A3B", Hardware(name="f", cpu=fast_cpu, gpus=machine().gpus), placement="cpu-moe").best
    assert slow is not None
    assert slow.prefill is not None
    assert slow.prefill["mid"].bottleneck == "h2d"
    assert fast is not None
    assert fast.prefill is not None
    assert fast.prefill["mid"].bottleneck == "cpu_dram"
    routed = plan("Qwen3-30B-A3B", machine()).storage.routed
    assert slow.prefill["mid"].terms["h2d"] == pytest.approx(routed * 47 / 48 / (25 * GB), rel=1e-6)


def test_no_compute_rate_no_prefill() -> None:
    cpu = plain("cpu", 100, 1000)
    found = plan("Qwen3-30B-A3B", Hardware(name="x", cpu=cpu, sync=exactly(0), fixed=exactly(0)))
    assert as_json(found)["prefill_tok_s"] is None
    assert as_json(found)["decode_tok_s"] > 0


def test_a_batch_reads_the_union_of_experts() -> None:
    one, four = (plan("Qwen3-30B-A3B", machine(gpus=0), batch=b) for b in (1, 4))
    assert 4 * four.bytes_per_token["cpu_dram"]["experts"] == pytest.approx(
        one.bytes_per_token["cpu_dram"]["experts"] * (128 / 8) * (1 - (1 - 8 / 128) ** 4), rel=1e-6
    )


def test_a_trace_replaces_uniform_routing(tmp_path: Path) -> None:
    """Every token of the trace chooses the same experts, so that a batch of 4 reads no more than one token."""
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"ids": [[list(range(8))] * 4] * 48}))
    source = model_source.find("Qwen3-30B-A3B")
    distinct = routing_trace.load(path, source.described.architecture)
    found = make(source, machine(gpus=0), Options(quant="q4_0", batch=4), distinct)
    alone = make(source, machine(gpus=0), Options(quant="q4_0", batch=1))
    assert 4 * found.bytes_per_token["cpu_dram"]["experts"] == alone.bytes_per_token["cpu_dram"]["experts"]


@pytest.mark.parametrize(
    ("ids", "said"), [([[[0] * 8]] * 47, "47 layers"), ([[[128] * 8]] * 48, "128"), ([[[0] * 7]] * 48, "7")]
)
def test_traces_of_other_models_are_refused(tmp_path: Path, ids: Any, said: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"ids": ids}))
    with pytest.raises(OptionError, match=said):
        routing_trace.load(path, model_source.find("Qwen3-30B-A3B").described.architecture)


def test_ranges_enclose_the_expected() -> None:
    hw = hardware.parse("rtx-3090, epyc-9005-8ch, 64cores")
    found = plan("Kimi-K2", hw)
    for value in (found.decode_tok_s, found.best.prefill_tok_s(512) if found.best else None):
        assert value is not None
        assert 0 < value.low < value.mid < value.high


def test_the_plain_sum_is_the_articles() -> None:
    """Kimi-K2 at 4 bits on the article's machine: its 32 B are 31.7, its 36 % common 33 %."""
    hw = Hardware(name="a", gpus=(plain("3090", 935, 24, "gpu"),), cpu=plain("epyc", 409, None))
    found = plan("Kimi-K2", hw, quant="experts=4bpw,dense=4bpw,embed=4bpw", model="simple")
    assert found.decode_tok_s is not None
    assert found.decode_tok_s.mid == pytest.approx(32.05, rel=0.05)
    assert found.decode_tok_s.low == found.decode_tok_s.high


# Memory and placement


def test_n_cpu_moe_by_exact_sizes() -> None:
    """As many of the last layers as the room left by common weights, cache and activations holds."""
    found = plan("Qwen3-235B-A22B", machine(vram=24))
    common = found.storage.common + sum(found.demand.cache) + found.demand.activations
    layer = found.storage.layers[0].routed
    fit = int((24 * GB - GPU_RESERVE - common) // layer)
    assert 0 < fit < 94
    assert n_cpu_moe(found) == 94 - fit
    assert found.best is not None
    assert found.best.placement.experts[94 - fit :] == ("gpu0",) * fit
    vram = found.best.memory["vram"]
    assert vram.total == common + fit * layer
    assert vram.fits
    assert found.best.memory["ram"].needed["experts"] == (94 - fit) * layer
    assert found.best.memory["pinned"].total == (94 - fit) * layer


def test_the_rule_of_thumb_stands_beside() -> None:
    """Free VRAM over file size a layer, common weights and cache forgotten: it puts more on the card than fits."""
    found = plan("Qwen3-235B-A22B", machine(vram=24), context=32768)
    assert found.rule is not None
    assert found.rule.n_cpu_moe == 94 - int(23 * GB / (found.storage.total / 94))
    exact = n_cpu_moe(found)
    assert exact is not None
    assert exact > found.rule.n_cpu_moe


def test_a_second_gpu_takes_the_experts_that_the_first_has_no_room_for() -> None:
    found = plan("Qwen3-235B-A22B", machine(gpus=2))
    assert found.best is not None
    tiers = found.best.placement.experts
    assert {"cpu", "gpu0", "gpu1"} == set(tiers)
    assert tiers == tuple(sorted(tiers, key=("cpu", "gpu1", "gpu0").index))


def test_a_file_of_whole_layers(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    rules = [{"layers": "10-47", "tier": "gpu0"}, {"layers": [0, 3], "tier": "gpu0"}]
    path.write_text(json.dumps({"version": 1, "default": "cpu", "rules": rules}))
    found = plan("Qwen3-30B-A3B", machine(vram=48), placement=str(path))
    assert found.best is not None
    assert found.best.placement.name == "mine.json"
    assert [i for i, tier in enumerate(found.best.placement.experts) if tier == "cpu"] == [1, 2, *range(4, 10)]
    assert found.best.memory["ram"].needed["experts"] == 8 * found.storage.layers[0].routed
    rules[1]["experts"] = "0-63"
    path.write_text(json.dumps({"version": 1, "default": "cpu", "rules": rules}))
    with pytest.raises(OptionError, match=r"mine.json splits the experts of layer 0 over cpu, gpu0"):
        plan("Qwen3-30B-A3B", machine(vram=48), placement=str(path))
    rules[1].update(tier="gpu1")
    path.write_text(json.dumps({"version": 1, "default": "cpu", "rules": rules}))
    with pytest.raises(OptionError, match=r"this run has gpu0, cpu only"):
        plan("Qwen3-30B-A3B", machine(vram=48), placement=str(path))


def test_whole_layers_over_two_gpus() -> None:
    found = plan("Qwen3-30B-A3B", machine(gpus=2, vram=12), placement="gpu")
    assert found.fits
    assert found.best is not None
    assert set(found.best.placement.common) == {"gpu0", "gpu1"}
    assert found.best.placement.common == found.best.placement.experts


def test_a_larger_cache_leaves_less_room_for_experts() -> None:
    short, long = (plan("Qwen3-235B-A22B", machine(), context=c) for c in (1024, 32768))
    assert (n_cpu_moe(long) or 0) > (n_cpu_moe(short) or 0)


def test_experts_that_ram_does_not_hold_stay_on_the_disk() -> None:
    disk = plain("nvme", 5, None, "disk")
    found = plan("Qwen3-235B-A22B", machine(ram=64, disk=disk))
    assert found.fits
    assert found.best is not None
    assert "disk" in found.best.placement.experts
    assert found.best.decode is not None
    assert found.best.decode["mid"].bottleneck == "disk"


def test_a_model_larger_than_everything_says_what_would_fit() -> None:
    found = plan("Qwen3-235B-A22B", machine(ram=90, vram=12), quant="bf16")
    with pytest.raises(MemoryNeeded) as caught:
        refuse_if_too_large(found)
    message = str(caught.value)
    missing = float(message.split(" GB too much")[0].split()[-1])
    assert missing == pytest.approx((found.storage.total - 0.95 * 90 * GB) / GB, rel=0.1)
    assert "--quant q2_k" in message
    assert "--quant q8_0" not in message
    assert as_json(found)["fits"] is False
    assert as_json(found)["decode_tok_s"] is None


def test_nothing_may_fit() -> None:
    with pytest.raises(MemoryNeeded, match="no format listed here fits: add memory, or name a disk"):
        refuse_if_too_large(plan("Kimi-K3", machine(ram=8, vram=8)))


def test_what_a_plan_lacks_and_what_it_has_all_of(run: Run) -> None:
    _, out, _ = run("plan", "Qwen3-30B-A3B", "--hardware", "m4-max 64gb", "--quant", "q4_0")
    assert "no prefill time: no compute rate is known of Apple M4 Max\n" in out
    _, out, _ = run("plan", "Qwen3-30B-A3B", "--hardware", "ddr5-6000-2ch 64gb", "--quant", "q4_0")
    assert "no compute rate is known of ddr5-6000-2ch; give the cores of the CPU" in folded(out)
    _, out, _ = run("plan", "Qwen3-30B-A3B", "--hardware", "rtx-3090, ddr5-6000-2ch 64gb", "--quant", "q4_0")
    assert "says 0, as all layers fit" in folded(out)


def test_a_gpu_without_ram_is_asked_for_it() -> None:
    with pytest.raises(MemoryNeeded, match=r"no RAM is named: add it, as in --hardware 'rtx-5090, ddr5-6000-2ch 64gb'"):
        refuse_if_too_large(plan("gpt-oss-120b", hardware.parse("rtx-5090")))


def test_hybrids_and_windows_cost_less_cache() -> None:
    """gpt-oss: half of the layers keep 128 tokens; Qwen3.5: three of four keep a state, written and read once a
    token."""
    layer = model_source.find("gpt-oss-120b").described.architecture.layers[0]
    assert cache_traffic(layer, 4096) == 2 * 1024 * (128 + 1)
    recurrent = model_source.find("Qwen3.5-35B-A3B").described.architecture.layers[0]
    assert recurrent.mixer is not None
    assert cache_traffic(recurrent, 10) == cache_traffic(recurrent, 10**5) == 8 * recurrent.mixer.state


def test_what_would_change_it() -> None:
    rows = {row.what: row for row in plan("Kimi-K2", machine()).what_if}
    assert {"one more GPU of the same kind", "twice the VRAM", "RAM 25 % faster", "no GPU"} <= set(rows)
    now = plan("Kimi-K2", machine()).decode_tok_s
    assert now is not None
    gains = {what: (row.decode_tok_s or 0) / now.mid for what, row in rows.items()}
    assert 1.0 < gains["one more GPU of the same kind"] < 1.1  # the article's point
    assert gains["twice the RAM channels"] > 1.5
    assert gains["no GPU"] < 1


# The command


def test_json_has_what_scripts_read(run: Run) -> None:
    status, out, _ = run(
        "plan", "moonshotai/Kimi-K2-Instruct", "--offline", "--cache-dir", "none", "--quant", "q4_0", "--json",
        "--hardware", "rtx-3090, epyc-9005-8ch",
    )  # fmt: skip
    found = json.loads(out)
    assert status == 0
    assert set(found) >= KEYS
    assert found["total_parameters"] == pytest.approx(1026.408e9, rel=1e-6)
    assert set(found["bytes_per_token"]) == {"gpu_hbm", "cpu_dram"}
    assert set(found["memory"]) == {"vram", "ram", "pinned", "disk"}
    assert found["bottleneck"] == "cpu_dram"
    assert found["n_cpu_moe"] == 60
    assert found["runs"] is True
    assert "catalogue" in found["notes"][0]
    assert found["decode_tok_s_range"][0] < found["decode_tok_s"] < found["decode_tok_s_range"][1]


def test_tables_for_a_person(run: Run) -> None:
    hw = ("--hardware", "rtx-3090, epyc-9005-8ch, 768gb")
    status, out, _ = run("plan", "Qwen3.8-Flash-Next", "--quant", "q4_0", *hw)
    assert status == 0
    assert "cannot be run: catalogue entry Qwen3.8-Flash-Next has no 'indexer_budget'" in folded(out)
    status, out, _ = run("plan", "GLM-4.5", "--quant", "q4_0", *hw)
    assert status == 0
    assert "cannot be run" not in folded(out)
    said = (
        "--n-cpu-moe 87 by exact sizes",
        "what if",
        "are assumptions",
    )
    assert [s for s in said if s not in folded(out)] == []


def test_the_context_that_nobody_asked_for_is_one_the_model_has(run: Run) -> None:
    status, out, err = run("plan", "demo", "--json", "--hardware", "ddr5-6000-2ch")
    assert status == 0, err
    assert json.loads(out)["context"] == 1024


def test_this_machine_by_its_profile(run: Run, checkpoints: Any) -> None:
    """Every kernel of the profile reads 10 GB/s."""
    known = load_profile(Context())
    assert known is not None
    save_profile(dataclasses.replace(known, memory_bytes=10**9))
    status, out, _ = run("plan", checkpoints("qwen3_moe"), "--context", 64, "--json")
    found = json.loads(out)
    assert status == 0
    assert found["measured"] is True
    assert found["runs"] is True
    total = found["bytes_per_token"]["cpu_dram"]["total"]
    assert found["ms_by_tier"]["cpu_dram"] == pytest.approx(total / 1e7, rel=0.01)


def test_without_a_profile_there_are_bytes_and_no_times(run: Run, cache_home: Path) -> None:
    for path in (cache_home / "headrace").iterdir():
        path.unlink()
    status, out, _ = run("plan", "OLMoE-1B-7B")
    assert status == 0
    assert "run headrace measure" in folded(out)
    assert json.loads(run("plan", "OLMoE-1B-7B", "--json")[1])["decode_tok_s"] is None


def test_articles(run: Run) -> None:
    status, out, _ = run("plan", "--article")
    assert status == 0
    assert [
        n for n in ("32.05", "25.56", "32.64", "35.97", "38", "286", "6.08 GB", "7.70 G", "12.88 B") if n not in out
    ] == []


def test_too_large_is_said_after_the_tables(run: Run) -> None:
    status, out, err = run("plan", "Kimi-K2", "--hardware", "rtx-3090, ddr5-6000-2ch, 64gb")
    assert status == 1
    assert "ram: too small" in folded(out)
    assert "does not fit" in folded(err)
    assert "GB too much" in folded(err)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("Kimi-K2", "--context", "0"), "--context is 0"),
        (("Kimi-K2", "--batch", "-1"), "--batch is -1"),
        (("Kimi-K2", "--prompt", "0"), "--prompt is 0"),
        (("Kimi-K2", "--context", "999999"), "allows at most 131072 tokens"),
        (("Kimi-K2", "--model", "magic"), "full and simple"),
        (("Kimi-K2", "--quant", "q9"), "there is no format 'q9'"),
        (("Kimi-K2", "--quant", "0bpw"), "bits above 0"),
        (("Kimi-K2", "--quant", "router=q4_0"), "no group 'router'"),
        (("Kimi-K2", "--hardware", "rtx-3091, ddr5-6000-2ch"), "nearest: rtx-3090"),
        (("Kimi-K2", "--hardware", "rtx-3090", "--placement", "cpu"), "names no CPU"),
        (("Kimi-K2", "--hardware", "ddr5-6000-2ch", "--placement", "gpu"), "needs a GPU"),
        (("Kimi-K2", "--hardware", "rtx-3090, ddr5-6000-2ch", "--placement", "n-cpu-moe=99"), "from 0 to 61"),
        (("Kimi-K2", "--hardware", "rtx-3090, ddr5-6000-2ch", "--placement", "moon"), "auto, cpu, disk, hosts, gpu"),
        (("Kimi-K2", "--hardware", "rtx-3090, ddr5-6000-2ch", "--placement", "hosts"), "needs --hosts, such as"),
        (("Kimi-K2", "--plot", "x.pdf"), ".png or .svg"),
        (("Kimi-K9",), "nearest in the catalogue: Kimi-K"),
        ((), "no model"),
    ],
)
def test_impossible_input_is_refused(run: Run, arguments: tuple[str, ...], said: str) -> None:
    status, _, err = run("plan", *arguments)
    assert status == 1
    assert said in err


def test_unknown_schemes_need_a_format() -> None:
    source = model_source.find("DeepSeek-V3")
    source = dataclasses.replace(source, config={**source.config, "quantization_config": {"quant_method": "magic4"}})
    with pytest.raises(ConfigError, match="'magic4' is not known"):
        of_config.native(source.config, "x")


def test_a_plan_needs_no_torch_and_answers_at_once(checkpoints: Any, cache_home: Path) -> None:
    """From a local config, as a command of its own: 2 s of a core's time, however many others use it."""
    config = checkpoints("qwen3_moe") / "config.json"
    code = (
        "import sys; from headrace import cli; sys.argv = ['headrace', 'plan', *sys.argv[1:]]\n"
        "try: cli.main()\nexcept SystemExit as end: status = end.code or 0\n"
        "sys.exit(status or (3 if 'torch' in sys.modules else 0))"
    )
    took = []
    for arguments in ([config, "--context", "64"], ["Kimi-K2", "--hardware", "rtx-3090, epyc-9005-8ch"]):
        before = os.times()
        done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
        now = os.times()
        took.append(now.children_user - before.children_user + now.children_system - before.children_system)
        assert done.returncode == 0, done.stderr or "torch was imported"
    assert min(took) < 2


def test_a_picture_says_from_how_many_sequences_experts_are_bound_by_compute() -> None:
    """A token takes 8 of 128 experts; q4_0 has 18 bytes for 32 weights."""
    for hw, device in ((machine(gpus=0), 1e12 / 100e9), (machine(vram=80), 1e15 / 1000e9)):
        found = plan("Qwen3-30B-A3B", hw)
        assert crossover_batch(found) == pytest.approx(device * 18 / 32 / 2 * 128 / 8)
    assert crossover_batch(plan("Qwen3-30B-A3B", Hardware(name="?", cpu=plain("cpu", 100, 100)))) is None


def test_a_plot_is_written(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plan.svg"
    hw = ("--hardware", "rtx-3090, epyc-9005-8ch, 768gb, 64cores")
    status, _, err = run("plan", "Kimi-K2", "--quant", "q4_0", *hw, "--plot", path)
    assert status == 0, err
    drawn = path.read_text()
    assert drawn.startswith("<?xml")
    assert "</svg>" in drawn


def test_a_plot_needs_matplotlib(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = run("plan", "Kimi-K2", "--plot", tmp_path / "plan.png")
    assert status == 1
    assert "pip install 'headrace[plot]'" in err
