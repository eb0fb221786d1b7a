"""The parts of `benchmarks/vs_peers.py` that need neither peers nor time: file plans, byte sums, comparing results."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import attention_speed
import bench_kernels
import deterministic_cost
import gguf_model
import grammar_cost
import interleave
import predict_grid
import pytest
import report
import result_file
import roofline
import torch
import whole_model

from headrace import LLM
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.bench.cpu_generation import generation
from headrace.engine.bench.passport import passport
from headrace.engine.planning.speed import Workload
from headrace.kernels.context import Context
from headrace.loaders.architecture import catalogue

CONFIG = catalogue.find("Qwen3-30B-A3B").config
SMALL = {
    **CONFIG, "num_hidden_layers": 2, "hidden_size": 256, "moe_intermediate_size": 256, "num_experts": 8,
    "num_experts_per_tok": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 512,
    "max_position_embeddings": 1024,
}  # fmt: skip


def test_more_bits_go_to_half_of_the_layers() -> None:
    chosen = [layer for layer in range(48) if gguf_model.uses_more_bits(layer, 48)]
    assert chosen == [*range(6), *range(8, 42, 3), *range(42, 48)]
    assert [layer for layer in range(12) if gguf_model.uses_more_bits(layer, 12)] == [0, 3, 6, 9, 10, 11]


def test_types_by_tensor() -> None:
    q4_0, q4_k_m = (gguf_model.plan(CONFIG, recipe) for recipe in ("Q4_0", "Q4_K_M"))
    assert {t.kind for n, t in q4_0.items() if "norm" not in n and "ffn_gate_inp" not in n} == {"Q4_0", "Q6_K"}
    assert [n for n, t in q4_0.items() if t.kind == "Q6_K"] == ["output.weight"]
    kinds = {role: q4_k_m[f"blk.{role}.weight"].kind for role in ("0.attn_v", "0.attn_k", "6.attn_v")}
    assert kinds == {"0.attn_v": "Q6_K", "0.attn_k": "Q4_K", "6.attn_v": "Q4_K"}
    assert q4_k_m["blk.47.ffn_down_exps.weight"].kind == "Q6_K"
    assert q4_k_m["blk.47.ffn_up_exps.weight"].kind == "Q4_K"


def test_bytes_per_token_by_hand() -> None:
    """Qwen3-30B-A3B in Q4_0: 4.5 bits a weight, head 6.5625, router and norms float32."""
    attention, experts = 2 * 2048 * 4096 + 2 * 2048 * 512, 8 * 3 * 2048 * 768
    plain = 4 * (128 * 2048 + 2 * 2048 + 2 * 128)
    head = 151936 * 2048 * 210 // 256
    expected = 48 * ((attention + experts) * 18 // 32 + plain) + head + 2048 * 4 + 2048 * 18 // 32
    assert gguf_model.bytes_per_token(CONFIG, "Q4_0") == expected
    assert gguf_model.bytes_per_token(CONFIG, "Q4_K_M") > expected


def test_our_side_reads_the_bytes_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of Q4_0 with q4_0 for the head, bf16 for the embedding; all rows here are whole 16-byte pieces."""
    monkeypatch.setattr(whole_model, "config_of", lambda layers: {**SMALL, "num_hidden_layers": layers})
    with whole_model.random_model(2) as llm:
        ours = whole_model.our_bytes_per_token(llm)
    theirs = gguf_model.bytes_per_token(SMALL, "Q4_0")
    head = 512 * 256 * (210 * 32 - 18 * 256) // (256 * 32)
    embed = 256 * 2 - 256 * 18 // 32
    assert ours == theirs - head + embed


