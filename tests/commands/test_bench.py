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
from headrace.engine.measure import other_load
from headrace.engine.memory import pinned
from headrace.engine.model.kv_cache import PAGE
from headrace.engine.placement.placement import Tier
from headrace.engine.terminal.bench import bench_curves, bench_plot, bench_report
from headrace.engine.terminal.bench.bench_curves import Result
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
    more = {"max_context": QUICK.context, "max_sequences": QUICK.sequences, "speculate": "off", **options}
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
    """One that nobody wrote down, with the usual names of sizes."""
    with pytest.raises(ConfigError, match=r"brook_moe.*headrace plan"):
        imagined.imagine({**CONFIG, "model_type": "brook_moe"}, LoadOptions())


def test_a_catalogue_without_a_value_says_which() -> None:
    with pytest.raises(ConfigError, match=r"Qwen3.8-Flash-Next.*indexer_budget"):
        imagined.imagine("Qwen3.8-Flash-Next", LoadOptions())


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
    uncut = PassModel(whole_spec(cut), cut.parts.checkpoint.formats, cut.parts.kv_format, tier_rates.of_cpu(profile))
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


@pytest.mark.parametrize(("cores", "is_said"), [(1.5, True), (0.0, False)])
def test_others_that_compute_meanwhile_are_said(
    cores: float, is_said: bool, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_load.Strangers, "cores", lambda _: cores)
    monkeypatch.setattr(other_load, "LOOK_S", 0.0)
    status, _, err = run("bench", "demo", "-p", 0, "-n", 2, "-r", 1, "--json", tmp_path / "a.json")
    assert status == 0
    assert ("other processes took 1.5 cores meanwhile, so that these speeds are too low" in folded(err)) == is_said
    assert json.loads((tmp_path / "a.json").read_text())["busy"] == cores


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
    assert 0 <= found.row_s < 0.1


# ---- room for the largest batch


@pytest.mark.parametrize(("batch", "depth", "new"), [(40, 64, 32), (64, 0, 31), (17, 300, 20), (1, 250, 4)])
def test_the_largest_batch_decodes_together(batch: int, depth: int, new: int, profile: Profile) -> None:
    """Admission leaves pages free: a cache of no more than the sequences' own would never hold the last one."""
    tests = Grid(prompt=(0,), new=(new,), batch=(batch,), depth=(depth,), rounds=1)
    llm = random_llm({**CONFIG, "max_position_embeddings": 512}, **bench.room(tests))
    (row,) = bench.run(llm, tests)
    assert (row.batch, row.depth) == (batch, depth)
    assert max(len(p.sequences) for p in llm.ledger.passes) == batch


def test_a_cache_without_room_is_said_before_anything_runs(profile: Profile) -> None:
    tests = Grid(prompt=(0,), new=(4,), batch=(3,), depth=(60,), rounds=1)
    llm = random_llm(max_context=64, max_sequences=2)
    with pytest.raises(MemoryNeeded, match=r"3 sequences of 64 tokens take .* lower --batch, --depth or --new"):
        next(bench.run(llm, tests))
    assert not llm.ledger.passes


def test_too_few_tokens_for_a_batch_are_said(profile: Profile) -> None:
    """A page of each of 24 prompts is computed again in every round, more than a pass takes."""
    tests = Grid(prompt=(0,), new=(1,), batch=(24,), depth=(PAGE,), rounds=1)
    llm = random_llm(**bench.room(tests))
    with pytest.raises(
        OptionError, match="of 24 sequences the first was done, with --new 1, before the last one began"
    ):
        list(bench.run(llm, tests))


def test_crossovers_are_where_many_tokens_take_as_long_as_one(profile: Profile) -> None:
    """Kernels that are 4 times as slow with 16 tokens as with one: arithmetic bounds from 4 tokens on, experts of
    which a token chooses 3 of 8 from 4 * 8 / 3."""
    slower = {name: rate / 4 for name, rate in profile.linear.items()}
    llm = random_llm()
    llm.predictions.use_profile(dataclasses.replace(profile, batch={"16": slower}, crowd={"16": slower}))
    prefill, decode = bench.run(llm, Grid(prompt=(8,), new=(4,), rounds=1))
    assert decode.crossover == pytest.approx({"dense": 4, "experts": 4 * 8 / 3})
    assert prefill.crossover == {}
    llm.predictions.use_profile(profile)  # as fast with 16 as with one, and proportional from there
    assert bench.crossovers(llm, {}) == pytest.approx({"dense": 16, "experts": 16 * 8 / 3})
    llm.predictions.use_profile(None)
    assert bench.crossovers(llm, {}) == {}


