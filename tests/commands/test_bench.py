"""`headrace bench`: rows against the ledger, random weights from a config, layers left out, comparing results."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stand_in_gpu
import torch
from terminal import folded

from headrace import ConfigError, MemoryNeeded, OptionError, SamplingParams
from headrace.engine.bandwidth_model import tier_rates
from headrace.engine.bandwidth_model.pass_model import PassModel
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.bench import bench, overhead, random_weights
from headrace.engine.bench.grid import Grid
from headrace.engine.bench.random_weights import whole_spec
from headrace.engine.config import EngineConfig
from headrace.engine.devices import device
from headrace.engine.devices.device import ram
from headrace.engine.experts.offload_plan import NONE
from headrace.engine.llm import LLM
from headrace.engine.memory import pinned
from headrace.engine.placement.placement import Tier
from headrace.engine.terminal import bench_report
from headrace.kernels import reference
from headrace.kernels.context import Context
from headrace.loaders import memory
from headrace.loaders.weights import imagined
from headrace.loaders.weights.checkpoint import LoadOptions

Run = Callable[..., tuple[int, str, str]]
CONFIG: dict[str, Any] = {
    "model_type": "qwen2_moe", "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 160, "max_position_embeddings": 256,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64, "num_experts": 8, "num_experts_per_tok": 3,
    "norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": [0], "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "use_sliding_window": False, "torch_dtype": "bfloat16",
}  # fmt: skip
QUICK = Grid(prompt=(8,), new=(4,), batch=(1, 3), depth=(0, 20), rounds=2)


def random_llm(config: dict[str, Any] | None = None, **options: Any) -> LLM:
    more = {"max_context": QUICK.context, "max_sequences": QUICK.sequences, **options}
    return random_weights.random_llm(config or CONFIG, **more)


@pytest.mark.parametrize("format", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m", "q2_k", "mxfp4_moe"])
def test_noise_makes_a_model_that_runs(format: str) -> None:
    """Finite logits that differ from token to token, mean near 0, and the padding of an expert's block is 0."""
    llm = random_llm(expert_format=format, dense_format=format)
    logits = llm.logits([1, 2, 3])
    assert torch.isfinite(logits).all()
    assert not torch.equal(logits[0], logits[1])
    bank = llm.parts.weights.layers[1].experts
    assert bank is not None
    values = reference.dequantize(bank.matrix(0, "down"))
    assert abs(float(values.mean())) < 0.01
    assert 0.01 < float(values.std()) < 0.1
    lay = bank.layout
    used = lay.offset("down") + lay.part_bytes("down")
    assert not bank.data[:, used:].any()
    assert not torch.equal(bank.data[0], bank.data[1])


def test_a_run_does_not_circle_among_few_tokens() -> None:
    llm = random_llm({**CONFIG, "tie_word_embeddings": True})
    tokens = llm.generate([[1]], SamplingParams(max_new_tokens=20, ignore_eos=True))[0].token_ids
    assert len(set(tokens)) > 10


def test_layers_that_memory_does_not_hold_are_left_out() -> None:
    whole = imagined.imagine(CONFIG, LoadOptions())
    sizes = [imagined.cut(whole, n).weight_bytes for n in range(5)]

    def fit(asked: int | None, room: int, extra: int = 0) -> tuple[int, str]:
        return imagined.layers_that_fit(whole, asked, lambda found: imagined.check_room(found, room, extra))

    assert fit(None, sizes[4]) == (4, "")
    assert fit(None, sizes[4] - 1)[0] == fit(None, sizes[4], 1)[0] == 3
    assert fit(None, sizes[3])[1].startswith("4 layers of this model need")
    with pytest.raises(MemoryNeeded, match="2 layers"):
        fit(None, sizes[2] - 1)
    with pytest.raises(MemoryNeeded, match="4 layers"):
        fit(4, sizes[3])
    for asked in (0, 1, 5):
        with pytest.raises(OptionError, match=f"--layers is {asked}"):
            fit(asked, sizes[4])