def test_a_file_with_delta_rules_is_what_the_loader_wants(tmp_path: Path) -> None:
    """Two layers of a shape of Qwen3.6, one of each kind, in both recipes."""
    config = catalogue.find("Qwen3.6-35B-A3B").config
    small = {
        **config, "num_hidden_layers": 2, "full_attention_interval": 2, "hidden_size": 256, "vocab_size": 512,
        "moe_intermediate_size": 256, "shared_expert_intermediate_size": 256, "num_experts": 8,
        "num_experts_per_tok": 3, "max_position_embeddings": 1024,
    }  # fmt: skip
    for recipe in ("Q4_0", "Q4_K_M"):
        gguf_model.write(tmp_path / f"{recipe}.gguf", small, recipe)
        with LLM(tmp_path / f"{recipe}.gguf", max_context=64, speculate="off") as llm:
            logits = llm.logits([3, 4, 5])
        assert torch.isfinite(logits).all()
        assert logits.std() > 0.1


@pytest.mark.parametrize(
    ("shape", "recipe", "smaller"),
    [
        ("gpt-oss-20b", "MXFP4_MOE",
         {"hidden_size": 512, "intermediate_size": 512, "num_local_experts": 8, "num_attention_heads": 8,
          "num_key_value_heads": 2}),
        ("DeepSeek-V3", "Q4_K_M",
         {"hidden_size": 256, "moe_intermediate_size": 256, "intermediate_size": 512, "n_routed_experts": 16,
          "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 256, "kv_lora_rank": 256}),
        ("Kimi-K2", "Q4_0",
         {"hidden_size": 256, "moe_intermediate_size": 96, "intermediate_size": 512, "n_routed_experts": 24,
          "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 256, "kv_lora_rank": 256}),
    ],
)  # fmt: skip
def test_files_of_other_mixers_are_what_the_loader_wants(
    shape: str, recipe: str, smaller: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor has its place, and a token reads the bytes that the plan of the file says, but for what is kept in
    other types here: vectors, and rows of the embedding."""
    config = catalogue.find(shape).config | {"num_hidden_layers": 2, "vocab_size": 512, "max_position_embeddings": 1024}
    gguf_model.write(tmp_path / "model.gguf", config | smaller, recipe)
    monkeypatch.setattr(whole_model, "config_of", lambda _: {"vocab_size": 512})
    with LLM(tmp_path / "model.gguf", max_context=64, speculate="off") as llm:
        logits = llm.logits([3, 4, 5])
        read = whole_model.our_bytes_per_token(llm)
    assert torch.isfinite(logits).all()
    assert logits.std() > 0.1
    assert read == pytest.approx(gguf_model.bytes_per_token(config | smaller, recipe), rel=0.03)


@pytest.mark.parametrize("format", ["q4_0", "q4_k_m"])
def test_a_grid_is_cut_to_memory_and_predicted_before_it_runs(format: str, profile: Profile) -> None:
    """OLMoE in four bits: a layer is about 0.24 GB; at 10 GB/s everywhere plan and plain sum differ by cache and
    costs."""
    config = predict_grid.config_of("OLMoE-1B-7B", format, 13 * 10**8)
    sizes = predict_grid.storage_of(config, format)
    assert 2 < config["num_hidden_layers"] < 16
    assert sizes.in_memory <= 1.05 * 13 * 10**8, "of a mix some layers have more"
    work = Workload(context=64, batch=1, prompt=1)
    costly = replace(profile, layer_s=1e-3, pass_s=5e-3)
    planned, plain, _ = predict_grid.before(config, format, costly, work)
    cache = 65 * 2 * 2 * 2048 * config["num_hidden_layers"]
    costs = 5e-3 + 1e-3 * config["num_hidden_layers"]
    row = sizes.rows  # of the embedding, which the plain sum leaves out
    assert planned == pytest.approx(plain + (cache + row) / 1e10 + costs)


def grid_point(measured: float, shape: str = "x", phase: str = "decode") -> predict_grid.Point:
    return predict_grid.Point(
        shape=shape, layers=2, format="q4_0", phase=phase, batch=1, context=64, measured_s=measured, all_s=2 * measured,
        kept=0.5, steps=8, pace=1.0, strangers=0.0, predicted_s=1.0, as_routed_s=1.0, plain_s=0.5,
    )  # fmt: skip


def test_errors_of_a_grid() -> None:
    assert grid_point(2.0).error("predicted") == -0.5
    found = predict_grid.summary([grid_point(2.0), grid_point(1.0), grid_point(0.8), grid_point(9.0, phase="prefill")])
    assert found["predicted"] == {"median": 0.25, "worst": 0.5, "bias": 0.0}
    assert found["predicted, all steps"]["worst"] == 0.75
    assert found["prompts"]["worst"] == pytest.approx(8 / 9, abs=1e-4)
    assert found["shape x"]["plain"]["worst"] == 0.75
    assert " | -50.0% | -50.0% | -75.0% | 4000.00 ms | 50% of 8 | 0.00 |" in predict_grid.row(grid_point(2.0))


def test_a_shape_is_predicted_by_a_factor_of_the_others() -> None:
    """Two shapes that take twice as long as predicted, and one that does not."""
    found = predict_grid.left_out(
        [grid_point(2.0, "a"), grid_point(2.0, "b"), grid_point(2.0, "b"), grid_point(1.0, "c")]
    )
    assert found["factors"] == {"a": 2.0, "b": 1.5, "c": 2.0}
    assert found["worst"] == 1.0
    assert predict_grid.left_out([grid_point(2.0, "a")]) == {}


def test_pieces_of_a_grid_are_merged(profile: Profile, tmp_path: Path) -> None:
    """A new point takes the place of its like; results that another profile predicted are not kept."""
    path = tmp_path / "grid.json"
    first = predict_grid.merged(path, profile, [grid_point(2.0, "a"), grid_point(4.0, "b")])
    path.write_text(json.dumps(predict_grid.result_of(first, profile)))
    assert "OLMoE-1B-7B q4_0 decode batch 1 context 64" in json.loads(path.read_text())["missing"]
    found = predict_grid.merged(path, profile, [grid_point(1.0, "a")])
    assert [(p.shape, p.measured_s) for p in found] == [("b", 4.0), ("a", 1.0)]
    assert predict_grid.merged(path, replace(profile, stream=1.0), [grid_point(1.0, "a")]) == [grid_point(1.0, "a")]


def test_a_grid_is_measured_in_turns(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model of one of the shapes: every point has its steps, and says how many were kept."""
    monkeypatch.setattr(predict_grid, "CONTEXTS", (8, 40))
    monkeypatch.setattr(predict_grid, "PROMPT", 16)
    monkeypatch.setattr(predict_grid, "WANTED", 4)
    monkeypatch.setattr(predict_grid, "PROMPTS_WANTED", 2)
    monkeypatch.setattr(predict_grid, "LIMIT_S", 20.0)
    monkeypatch.setattr(predict_grid.Strangers, "cores", lambda self: 0.0)
    tiny = {**catalogue.find("OLMoE-1B-7B").config, "hidden_size": 256, "intermediate_size": 64, "vocab_size": 512,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}  # fmt: skip
    monkeypatch.setattr(predict_grid, "is_alike", lambda pace, wanted: True)
    runs = predict_grid.Runs(tiny, "x", "q4_0", replace(profile, pace_s=1.0))
    runs.turns()
    found = {(p.phase, p.batch, p.context): p for p in runs.points()}
    assert set(found) == {("decode", 1, 8), ("decode", 4, 8), ("decode", 1, 40), ("decode", 4, 40), ("prefill", 1, 16)}
    assert all(p.kept == 1.0 and p.steps >= 2 for p in found.values())
    contexts = {p.context for p, _ in runs.samples["decode", 4, 40]}
    assert contexts == {4 * n for n in range(37, 45)}
    assert {p.tokens for p, _ in runs.samples["prefill", 1, 16]} == {16}


def result(**ratios: Any) -> dict[str, Any]:
    passport = {"cpu": "one", "isa": "avx512", "threads": 2}
    return {"layers": 12, "passport": passport, "share_of_read_bandwidth": {"q4_0": 0.9}, **ratios}


def test_compare_names_what_got_worse() -> None:
    old = result(decode_same_file_q4_0=1.5, batch8_vs_batch1=3.0)
    new = result(decode_same_file_q4_0=1.4, batch8_vs_batch1=2.9, share_of_read_bandwidth={"q4_0": 0.8})
    lines, status = report.compare(old, new)
    assert status == 1
    assert [line.split(":")[0] for line in lines] == ["share_of_read_bandwidth.q4_0", "decode_same_file_q4_0"]


def test_compare_passes_what_is_better_or_missing() -> None:
    assert report.compare(result(decode_same_file_q4_0=1.5), result())[1] == 0
    assert report.compare(result(decode_same_file_q4_0=1.0), result(decode_same_file_q4_0=2.0))[1] == 0


@pytest.mark.parametrize("field", ["cpu", "isa", "threads"])
def test_other_machines_are_not_compared(field: str) -> None:
    old, new = result(decode_same_file_q4_0=2.0), result(decode_same_file_q4_0=1.0)
    new["passport"] = {**new["passport"], field: "other"}
    lines, status = report.compare(old, new)
    assert status == 0
    assert field in lines[0]


def test_ratios_pair_the_rounds() -> None:
    """A machine that gets slower by half for both does not change the ratio."""
    rates = {"a": [2.0, 1.0, 4.0], "b": [1.0, 0.5, 2.0]}
    assert interleave.ratio(rates, "a", "b") == 2.0
    assert interleave.ratio(rates, "a", "c") is None


def test_turns_start_with_one_unmeasured() -> None:
    calls: list[tuple[str, int]] = []

    def side(name: str, turn: int) -> float:
        calls.append((name, turn))
        return float(turn)

    rates = interleave.take_turns({name: partial(side, name) for name in "ab"}, 2)
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert rates == {"a": [1.0, 2.0], "b": [1.0, 2.0]}


def test_our_own_work_is_no_stranger() -> None:
    strangers = interleave.Strangers()
    sum(range(1_000_000))
    assert strangers.cores() >= 0


def test_roofline_takes_what_reads_weights(tmp_path: Path) -> None:
    rows = [
        {"op": "experts", "case": "q4_0 64x2048x1024 1 tokens top 8", "gb_per_s": 20.0, "gflop_per_s": 70.0},
        {"op": "linear", "case": "bf16 512x2048x2048", "gb_per_s": 2.0, "gflop_per_s": 900.0},
        {"op": "rmsnorm", "case": "1x2048", "gb_per_s": 1.0, "gflop_per_s": 0.0},
    ]
    assert roofline.points({"rows": rows}) == [("experts", "q4_0", 3.5, 70.0), ("linear", "bf16", 450.0, 900.0)]
    passport = {"threads": 2, "isa": "amx", "date": "2026-01-01"}
    for peaks in ({"bf16 tiles": 6000.0, "int8 dot products": 2000.0}, {"bf16 tiles": 0.0, "int8 dot products": 0.0}):
        result = {"rows": rows, "passport": passport, "peak_gop_per_s": peaks, "read_gb_per_s": {"median": 25.0}}
        roofline.draw(result, tmp_path / "roofline.svg")
        text = (tmp_path / "roofline.svg").read_text()
        assert text.startswith("<?xml")


def test_a_format_is_held_against_what_multiplies_it() -> None:
    peaks = {"float multiply-adds": 1.0, "int8 dot products": 4.0, "bf16 dot products": 2.0, "bf16 tiles": 0.0}
    found = {name: bench_kernels.peak_of(peaks, name) for name in ("f32", "f16", "bf16", "fp8", "q4_k", "4x2048")}
    assert found == {"f32": 1.0, "f16": 2.0, "bf16": 2.0, "fp8": 2.0, "q4_k": 4.0, "4x2048": 0.0}
    assert bench_kernels.peak_of({**peaks, "bf16 tiles": 9.0, "int8 tiles": 16.0}, "bf16") == 9.0
    assert bench_kernels.peak_of({"float multiply-adds": 1.0, "bf16 dot products": 0.0}, "bf16") == 1.0


def test_a_result_is_named_after_the_processor() -> None:
    passport = {"cpu": "Intel(R) Xeon(R) Processor", "cpu_generation": "Zen 4", "cores": 2, "isa": "avx512"}
    assert result_file.default("decode", passport).name == "decode-zen4-2core-avx512.json"
    unknown = {**passport, "cpu_generation": None, "cores": None, "logical_cpus": 4}
    assert result_file.default("decode", unknown).name == "decode-intel-xeon-processor-4core-avx512.json"
    assert result_file.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert result_file.asked(None, "x", passport) is None
    assert result_file.asked(Path("a.json"), "x", passport) == Path("a.json")


@pytest.mark.parametrize(
    ("vendor", "family", "model", "name"),
    [
        ("AuthenticAMD", 25, 0x01, "Zen 3"),
        ("AuthenticAMD", 25, 0x11, "Zen 4"),
        ("AuthenticAMD", 25, 0x50, "Zen 3"),
        ("AuthenticAMD", 25, 0xA0, "Zen 4"),
        ("AuthenticAMD", 26, 0x02, "Zen 5"),
        ("GenuineIntel", 6, 143, "Sapphire Rapids"),
        ("GenuineIntel", 6, 1, None),
        ("GenuineIntel", 15, 143, None),
    ],
)
def test_generations_of_processors(vendor: str, family: int, model: int, name: str | None) -> None:
    first = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: EPYC\n"
    assert generation(f"{first}\nprocessor\t: 1\nmodel\t\t: 207\n") == name
    assert generation("") is None


def test_a_passport_says_no_folders_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/a/b/vs_peers.py", "--llama-python", "/home/me/v/bin/python", "--layers", "8"])
    assert passport(Context())["command"] == "vs_peers.py --llama-python python --layers 8"


def test_the_cost_of_a_grammar_is_measured_in_turns() -> None:
    """That it runs, and what it gives; the demo's figures mean nothing."""
    with LLM("demo", no_measure=True) as llm:
        found = grammar_cost.measure(llm, 12, 2)
    assert {name for name in found if name.endswith("_over_free")} == {
        "asleep_over_free", "awake_over_free", "schema_over_free",
    }  # fmt: skip
    assert all(len(each) == 2 and min(each) > 0 for name, each in found.items() if name.endswith("ratios"))
    assert found["step_ms"] > 0


def test_the_cost_of_determinism_is_measured_in_turns() -> None:
    """As above."""
    options: dict[str, Any] = {"no_measure": True, "max_context": 128, "speculate": "off"}
    with LLM("demo", **options) as plain, LLM("demo", deterministic=True, **options) as fixed:
        found = deterministic_cost.measure(plain, fixed, 40, 3, 3)
    assert set(found) == {"prefill", "decode"}
    assert all(0 < one["least"] <= one["ratio"] <= one["most"] for one in found.values())


def test_shares_of_attention_by_hand() -> None:
    """Qwen3-30B-A3B: 2 KB a token; of 32 heads 256 multiplications with each key and its value."""
    case = attention_speed.Case(attention_speed.SHAPES[0], sequences=2, new=1, context=500)
    assert (case.bytes, case.flops) == (2 * 500 * 2048, 2 * 2 * 500 * 32 * 256)
    prompt = attention_speed.Case(attention_speed.SHAPES[0], sequences=1, new=3, context=10)
    assert prompt.flops == 2 * (8 + 9 + 10) * 32 * 256
    found = {"reads": [1e9, 2e9, 4e9], "here": [2e-3] * 3, "other": [4e-3, 3e-3, 8e-3]}
    row = attention_speed.summary(case, found, peak=1e11)
    assert row["bound"] == "read"
    assert row["here"] == {"us": 2000.0, "of_read": 0.512, "of_peak": 0.082}
    assert row["gain"] == {"median": 2.0, "least": 1.5, "most": 4.0}
    assert attention_speed.summary(case, found, peak=1e10)["bound"] == "peak"