# ---- pictures


def measured(batch: int, depth: int, tok_s: float, **more: Any) -> dict[str, Any]:
    row = {"test": "tg8", "batch": batch, "depth": depth, "placement": "cpu", "tok_s": tok_s}
    return {**row, "rounds": [tok_s - 5, tok_s, tok_s + 10], "predicted_tok_s": 2 * tok_s, **more}


OVER_BATCH = result(rows=[measured(b, 0, 100.0 * b, crossover={"dense": 3.5}) for b in (4, 1, 2)])
OVER_DEPTH = result(rows=[measured(1, d, 100.0 - d / 100) for d in (0, 1024, 4096)])


def test_a_curve_has_what_was_measured_and_predicted() -> None:
    (found,) = bench_curves.panels([Result(found=OVER_BATCH)])
    (curve,) = found.curves
    assert (found.axis, found.same, curve.label) == ("batch", "cpu, tg8, depth 0", "")
    assert [(p.at, p.tok_s, p.low, p.high, p.predicted_tok_s) for p in curve.points] == [
        (1, 100, 95, 110, 200), (2, 200, 195, 210, 400), (4, 400, 395, 410, 800),
    ]  # fmt: skip
    assert [(p.step_s, p.predicted_s) for p in curve.points] == [(0.01, 0.005)] * 3
    assert curve.crossover == {"dense": 3.5}
    (found,) = bench_curves.panels([Result(found=OVER_DEPTH)])
    assert [(p.at, p.tok_s) for p in found.curves[0].points] == [(0, 100), (1024, 89.76), (4096, 59.04)]
    assert (found.axis, found.same) == ("depth", "cpu, tg8, batch 1")


def test_both_were_measured_both_are_drawn() -> None:
    """Prompts and tests of one point have no curve; placements have one each."""
    rows = [measured(b, d, 10.0 * b - d, placement=p) for b in (1, 8) for d in (0, 4) for p in ("cpu", "gpu")]
    rows += [measured(1, 0, 500.0, test="pp512"), measured(2, 99, 10.0)]
    batch, depth = bench_curves.panels([Result(found=result(rows=rows))])
    assert [one.label for one in batch.curves] == ["cpu, depth 0", "gpu, depth 0", "cpu, depth 4", "gpu, depth 4"]
    assert [one.label for one in depth.curves] == ["cpu, batch 1", "gpu, batch 1", "cpu, batch 8", "gpu, batch 8"]
    assert batch.same == depth.same == "tg8"
    assert [p.tok_s for p in depth.curves[3].points] == [80, 76]


def test_what_is_not_known_is_not_drawn() -> None:
    rows = [{**measured(b, 0, 10.0), "predicted_tok_s": None, "rounds": None} for b in (1, 2)]
    (found,) = bench_curves.panels([Result(found=result(rows=rows))])
    first = found.curves[0].points[0]
    assert (first.predicted_tok_s, first.predicted_s, first.low, first.high) == (None, None, 10, 10)
    assert found.curves[0].crossover == {}


def test_results_are_named_by_their_machines() -> None:
    """And by more only where the machine is not enough."""
    other = {**OVER_BATCH, "passport": {"cpu": "two", "isa": "avx2", "threads": 8}, "gpus": ["H200"]}
    here, there = bench_curves.named([OVER_BATCH, other], ["a.json", "b.json"])
    assert (here.name, there.name) == ("one, 2 threads, amx", "H200 + two, 8 threads, avx2")
    assert bench_curves.title([OVER_BATCH, other]) == "m, 4 layers, experts None, dense None"
    assert [one.name for one in bench_curves.named([OVER_BATCH], ["a.json"])] == [""]
    assert bench_curves.title([OVER_BATCH]).endswith("one, 2 threads, amx")
    twice = bench_curves.named([OVER_BATCH, OVER_BATCH], ["a.json", "b.json"])
    assert [one.name for one in twice] == ["a.json", "b.json"]
    models = bench_curves.named([OVER_BATCH, {**OVER_BATCH, "model": "./n"}, other], ["a.json", "b.json", "c.json"])
    assert [one.name for one in models] == ["one, 2 threads, amx, m", "one, 2 threads, amx, n", other_name(there)]
    (panel,) = bench_curves.panels(twice)
    assert [curve.label for curve in panel.curves] == ["a.json", "b.json"]
    assert bench_plot.marks(panel.curves) == [("dense", 3.5, "black")]