def opened(host_gb: float, **options: Any) -> tuple[int, tuple[str, ...]]:
    """Layers of Qwen3-30B-A3B that random weights have beside a GPU with 40 GB, in RAM of so many GB; and notes."""
    config = EngineConfig(expert_format="q4_0", device="cuda", max_context=4096, **options)
    host = replace(ram(reference, "reference", config), free=int(host_gb * 1e9))
    gpu = replace(host, tier=Tier.GPU0, place=torch.device("cuda", 0), free=40 * 10**9)
    found = random_weights.RandomWeights("Qwen3-30B-A3B").open(config, {Tier.CPU: host, Tier.GPU0: gpu}, False)
    return len(found.spec.layers), found.notes


def test_ram_cuts_nothing_that_lies_in_vram(monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual machine may say that little is free, and grow as it is used."""
    monkeypatch.setattr("headrace.engine.experts.offload_plan.plan", lambda *_: NONE)  # asks CUDA about the link
    assert opened(1.0, placement="gpu") == (48, ())
    assert opened(1.0) == (48, ())
    layers, notes = opened(6.0, cpu_moe=True)
    assert layers < 48
    assert notes[-1].startswith(f"the first {layers} of 48 layers, since placement ")
    assert "--ram-limit" in notes[-1]
    with pytest.raises(MemoryNeeded, match=r"cpu \(RAM\) would hold"):
        opened(0.1, cpu_moe=True)


def test_what_the_system_says_is_free_can_be_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "free_memory", lambda: 100_000)
    monkeypatch.setattr(memory, "free_memory", lambda: 100_000)
    with pytest.raises(MemoryNeeded, match="can be taken"):
        random_llm()
    with pytest.raises(MemoryNeeded):
        LLM("demo")
    assert not random_weights.is_cut(random_llm(ram_limit=2))
    with LLM("demo", ram_limit=2) as llm:
        assert llm.parts.devices[Tier.CPU].free == 2 * 10**9
    weights = random_llm(ram_limit=2, layers=3).parts.weights.nbytes
    monkeypatch.setattr(device, "free_memory", lambda: 2 * weights)
    monkeypatch.setattr(memory, "free_memory", lambda: 10**9)
    monkeypatch.setattr(random_weights, "MEMORY_SHARE", 0.6)
    cut = random_llm(max_context=32, max_sequences=1)
    assert random_weights.is_cut(cut)
    assert f"the first {len(cut.spec.layers)} of 4 layers, since 4 layers of this model need" in cut.notes[-1]


def test_pinning_goes_by_the_same_limit(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of RAM that the system does not know of, the usual share."""
    monkeypatch.setattr(pinned, "all_memory", lambda: 100_000)
    stand_in_gpu.install(monkeypatch, library)
    common: dict[str, Any] = {"device": "simulated", "cpu_moe": True, "handoff": "eager", "max_context": 64}
    for limit, is_whole in ((None, False), (2.0, True)):
        with LLM("demo", ram_limit=limit, **common) as llm:
            assert llm.parts.expert_arena is not None
            assert llm.parts.expert_arena.is_whole == is_whole


def test_a_family_that_is_only_planned_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"kimi_linear.*headrace plan"):
        imagined.imagine("Kimi-Linear-48B-A3B", LoadOptions())


def test_packing_of_a_checkpoint_does_not_stop_its_shape() -> None:
    found = imagined.imagine({**CONFIG, "quantization_config": {"quant_method": "fp8"}}, LoadOptions())
    assert found.formats.experts.name == "bf16"


