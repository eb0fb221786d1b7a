"""Configs of Llama 4, Phi-3.5-MoE and Mistral-Small-4 against what is known of the models: what a run computes with,
and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from released.count import parameters
from released.warm import LLAMA_4_MAVERICK, LLAMA_4_SCOUT, MISTRAL_SMALL_4, PHI_35_MOE, WARM

from headrace import ConfigError
from headrace.loaders.architecture.by_name.text_part import text_part
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.spec import AttentionSpec, LatentSpec, ModelSpec, Temperature

# Billions of parameters: all, and those of routed experts.
PUBLISHED = {
    "llama-4-scout": (107.770, 96.637), "llama-4-maverick": (400.712, 386.547), "phi-3.5-moe": (41.873, 40.265),
    "mistral-small-4-119b": (118.973, 115.964),
}  # fmt: skip


def spec(config: dict[str, Any], **changes: Any) -> ModelSpec:
    """The spec of the text model with changes; ... takes a key out."""
    values = {key: value for key, value in {**text_part(config)[0], **changes}.items() if value is not ...}
    return spec_of(ConfigReader(values, "config.json"))[1]


def attention(found: ModelSpec) -> list[AttentionSpec]:
    return [mixer for mixer in found.mixers if isinstance(mixer, AttentionSpec)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    total, routed = parameters(text_part(WARM[name])[0])
    assert (total / 1e9, routed / 1e9) == pytest.approx(PUBLISHED[name], rel=1e-3)


def test_llama_4() -> None:
    scout, maverick = spec(LLAMA_4_SCOUT), spec(LLAMA_4_MAVERICK)
    warm = Temperature(scale=0.1, length=8192, first=1)
    for found, norm, kind in ((scout, "plain", "llama3"), (maverick, "none", "default")):
        layers = attention(found)
        assert [one.chunk for one in layers] == [8192, 8192, 8192, None] * 12
        assert [one.rope.kind for one in layers] == [kind, kind, kind, "none"] * 12
        assert [one.qk_norm for one in layers] == [norm, norm, norm, "none"] * 12
        assert [one.temperature for one in layers] == [None, None, None, warm] * 12
    assert all(scout.is_moe)
    assert maverick.is_moe == (False, True) * 24
    assert (scout.moe.top_k, scout.moe.scoring, scout.moe.weighs_input) == (1, "sigmoid_topk", True)
    assert (scout.moe.shared_width, maverick.dense_width, maverick.moe.experts) == (8192, 16384, 128)
    assert spec(LLAMA_4_MAVERICK, moe_layers=...).is_moe == maverick.is_moe
    assert {one.temperature for one in attention(spec(LLAMA_4_SCOUT, attn_temperature_tuning=False))} == {None}
    assert {one.chunk for one in attention(spec(LLAMA_4_SCOUT, attention_chunk_size=None))} == {None}


def test_phi_35_moe() -> None:
    found = spec(PHI_35_MOE)
    rope = attention(found)[0].rope
    assert (found.layernorms, found.head_bias, found.context) == (True, True, 131072)
    assert (found.moe.scoring, found.moe.top_k, found.moe.jitter) == ("sparsemixer", 2, 0.01)
    assert (rope.kind, rope.original_context, rope.factors[1], rope.long_factors[1]) == ("longrope", 4096, 1.0, 2.0)
    assert rope.attention_factor == rope.long_attention_factor == pytest.approx(1.2431631)
    without = {key: value for key, value in PHI_35_MOE["rope_scaling"].items() if "mscale" not in key}
    assert attention(spec(PHI_35_MOE, rope_scaling=without))[0].rope.attention_factor == pytest.approx(1.1902380)


def test_mistral_small_4() -> None:
    found = spec(MISTRAL_SMALL_4)
    mixer = found.mixers[0]
    assert isinstance(mixer, LatentSpec)
    assert (mixer.rope.rotary_dim, mixer.nope, mixer.kv_rank, mixer.q_rank) == (64, 64, 256, 1024)
    assert mixer.temperature == Temperature(scale=0.1, length=8192)
    assert mixer.scale == pytest.approx(128**-0.5 * 1.4852030**2)
    assert (found.moe.scoring, found.moe.renormalise, found.moe.shared_width) == ("softmax", True, 2048)
    assert all(found.is_moe)


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (LLAMA_4_SCOUT, {"no_rope_layers": [1, 0]}, "no_rope_layers is [1, 0], supported is a list of 48 times 1"),
    (LLAMA_4_SCOUT, {"layer_types": ["sliding_attention"] * 48}, "a list of 48 times chunked_attention or full"),
    (LLAMA_4_SCOUT, {"attention_chunk_size": 0}, "attention_chunk_size is 0"),
    (LLAMA_4_SCOUT, {"floor_scale": 0}, "floor_scale is 0"),
    (LLAMA_4_SCOUT, {"use_qk_norm": ...}, "has no 'use_qk_norm'"),
    (LLAMA_4_MAVERICK, {"moe_layers": [48]}, "moe_layers is [48], supported is a list of numbers of the 48 layers"),
    (LLAMA_4_MAVERICK, {"moe_layers": []}, "none of the 48 layers has experts"),
    (LLAMA_4_SCOUT, {"norm_topk_prob": True}, "norm_topk_prob is true"),
    (PHI_35_MOE, {"lm_head_bias": ...}, "has no 'lm_head_bias'"),
    (PHI_35_MOE, {"router_jitter_noise": -1}, "router_jitter_noise is -1"),
    (
        PHI_35_MOE, {"rope_scaling": {**PHI_35_MOE["rope_scaling"], "long_factor": [1.0] * 8}},
        "a list of 64 numbers above 0",
    ),
    (
        PHI_35_MOE, {"rope_scaling": {**PHI_35_MOE["rope_scaling"], "short_factor": [0] * 64}},
        "short_factor is 0, supported is a number above 0",
    ),
    (MISTRAL_SMALL_4, {"rope_interleave": False}, "rope_interleave is false"),
    (MISTRAL_SMALL_4, {"index_topk": 2048}, "index_topk = 2048"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "changes", "said"), REFUSED)
def test_what_would_compute_something_else_is_refused(
    config: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as found:
        spec(config, **changes)
    assert said in str(found.value)
