"""Models of several formats: bytes of each at its own rate, worked out by hand; and rates that are estimated."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from headrace.engine.bandwidth_model import machine_file, split_decode, tier_rates
from headrace.engine.bandwidth_model.hardware import Device, Hardware, exactly
from headrace.engine.bandwidth_model.pass_model import PassModel
from headrace.engine.bandwidth_model.profile import (
    FormatRates,
    Profile,
    hardware_key,
    load_profile,
    nearest,
    profile_path,
)
from headrace.engine.bandwidth_model.roofline import Weights
from headrace.engine.experts.offload_plan import MeanExpert, cpu_seconds
from headrace.engine.ledger import in_formats
from headrace.engine.ledger.passes import Pass
from headrace.engine.measure.kernel_rates import USUAL
from headrace.kernels import FORMATS, ExpertLayout
from headrace.kernels.context import Context
from headrace.kernels.formats import KV_BF16
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.quants.by_format import ByFormat
from headrace.loaders.spec import ModelSpec
from headrace.loaders.weights.model_weights import Formats

CONFIG = {
    "model_type": "qwen3_moe", "hidden_size": 256, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "moe_intermediate_size": 512, "intermediate_size": 512, "num_experts": 8, "num_experts_per_tok": 2,
    "num_hidden_layers": 3, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True, "vocab_size": 100,
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 256,
    "attention_bias": False, "tie_word_embeddings": False,
}  # fmt: skip
# Bytes of a row of 256 and of 512 weights, by hand: scales padded to 16, and codes.
Q4_K = {256: 16 + 128, 512: 32 + 256}
Q6_K = {256: 32 + 192, 512: 48 + 384}  # 2 halves and 32 units are 36 bytes
SMALL, LARGE = 512 * Q4_K[256], 256 * Q4_K[512]  # gate or up, and down, in q4_k
DOWN = 256 * Q6_K[512]  # in q6_k
EXPERTS = {"f32": 1e9, "q4_k": 2e9, "q6_k": 5e9}
LINEAR = {"f32": 10e9, "q4_k": 3e9, "q6_k": 7e9, "q8_0": 4e9, "bf16": 8e9}


def spec() -> ModelSpec:
    return spec_of(ConfigReader(CONFIG, "test"))[1]


def formats() -> Formats:
    """Down in six bits in layer 0, values and the head too; the embedding in bf16."""
    q4, q6 = FORMATS["q4_k"], FORMATS["q6_k"]
    return Formats(
        experts=q4, dense=q4, embed=FORMATS["bf16"], own={"0.down": q6, "1.v": q6, "head": q6, "2.o": FORMATS["q8_0"]}
    )


def measured(profile: Profile, **more: Any) -> Profile:
    return dataclasses.replace(
        profile, linear=LINEAR, experts={**EXPERTS, "q8_0": 1e9, "bf16": 1e9}, batch={}, crowd={}, **more
    )


def a_pass(read: dict[str, int], tokens: int = 1, by_layer: tuple[int, ...] = ()) -> Pass:
    return Pass(
        index=0, phase="decode", sequences=list(range(tokens)), tokens=tokens, context=tokens,
        bytes={"cpu_dram": read}, by_layer=by_layer,
    )  # fmt: skip


def seconds(known: Profile, done: Pass) -> float:
    found = PassModel(spec(), formats(), KV_BF16, tier_rates.of_cpu(known))(done)
    assert found is not None
    return found.seconds


# ---- bytes


def test_an_expert_of_two_formats() -> None:
    layout = formats().layout(spec(), 0)
    assert layout.bytes_by_format == {"q4_k": 2 * SMALL, "q6_k": DOWN}
    assert layout.bytes == 2 * SMALL + DOWN == 2 * 73_728 + 110_592
    assert formats().layout(spec(), 1).bytes_by_format == {"q4_k": 2 * SMALL + LARGE}


def test_the_padding_of_an_expert_is_its_last_parts() -> None:
    layout = ExpertLayout(format=FORMATS["q4_0"], down_format=FORMATS["q8_0"], hidden=32, width=32)
    assert layout.bytes == 64 * (16 + 16) + 32 * (16 + 32) == sum(layout.bytes_by_format.values())
    odd = ExpertLayout(format=FORMATS["bf16"], down_format=FORMATS["f32"], hidden=3, width=5)
    assert odd.bytes_by_format == {"bf16": 60, "f32": 60 + 8}


def test_dense_parts_by_hand() -> None:
    """Attention of 256 x 256, 128, 128 and back; norms of 256 twice and 64 twice; a router of 8 x 256 in float32."""
    found = in_formats.of_model(spec(), formats())
    plain = 4 * (256 + 256 + 64 + 64 + 8 * 256)
    q4, q6, q8 = Q4_K[256], Q6_K[256], 16 + 256
    assert dict(found.layers[0].common.parts) == {"f32": plain, "q4_k": (256 + 128 + 128 + 256) * q4}
    assert dict(found.layers[1].common.parts) == {"f32": plain, "q4_k": (256 + 128 + 256) * q4, "q6_k": 128 * q6}
    assert dict(found.layers[2].common.parts) == {"f32": plain, "q4_k": 512 * q4, "q8_0": 256 * q8}
    assert dict(found.head.parts) == {"q6_k": 100 * q6}
    assert dict(found.row.parts) == {"bf16": 512}
    assert found.dense.total == sum(layer.common.total for layer in found.layers) + 4 * 256


def test_bytes_are_added_spread_and_named() -> None:
    one, other = ByFormat.of({"q4_k": 300, "q6_k": 100, "f32": 0}), ByFormat.of([("q6_k", 50), ("q6_k", 50)])
    both = ByFormat.sum([one, other])
    assert dict(both.parts) == {"q4_k": 300, "q6_k": 200}
    assert (both.total, both.label) == (500, "q4_k/q6_k")
    assert dict(both.spread(50).parts) == {"q4_k": 30, "q6_k": 20}
    assert ByFormat.sum([one, one.times(-1)]) == ByFormat()
    assert ByFormat().spread(7).total == 0


# ---- seconds


def test_weights_take_the_sum_over_their_formats() -> None:
    """300 bytes at 10 and 100 at 5 a second: 50 s; with two tokens the one takes twice, the other three times as
    long. What was not measured is bound by the memory or by its share of the arithmetic."""
    rates = {"q4_k": 10.0, "q6_k": 5.0}
    read = ByFormat.of({"q4_k": 300, "q6_k": 100})
    slow = {"q4_k": 2.0, "q6_k": 3.0}
    device = Device(
        name="d", kind="cpu", memory=None, nominal=1.0, bandwidth=exactly(4.0), flops=exactly(100.0),
        by_format=rates, dense_by_format=rates, slowdown=lambda name, tokens, _: slow[name] if tokens > 1 else 1.0,
    )  # fmt: skip
    machine = Hardware(name="m", cpu=device)
    assert Weights("cpu_dram", read, 0).seconds(machine) == pytest.approx(30 + 20)
    assert Weights("cpu_dram", read, 1e9, 2).seconds(machine) == pytest.approx(60 + 60), "measured: whatever the FLOPs"
    assert device.mean_rate(read, experts=True) == pytest.approx(400 / 50)
    more = ByFormat.sum([read, ByFormat.of({"iq9": 100})])
    assert Weights("cpu_dram", more, 0).seconds(machine) == pytest.approx(50 + 25)
    assert Weights("cpu_dram", more, 50_000).seconds(machine) == pytest.approx(50 + 50_000 / 5 / 100)
    unknown = Hardware(name="m", cpu=dataclasses.replace(device, by_format={}, dense_by_format={}, slowdown=None))
    assert Weights("cpu_dram", read, 0).seconds(unknown) == pytest.approx(400 / 4)
    assert Weights("cpu_dram", read, 50_000).seconds(unknown) == pytest.approx(500)


def test_a_step_of_a_mixed_model_by_hand(profile: Profile) -> None:
    """Two experts in each of three layers, of which the first has larger ones."""
    by_layer = (2 * (2 * SMALL + DOWN), 2 * (2 * SMALL + LARGE), 2 * (2 * SMALL + LARGE))
    q4, q6 = 6 * 2 * SMALL + 4 * LARGE, 2 * DOWN
    sizes = in_formats.of_model(spec(), formats())
    read = {"experts": sum(by_layer), "dense": round(sizes.dense.total) + 512, "head": 100 * Q6_K[256]}
    expected = q4 / 2e9 + q6 / 5e9
    plain = 3 * 4 * (256 + 256 + 64 + 64 + 8 * 256) + 4 * 256
    matrices = (768 + 640 + 512) * Q4_K[256] / 3e9 + 128 * Q6_K[256] / 7e9 + 256 * 272 / 4e9
    expected += plain / 10e9 + matrices + 512 / 8e9 + 100 * Q6_K[256] / 7e9
    assert seconds(measured(profile), a_pass(read, by_layer=by_layer)) == pytest.approx(expected)
    spread = seconds(measured(profile), a_pass(read))
    assert spread == pytest.approx(expected), "one token reads each layer alike, so that shares say the same"


def test_layers_that_read_more_count_more(profile: Profile) -> None:
    """Four tokens choose two experts of layer 0 and eight of the others."""
    by_layer = (2 * (2 * SMALL + DOWN), 8 * (2 * SMALL + LARGE), 8 * (2 * SMALL + LARGE))
    found = seconds(measured(profile), a_pass({"experts": sum(by_layer)}, 4, by_layer))
    assert found == pytest.approx((4 * SMALL + 16 * (2 * SMALL + LARGE)) / 2e9 + 2 * DOWN / 5e9)


def test_experts_and_copies_keep_shares_by_format() -> None:
    """Of 100 s in the one format and 100 s in the other the CPU takes 200 and 125, of which the link has half in the
    first and all of it in the second."""
    read, rates = ByFormat.of({"q4_k": 1000, "q8_0": 2000}), {"q4_k": 10.0, "q8_0": 20.0}
    found = split_decode.kept_of(read, {"q4_k": (0.5, 0.5), "q8_0": (0.8, 1.0)}, rates)
    assert found == (pytest.approx(200 / 325), pytest.approx((0.5 * 200 + 125) / 325))
    assert split_decode.kept_of(read, {"q4_k": (0.5, 0.5)}, rates) is None


def test_offloading_counts_the_mean_of_layers(profile: Profile) -> None:
    mean = MeanExpert.of([formats().layout(spec(), layer) for layer in range(3)])
    q4, q6 = (6 * SMALL + 2 * LARGE) / 3, DOWN / 3
    assert mean.bytes_by_format == {"q4_k": pytest.approx(q4), "q6_k": pytest.approx(q6)}
    assert mean.bytes == pytest.approx(q4 + q6)
    found = cpu_seconds(spec(), mean, measured(profile), 1e30, 1, Context())
    assert found == pytest.approx(2 * (q4 / 2e9 + q6 / 5e9))


# ---- rates that were not measured


def test_the_most_alike_is_taken() -> None:
    assert nearest("q4_k", {"q4_k", "q4_0"}) == "q4_k"
    assert {nearest(name, USUAL) for name in ("q2_k", "q4_k", "q5_k", "q6_k", "mxfp4", "iq2_s")} == {"q4_0"}
    assert nearest("fp8", USUAL) == "q8_0"
    assert nearest("q5_k", {"q4_0", "q5_0", "q8_0"}) == "q5_0"
    assert nearest("iq4_nl", {"q4_0", "mxfp4"}) == "mxfp4", "a table says its values too"
    assert nearest("f16", {"bf16", "q8_0"}) == "bf16"
    assert nearest("q4_k", {"bf16"}) is None, "floats are not unpacked"
    assert nearest("nf4", USUAL) is None


def test_an_estimate_reads_no_more_bytes_and_no_more_weights(profile: Profile) -> None:
    """q4_0 has 0.5625 bytes a weight, q5_k 0.6875, q2_k 0.328125."""
    rates = {**dict.fromkeys(USUAL, 1e9), "q4_0": 9e9}
    known = dataclasses.replace(profile, linear=rates, experts=rates, batch={"4": {"q4_0": 3e9}}, crowd={})
    found = known.rates(experts=True)
    assert found["q5_k"] == found["q4_k"] == 9e9
    assert found["q2_k"] == pytest.approx(9e9 * 0.328125 / 0.5625)
    assert known.slowdown("q5_k", 4) == known.slowdown("q4_0", 4) == 3
    assert known.estimates(["q4_0", "q5_k", "q2_k", "bf16"]) == {"q5_k": "q4_0", "q2_k": "q4_0"}
    assert known.missing(["q5_k", "bf16", "q5_k"]) == ["q5_k"]
    cpu = machine_file.of_profile(known).cpu
    assert cpu is not None
    assert (cpu.measured("q5_k", True), cpu.estimates["q5_k"]) == (9e9, "q4_0")
    assert cpu.measured("nf4", True) is None


def test_formats_are_added_to_what_was_known(profile: Profile) -> None:
    usual = dict.fromkeys(USUAL, 1000000000.0)
    known = dataclasses.replace(profile, linear=usual, experts=usual, batch={"4": usual}, crowd={"2": usual})
    more = FormatRates(linear={"q4_k": 2e9}, experts={"q4_k": 3e9}, batch={"4": {"q4_k": 4e9}}, crowd={"2": {}})
    found = known.with_formats(more)
    assert found.linear == {**usual, "q4_k": 2e9}
    assert found.experts == {**usual, "q4_k": 3e9}
    assert (found.batch, found.crowd) == ({"4": {**usual, "q4_k": 4e9}}, {"2": usual})
    assert found.estimates(["q4_k"]) == {}


def test_a_profile_of_fewer_formats_or_of_more_is_read(profile: Profile) -> None:
    """Of the version that measured five, and of one that knows formats which this one does not."""
    path = profile_path(hardware_key(Context()))
    values = json.loads(path.read_text())
    for names in (USUAL, (*USUAL, "q9_z")):
        rates = dict.fromkeys(names, 1e9)
        values |= {"linear": rates, "experts": rates, "batch": {"4": rates}, "crowd": {"2": rates}}
        path.write_text(json.dumps(values))
        found = load_profile(Context())
        assert found is not None
        assert set(found.rates(experts=True)) == set(FORMATS)
        assert found.slowdown("q6_k", 4) == 1
    values["linear"] = values["experts"] = {"q4_0": 1e9}
    path.write_text(json.dumps(values))
    assert load_profile(Context()) is None, "a cache is read as bf16"