def test_rows_are_those_of_the_ledger(profile: Profile) -> None:
    llm = random_llm()
    llm.predictions.use_profile(profile)
    rows = list(bench.run(llm, QUICK))
    assert [(r.test, r.batch, r.depth) for r in rows] == [
        ("pp8", 1, 0), ("tg4", 1, 0), ("tg4", 3, 0), ("tg4", 1, 20), ("tg4", 3, 20),
    ]  # fmt: skip
    last = [p for p in llm.ledger.passes if p.phase == "decode"][-2 * 4 :]
    read = sum(p.total("cpu_dram") for p in last)
    row = rows[-1]
    assert {p.tokens for p in last} == {3}
    assert [p.context for p in last[:4]] == [3 * n for n in (21, 22, 23, 24)]
    assert row.bytes_per_token["cpu_dram"]["total"] == round(read / 24)
    assert row.predicted_tok_s == pytest.approx(24 / sum(p.predicted_s or 0 for p in last))
    assert row.rounds == pytest.approx(
        [12 / sum(p.measured_s for p in last[:4]), 12 / sum(p.measured_s for p in last[4:])]
    )
    assert row.residual_ms == pytest.approx(1e3 / row.tok_s - 1e3 / (row.predicted_tok_s or 1))
    assert row.share_of_ceiling == pytest.approx(row.bytes_per_token["cpu_dram"]["total"] * row.tok_s / 1e10)
    assert row.whole_tok_s is None


def test_prompts_are_never_in_the_cache(profile: Profile) -> None:
    llm = random_llm(max_context=96)
    llm.predictions.use_profile(profile)
    list(bench.run(llm, Grid(prompt=(80,), new=(0,), rounds=3)))
    assert [p.tokens for p in llm.ledger.passes if p.phase == "prefill"] == [80] * 4


def test_extrapolation_takes_the_layers_that_are_missing(profile: Profile) -> None:
    """From 2 layers (one of them dense) to 4: 3 times the experts; bytes of the whole as of a model with all layers."""
    cut, whole = random_llm(layers=2), random_llm()
    cut.predictions.use_profile(profile)
    grown = bench.growth(cut)
    assert grown["experts"] == 3
    assert grown["kv"] == 2
    assert grown["dense"] == whole.parts.decoder.sizes.layers / cut.parts.decoder.sizes.layers
    prefill, decode = bench.run(cut, Grid(prompt=(8,), new=(4,), rounds=1))
    assert prefill.whole_tok_s == pytest.approx(prefill.tok_s / 3)
    passes = [p for p in cut.ledger.passes if p.phase == "decode"][-4:]
    uncut = PassModel(whole_spec(cut), cut.parts.checkpoint.formats, cut.parts.kv_dtype, tier_rates.of_cpu(profile))
    found = [uncut(dataclasses.replace(p, bytes=bench.scaled(p.bytes, grown))) for p in passes]
    seconds = sum(one.seconds for one in found if one is not None)
    assert decode.whole_tok_s == pytest.approx(decode.tok_s * sum(p.predicted_s or 0 for p in passes) / seconds)
    assert 1.5 < decode.tok_s / decode.whole_tok_s < 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": (0,)}, "--batch is 0"),
        ({"rounds": 0}, "--rounds is 0"),
        ({"prompt": (0,), "new": (0,)}, "nothing to run"),
        ({"placements": ("cpu", "cpu-mo")}, "did you mean cpu-moe"),
    ],
)
def test_impossible_tests_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Grid(**options)


def result(**changes: Any) -> dict[str, Any]:
    row = {"test": "tg128", "batch": 1, "depth": 0, "placement": "cpu", "tok_s": 100.0}
    machine = {"cpu": "one", "isa": "amx", "threads": 2}
    return {"model": "m", "layers": 4, "formats": {}, "rows": [row], "passport": machine, **changes}


def with_speed(tok_s: float) -> dict[str, Any]:
    return result(rows=[{**result()["rows"][0], "tok_s": tok_s}])


@pytest.mark.parametrize(("now", "status"), [(94.9, 1), (95.1, 0), (120.0, 0)])
def test_more_than_5_percent_slower_is_a_failure(now: float, status: int) -> None:
    lines, found = bench_report.compare(result(), with_speed(now))
    assert found == status
    assert ("SLOWER" in lines[0]) == bool(status)