def other_name(there: Result) -> str:
    return f"{there.name}, m"


def save_all(folder: Path, **results: dict[str, Any]) -> list[Path]:
    for name, found in results.items():
        bench_report.save(found, folder / f"{name}.json")
    return [folder / f"{name}.json" for name in results]


def test_results_of_several_machines_are_drawn_without_a_run(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    batch, depth = save_all(tmp_path, batch=OVER_BATCH, depth=OVER_DEPTH)
    picture = tmp_path / "all.svg"
    status, out, err = run("bench", "--plot", picture, "--from", batch, "--from", depth)
    assert (status, out, err) == (0, "", "")
    assert "</svg>" in picture.read_text()


def test_a_run_is_drawn_beside_old_results(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    drawn: list[list[dict[str, Any]]] = []
    save = bench_plot.save
    monkeypatch.setattr(bench_plot, "save", lambda found, *rest: (drawn.append(found), save(found, *rest)))
    (old,) = save_all(tmp_path, old=OVER_BATCH)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    command = ("bench", tmp_path / "config.json", "--random-weights", "-p", 0, "-n", 2, "-b", "1,2", "-d", "0,40")
    status, _, err = run(*command, "-r", 1, "--threads", 1, "--plot", tmp_path / "a.png", "--from", old)
    assert status == 0, err
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    ((found, beside),) = drawn
    assert [(row["batch"], row["depth"]) for row in found["rows"]] == [(1, 0), (2, 0), (1, 40), (2, 40)]
    assert found["gpus"] == []
    assert beside == OVER_BATCH


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("demo", "--plot", "x.png"), "measure several, -b 1,4,16 or --depth 0,1024,4096"),
        (("demo", "--plot", "x.png", "-b", "2,2"), "measure several"),
        (("demo", "--plot", "x.png", "-b", "1,2", "-n", 0), "measure several"),
        (("demo", "--plot", "x.gif", "-b", "1,2"), "--plot x.gif: give a name that ends in .png or .svg"),
        (("demo", "--from", "x.json"), "--from says what is drawn: add --plot"),
        (("--plot", "x.png"), "no model: headrace bench MODEL, or headrace bench --plot FILE.png --from RESULT.json"),
        ((), "no model"),
        (("--plot", "x.png", "--from", "/nowhere.json"), "cannot read /nowhere.json"),
        (("--plot", "x.png", "--from", "point.json"), "point.json has no curve to draw"),
        (("--plot", "x.png", "--from", "point.json", "--json", "y.json"), "no model"),
        (("--plot", "x.png", "--from", "other.json"), "other.json is no result of headrace bench --json"),
        (("demo", "-b", "1,2", "--plot", "x.png", "--from", "other.json"), "other.json is no result"),
    ],
)
def test_pictures_that_cannot_be(
    run: Run, options: tuple[Any, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    save_all(tmp_path, point=result(rows=[measured(1, 0, 10.0)]))
    (tmp_path / "other.json").write_text("{}")
    status, out, err = run("bench", *options)
    assert (status, out) == (1, "")
    assert message in folded(err)
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    "row",
    [{"batch": "two"}, {"batch": 0}, {"depth": None}, {"tok_s": float("inf")}, {"tok_s": "5"}, {"rounds": [1.0, "x"]},
     {"rounds": 3}, {"rounds": [-1.0]}, {"predicted_tok_s": float("nan")}, {"test": 5}, {"placement": None}],
)  # fmt: skip
def test_rows_that_are_none(row: dict[str, Any], tmp_path: Path) -> None:
    (path,) = save_all(tmp_path, old=result(rows=[measured(1, 0, 10.0)]))
    assert bench_report.load(path)["rows"] == [measured(1, 0, 10.0)]
    save_all(tmp_path, old=result(rows=[{**measured(1, 0, 10.0), **row}]))
    with pytest.raises(OptionError, match=r"old\.json is no result"):
        bench_report.load(path)
