"""The ledger: counted bytes equal predicted bytes equal numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from expected_bytes import pass_bytes
from placements import force
from released import mixers

from headrace import LLM, OptionError, SamplingParams
from headrace.engine.bandwidth_model import tier_rates
from headrace.engine.bandwidth_model.pass_model import PassModel
from headrace.engine.bandwidth_model.profile import Profile, mean_queries
from headrace.engine.experts.backend import distinct
from headrace.engine.ledger.ledger import Ledger
from headrace.engine.ledger.pass_bytes import bytes_per_token
from headrace.engine.ledger.passes import Pass, Prediction, in_turn
from headrace.engine.ledger.summary import summarise
from headrace.kernels import FORMATS
from headrace.kernels.formats import KV_BF16
from headrace.kernels.passes.tally import Choice
from headrace.loaders.architecture import catalogue
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.spec import ModelSpec
from headrace.loaders.weights.model_weights import Formats

Checkpoints = Callable[[str], Path]


@pytest.mark.parametrize("expert_format", ["f32", "bf16", "q8_0", "q4_0"])
def test_bytes_of_a_decode_step_worked_out_by_hand(expert_format: str, checkpoints: Checkpoints) -> None:
    """qwen3_moe: hidden 64, 3 layers (1 dense, 96 wide), 8 experts 32 wide, top 3, 4 + 4 heads of 24, 160 tokens."""
    llm = LLM(str(checkpoints("qwen3_moe")), expert_format=expert_format, dense_format="bf16", dtype="bfloat16")
    force(llm, [[0, 3, 7], [1, 2, 4]])
    result = llm.generate([[5, 6, 7, 8]], SamplingParams(max_new_tokens=4, ignore_eos=True))[0]
    step = [p for p in result.ledger if p.phase == "decode"][-1]
    row_64 = {"f32": 256, "bf16": 128, "q8_0": 16 + 64, "q4_0": 16 + 32}[expert_format]  # 2 scales of 2 B, padded to 16
    row_32 = {"f32": 128, "bf16": 64, "q8_0": 16 + 32, "q4_0": 16 + 16}[expert_format]
    expert = 2 * 32 * row_64 + 64 * row_32
    assert expert % 64 == 0
    attention = (96 + 2 * 48) * 128 + 64 * 96 * 2 + 2 * 24 * 4  # qkv, o, two norms of a head
    norms = 2 * 64 * 4
    dense_mlp = 2 * 96 * 128 + 64 * 96 * 2
    routers = 2 * 8 * 64 * 4
    embedding_row, final_norm = 64 * 2, 64 * 4
    context = 4 + 3  # prompt and the three tokens that went in: the fourth new one never does
    assert step.context == context
    assert step.bytes == {
        "cpu_dram": {
            "experts": 2 * 3 * expert,
            "dense": 3 * (attention + norms) + dense_mlp + routers + embedding_row + final_norm,
            "kv": (context + 1) * 3 * 2 * 48 * 2,
            "head": 160 * 128,
        }
    }


@pytest.mark.parametrize("variant", ["qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "granitemoe"])
def test_counted_bytes_equal_the_prediction(variant: str, checkpoints: Checkpoints) -> None:
    """For every pass of a batch with its own routing: what was chosen is recorded and predicted from."""
    llm = LLM(str(checkpoints(variant)), expert_format="bf16", prefill_chunk=16)
    seen = defaultdict(list)

    def choose(index: int, choice: Choice) -> Choice:
        seen[llm.ledger.count].append(len(set(choice[0].flatten().tolist())))
        return choice

    llm.parts.decoder.choose = choose
    few = SamplingParams(max_new_tokens=6, ignore_eos=True)
    results = llm.generate([list(range(3, 30)), [4, 5]], few)
    llm.generate([list(range(40, 60))], few)
    passes = llm.ledger.passes
    assert {p.phase for p in passes} == {"prefill", "mixed", "decode"}
    assert results[0].ledger
    assert any("head" not in p.bytes["cpu_dram"] for p in passes), "a chunk in the middle of a prompt needs no logits"
    for i, done in enumerate(passes):
        skipped = llm.spec.moe_layers - len(seen[i])
        assert skipped == (0 if "head" in done.bytes["cpu_dram"] else 1)
        predicted = pass_bytes(
            llm.spec,
            llm.parts.checkpoint.formats,
            llm.parts.kv_format,
            tokens=done.tokens,
            contexts=[done.context],
            distinct_experts=seen[i] + [0] * skipped,
            logits="head" in done.bytes["cpu_dram"],
        )
        assert done.bytes == predicted


def test_distinct_experts() -> None:
    assert distinct(torch.tensor([[3, 1, 2]], dtype=torch.int32), 8) == 3
    assert distinct(torch.tensor([[3, 1], [1, 3], [7, 1]], dtype=torch.int32), 8) == 3


SLOW = {"4": dict.fromkeys(FORMATS, 400.0)}  # four tokens at once, where one has 1000 bytes/s


def profile(rate: float) -> Profile:
    rates = dict.fromkeys(FORMATS, rate)
    return Profile(
        key="k", cpu="c", isa="i", threads=1, memory_bytes=1, date="d", stream=rate, linear=rates,
        experts={**rates, "q4_0": 2 * rate},
    )  # fmt: skip


def some_spec() -> ModelSpec:
    """24 layers, 16 heads of keys and of queries, a shared expert in each."""
    return spec_of(ConfigReader(catalogue.find("Qwen1.5-MoE-A2.7B").config, "catalogue"))[1]


def predicted(
    groups: dict[str, int], known: Profile, formats: Formats, spec: ModelSpec, tokens: int = 1, sequences: int = 0,
    context: int = 0,
) -> Prediction:  # fmt: skip
    """What a run on the CPU alone predicts of a pass; as many sequences as tokens, if nothing is said."""
    rows = list(range(sequences or tokens))
    done = Pass(index=0, phase="", sequences=rows, tokens=tokens, context=context, bytes={"cpu_dram": groups})
    found = PassModel(spec, formats, KV_BF16, tier_rates.of_cpu(known))(done)
    assert found is not None
    return found


def test_seconds_are_bytes_over_the_bandwidth_of_the_kernel_that_reads_them() -> None:
    formats = Formats(experts=FORMATS["q4_0"], dense=FORMATS["bf16"], embed=FORMATS["bf16"])
    read = {"experts": 4_000, "dense": 1_000, "kv": 500, "head": 500}
    spec = some_spec()
    assert predicted(read, profile(1e3), formats, spec).seconds == pytest.approx(2.0 + 1.0 + 0.5 + 0.5)
    costly = dataclasses.replace(
        profile(1e3), layer_s=0.1, layer_batch={"4": 0.4, "128": 1.0}, shared_s=0.01, pass_s=0.001, logit_s=1e-6
    )
    terms = predicted(read, costly, formats, spec).terms
    assert terms == pytest.approx({"cpu_dram": 4.0, "fixed": 24 * 0.11 + 0.001 + 151936e-6})
    terms = predicted(read, costly, formats, spec, 2).terms
    assert terms["fixed"] == pytest.approx(24 * (0.2 + 0.01) + 0.001 + 2 * 151936e-6)
    crowd = predicted(read, dataclasses.replace(costly, row_s=0.25), formats, spec, 3).terms
    alone = predicted(read, costly, formats, spec, 3).terms
    assert crowd["fixed"] - alone["fixed"] == pytest.approx(2 * 0.25), "every sequence but the first"
    del read["head"]
    terms = predicted(read, costly, formats, spec, 256, 1).terms
    assert terms["fixed"] == pytest.approx(24 * (2.0 + 0.01) + 0.001), "no logits; a layer's cost grows with tokens"
    read["head"] = 500
    other = dataclasses.replace(profile(1e3), attention={"1": 1e3, "8": 500.0, "512": 10.0}, batch=SLOW, crowd=SLOW)
    assert predicted(read, other, formats, spec).seconds == pytest.approx(4.0)
    narrow = [dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, kv_heads=2)) for layer in spec.layers]
    grouped = dataclasses.replace(spec, layers=tuple(narrow))
    assert predicted(read, other, formats, grouped).seconds == pytest.approx(4.5)


def test_several_tokens_slow_the_kernels_down_as_measured() -> None:
    rates = dict.fromkeys(FORMATS, 1e3)
    slow = dataclasses.replace(
        profile(1e3), batch={"4": {**rates, "bf16": 500.0, "q4_0": 2e3}, "16": {**rates, "bf16": 250.0}}
    )
    assert [slow.slowdown("bf16", n) for n in (1, 2.5, 4, 10, 16, 64)] == [1, 1.5, 2, 3, 4, 16]
    assert slow.slowdown("q4_0", 4) == 1, "a faster kernel is noise"
    assert profile(1e3).slowdown("bf16", 64) == 1
    crowded = dataclasses.replace(slow, crowd={"2": {**rates, "bf16": 500.0}})
    assert crowded.slowdown("bf16", 2, experts=True) == 2, "experts by what was measured of experts"
    assert crowded.slowdown("bf16", 2) == pytest.approx(4 / 3)
    assert slow.slowdown("bf16", 4, experts=True) == 2, "experts were not measured: as a matrix"


def test_a_prompt_reads_its_cache_once_and_computes_for_every_query() -> None:
    """Two chunks of 100 tokens, and one sequence beside another: keys and values are read once, at the rate for as many
    queries as see a key on average."""
    spec = some_spec()
    formats = Formats(experts=FORMATS["bf16"], dense=FORMATS["bf16"], embed=FORMATS["bf16"])
    token = bytes_per_token(spec, KV_BF16)
    known = dataclasses.replace(profile(1e30), attention={"1": 1e3, "8": 500.0, "512": 10.0})

    def seconds(tokens: int, context: int, sequences: int) -> float:
        read = {"kv": (tokens + context) * token, "head": 0}
        return predicted(read, known, formats, spec, tokens, sequences, context).seconds

    def cost(queries: float) -> float:
        return known.cache_seconds_per_byte(queries)

    assert mean_queries(100, 100) == 50.5
    assert seconds(100, 100, 1) == pytest.approx(token * (100 * cost(1) + 100 * cost(50.5)))
    assert mean_queries(100, 200) == pytest.approx((100 * 100 + 50.5 * 100) / 200)
    assert seconds(100, 200, 1) == pytest.approx(token * (100 * cost(1) + 200 * cost(mean_queries(100, 200))))
    assert seconds(4, 400, 4) == pytest.approx(token * (4 + 400) * cost(1))
    assert cost(1024) == pytest.approx(2 * cost(512)), "proportional beyond what was measured"


BF16 = Formats(experts=FORMATS["bf16"], dense=FORMATS["bf16"], embed=FORMATS["bf16"])
MEASURED = {"1": 1e3, "8": 500.0, "512": 10.0}  # bytes/s of attention by queries on a key


def released(config: dict[str, Any]) -> ModelSpec:
    return spec_of(ConfigReader(config, "released"))[1]


def test_latents_have_the_flops_that_their_heads_make_of_a_byte() -> None:
    """16 heads on latents of 512 and 64: 1088 products a pair and head for 576 x 2 bytes. Prompts make keys of 192 and
    values of 128, of those before the chunk and of eight more for a projection that is turned over."""
    spec, known = released(mixers.DEEPSEEK_V2_LITE), dataclasses.replace(profile(1e30), attention=MEASURED)
    token, row = bytes_per_token(spec, KV_BF16), 576 * 2
    cost = known.cache_seconds_per_byte

    def seconds(tokens: int, context: int) -> float:
        read = {"kv": (tokens + context) * token, "head": 0}
        return predicted(read, known, BF16, spec, tokens, 1, context).seconds

    decode = 2 * 16 * 1088 / row
    assert token == 27 * row
    assert seconds(1, 300) == pytest.approx(301 * token * cost(decode))
    assert seconds(20, 300) == pytest.approx(token * (20 * cost(decode) + 300 * cost(decode * mean_queries(20, 300))))
    pairs = 200 * 300 - 200 * 199 // 2
    made = 2 * 16 * (pairs * 320 + (100 + 8) * 512 * 256) / (pairs * row)
    assert made < decode
    assert seconds(200, 300) == pytest.approx(token * (200 * cost(made) + 300 * cost(made * mean_queries(200, 300))))


def test_a_state_is_read_and_written_and_computed() -> None:
    """Three layers of four. One token moves the state; in a prompt arithmetic counts, as fast as that of attention
    where many queries meet a key: 512 FLOPs a byte at 10 bytes/s."""
    spec = released(mixers.QWEN3_NEXT_80B)
    state = 2 * 4 * spec.state_elements
    known = dataclasses.replace(profile(1e3), attention=MEASURED)
    assert predicted({"kv": 3 * state, "head": 0}, known, BF16, spec, 3, 3).seconds == pytest.approx(3 * state / 1e3)
    flops = 36 * (7 * 32 * 128 * 128 + 2 * 8192 * 4)
    found = predicted({"kv": state, "head": 0}, known, BF16, spec, 10_000, 1).seconds
    assert found == pytest.approx(10_000 * flops / 5120)
    assert found > state / 1e3


def test_kernels_without_attention_in_the_profile() -> None:
    assert profile(1e3).cache_seconds_per_byte(64) == 1e-3


def test_tokens_of_an_expert_slow_it_down() -> None:
    """24 layers, top 4 of 60: two tokens that choose the same experts in every layer, and two that share none."""
    spec, formats = some_spec(), Formats(experts=FORMATS["bf16"], dense=FORMATS["bf16"], embed=FORMATS["bf16"])
    one, slow = 3 * 2048 * 1408 * 2, dataclasses.replace(profile(1e3), batch=SLOW, crowd=SLOW)

    def slowdown(experts: int) -> float:
        return predicted({"experts": experts * one, "head": 0}, slow, formats, spec, 2).seconds / (experts * one / 1e3)

    assert slowdown(24 * 4) == pytest.approx(slow.slowdown("bf16", 2, experts=True))
    assert slow.slowdown("bf16", 2, experts=True) > 1
    assert slowdown(24 * 8) == pytest.approx(1)
    assert predicted({"experts": 0, "head": 0}, slow, formats, spec, 2).seconds == 0


def test_a_pass_has_prediction_measurement_and_residual(checkpoints: Checkpoints) -> None:
    llm = LLM(str(checkpoints("mixtral")))
    llm.predictions.use_profile(profile(1e9))
    llm.generate([[5, 6]], SamplingParams(max_new_tokens=3, ignore_eos=True))
    done = llm.ledger.passes[-1]
    assert done.predicted_s == pytest.approx(done.total("cpu_dram") / 1e9)
    assert done.measured_s > 0
    assert done.residual_s == done.measured_s - done.predicted_s
    summary = summarise(llm.ledger.passes, "decode")
    assert summary.tokens == 2
    assert summary.predicted_tok_s == pytest.approx(2 / sum(p.predicted_s or 0 for p in llm.ledger.passes[1:]))
    assert summary.bytes_per_token()["cpu_dram"]["total"] == round(sum(summary.bytes["cpu_dram"].values()) / 2)


def test_no_step_waits_for_its_prediction(checkpoints: Checkpoints) -> None:
    """It is worked out when somebody asks, once."""
    llm, asked = LLM(str(checkpoints("mixtral"))), []

    def predict(done: Pass) -> Prediction:
        asked.append((done.tokens, len(done.sequences)))
        return in_turn({"cpu_dram": 0.5})

    llm.ledger.predict = predict
    passes = llm.generate([[5, 6]], SamplingParams(max_new_tokens=3, ignore_eos=True))[0].ledger
    assert asked == []
    assert [p.predicted_s for p in passes] == [0.5] * 3
    assert passes[0].as_json()["predicted_ms"] == 500
    assert asked == [(2, 1), (1, 1), (1, 1)]


def test_ledger_file_has_a_line_for_every_pass(checkpoints: Checkpoints, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with LLM(str(checkpoints("mixtral"))) as llm:
        llm.ledger.open(path)
        result = llm.generate([[5, 6]], SamplingParams(max_new_tokens=5, ignore_eos=True))[0]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [p.as_json() for p in result.ledger]
    assert [line["phase"] for line in lines] == ["prefill"] + ["decode"] * 4
    assert all(line["tokens"] == 1 for line in lines[1:])


def test_checking_a_ledger_path_leaves_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("kept")
    Ledger.check_path(tmp_path / "old")
    assert (tmp_path / "old").read_text() == "kept"


def test_a_full_disk_is_an_error_that_names_the_file(checkpoints: Checkpoints) -> None:
    llm = LLM(str(checkpoints("mixtral")))
    llm.ledger.open(Path("/dev/full"))
    with pytest.raises(OptionError, match="/dev/full"):
        llm.generate([[5, 6]], SamplingParams(max_new_tokens=2, ignore_eos=True))


def test_a_ledger_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"missing/x\.jsonl.*No such file"):
        Ledger().open(tmp_path / "missing" / "x.jsonl")