@pytest.mark.parametrize(
    ("old", "message"),
    [
        (result(passport={"cpu": "two", "isa": "amx", "threads": 2}), "cpu 'two', now 'one'"),
        (result(layers=5), "layers 5, now 4"),
        (result(rows=[{**result()["rows"][0], "batch": 2}]), "none of these tests"),
    ],
)
def test_what_cannot_be_compared_is_refused(old: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        bench_report.compare(old, result())


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"rows": [], "passport": {}}', '{"rows": [{"tok_s": 0}]}'])
def test_other_files_are_no_results(text: str, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(OptionError, match=r"old\.json is no result"):
        bench_report.load(tmp_path / "old.json")


def test_bench_on_the_command_line(run: Run, profile: Profile, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    command = ("bench", config, "--random-weights", "-p", "8", "-n", "4", "-b", "1,2", "-r", "2", "--threads", "1")
    status, out, err = run(*command, "--layers", 2, "--json", tmp_path / "a.json")
    assert (status, "Traceback" in err) == (0, False)
    assert "~4 layers" in out
    assert "2 of 4 layers were run" in folded(err)
    found = bench_report.load(tmp_path / "a.json")
    assert [row["test"] for row in found["rows"]] == ["pp8", "tg4", "tg4"]
    assert all(row["is_extrapolated"] for row in found["rows"])
    assert found["passport"]["threads"] == 1
    for row in found["rows"]:
        row["tok_s"] *= 1000
    bench_report.save(found, tmp_path / "fast.json")
    status, _, err = run(*command, "--layers", 2, "--compare", tmp_path / "fast.json")
    assert status == 1
    assert "SLOWER" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-b", "1,x"), "--batch is '1,x'"),
        (("--layers", 2), "--random-weights"),
        (("--placement", "gpu", "--device", "cuda:99"), "device is 'cuda:99', but torch"),
        (("--placement", "gpux"), "--placement is 'gpux'"),
        (("--compare", "/nowhere.json"), "cannot read /nowhere.json"),
    ],
)
def test_bench_refuses(run: Run, options: tuple[Any, ...], message: str) -> None:
    status, _, err = run("bench", "demo", *options)
    assert status == 1
    assert message in folded(err)


def test_doctor_on_the_command_line(run: Run, profile: Profile, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    status, out, err = run("doctor", config, "--random-weights", "--threads", "1")
    assert status == 0
    assert "bound by" in out
    assert "first: " in out or "nothing found" in out
    assert "caches" in err
    status, out, _ = run("doctor")
    assert status == 0
    assert "plain read: 10.0 GB/s" in out
    assert run("doctor", "--random-weights")[0] == 1


def test_shapes_of_the_overhead_models_read_the_same() -> None:
    found = {name: imagined.imagine(config, LoadOptions()).spec for name, config in overhead.shapes(8, 2, 64).items()}

    def experts(name: str) -> int:
        spec = found[name]
        return len(spec.layers) * (spec.moe.top_k * spec.moe.width + spec.moe.shared_width)

    def attention(name: str) -> int:
        return len(found[name].layers) * found[name].mixers[0].q_rows

    assert experts("many") == experts("few") == experts("shared")
    assert attention("many") == attention("few") == attention("shared")
    assert (len(found["many"].layers), len(found["few"].layers)) == (8, 2)


def test_overhead_is_measured() -> None:
    found = overhead.measure(Context(), many=8, few=2, width=32, rounds=1)
    assert found.pass_s >= 0
    assert 0 < found.logit_s < 1e-6
    assert found.layer_s < found.layer_batch["128"]
    assert set(found.layer_batch) == {"4", "128"}
    assert 0 <= found.layer_s < 0.1
    assert 0 <= found.shared_s < 0.1
