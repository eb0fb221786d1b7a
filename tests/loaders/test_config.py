"""Released configs of every family against the numbers that are known of these models."""

from __future__ import annotations

from typing import Any

import pytest
from released.attention import GRANITE_1B_A400M, OLMOE_1B_7B, QWEN3_30B_A3B, QWEN15_MOE_A27B, RELEASED
from released.count import parameters

from headrace.errors import ConfigError
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.spec import AttentionSpec, ModelSpec


def spec(values: dict[str, Any]) -> ModelSpec:
    return spec_of(ConfigReader(values, "config.json"))[1]


def attention(found: ModelSpec) -> AttentionSpec:
    """That of every layer."""
    (one,) = {*found.mixers}
    assert isinstance(one, AttentionSpec)
    return one


@pytest.mark.parametrize(
    ("name", "total", "routed"),
    [
        ("qwen3-30b-a3b", 30.532e9, 28.991e9),
        ("qwen1.5-moe-a2.7b", 14.316e9, 12.457e9),
        ("mixtral-8x7b", 46.703e9, 45.097e9),
        ("olmoe-1b-7b", 6.919e9, 6.442e9),
        ("granite-3.1-1b-a400m", 1.335e9, 1.208e9),
    ],
)
def test_a_released_config_asks_for_as_many_parameters_as_the_model_has(name: str, total: float, routed: float) -> None:
    found = parameters(RELEASED[name])
    assert found[0] == pytest.approx(total, rel=1e-3)
    assert found[1] == pytest.approx(routed, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "layers", "hidden", "experts", "top_k", "width", "heads", "kv_heads", "head_dim", "vocab", "context"),
    [
        ("qwen3-30b-a3b", 48, 2048, 128, 8, 768, 32, 4, 128, 151936, 40960),
        ("qwen1.5-moe-a2.7b", 24, 2048, 60, 4, 1408, 16, 16, 128, 151936, 8192),
        ("mixtral-8x7b", 32, 4096, 8, 2, 14336, 32, 8, 128, 32000, 32768),
        ("olmoe-1b-7b", 16, 2048, 64, 8, 1024, 16, 16, 128, 50304, 4096),
        ("granite-3.1-1b-a400m", 24, 1024, 32, 8, 512, 16, 8, 64, 49155, 131072),
    ],
)
def test_dimensions(
    name: str, layers: int, hidden: int, experts: int, top_k: int, width: int, heads: int, kv_heads: int,
    head_dim: int, vocab: int, context: int,
) -> None:  # fmt: skip
    found = spec(RELEASED[name])
    att, moe = attention(found), found.moe
    assert (len(found.layers), found.moe_layers, found.hidden, found.vocab) == (layers, layers, hidden, vocab)
    assert (moe.experts, moe.top_k, moe.width, found.context) == (experts, top_k, width, context)
    assert (att.heads, att.kv_heads, att.head_dim, att.rope.rotary_dim) == (heads, kv_heads, head_dim, head_dim)


def test_router_recipes() -> None:
    recipes = {name: (spec(c).moe.scoring, spec(c).moe.renormalise) for name, c in RELEASED.items()}
    assert recipes == {
        "qwen3-30b-a3b": ("softmax", True),
        "qwen1.5-moe-a2.7b": ("softmax", False),
        "mixtral-8x7b": ("softmax", True),
        "olmoe-1b-7b": ("softmax", False),
        "granite-3.1-1b-a400m": ("softmax_topk", False),
    }


def test_attention_recipes() -> None:
    recipes = {name: (attention(spec(c)).qk_norm, attention(spec(c)).qkv_bias) for name, c in RELEASED.items()}
    assert recipes == {
        "qwen3-30b-a3b": ("head", False),
        "qwen1.5-moe-a2.7b": ("none", True),
        "mixtral-8x7b": ("none", False),
        "olmoe-1b-7b": ("full", False),
        "granite-3.1-1b-a400m": ("none", False),
    }


def test_what_is_special_about_a_family() -> None:
    granite, qwen2 = spec(GRANITE_1B_A400M), spec(QWEN15_MOE_A27B)
    assert granite.tied_head
    assert (granite.embedding_scale, granite.residual_scale, granite.logits_divisor) == (12.0, 0.22, 6.0)
    assert attention(granite).scale == 0.015625
    assert (qwen2.moe.shared_width, qwen2.moe.shared_gate, qwen2.dense_width) == (5632, True, 0)
    assert attention(spec(OLMOE_1B_7B)).clip is None
    assert attention(spec({**OLMOE_1B_7B, "clip_qkv": 8.0})).clip == 8.0
    assert spec(QWEN3_30B_A3B).eos_ids == (151645,)
    assert spec({**QWEN3_30B_A3B, "eos_token_id": [3, 4]}).eos_ids == (3, 4)
    assert spec({**QWEN3_30B_A3B, "eos_token_id": None}).eos_ids == ()


def test_layers_without_experts() -> None:
    config = {**QWEN3_30B_A3B, "num_hidden_layers": 6}
    assert spec({**config, "decoder_sparse_step": 2}).is_moe == (False, True) * 3
    assert spec({**config, "mlp_only_layers": [0, 4]}).is_moe == (False, True, True, True, False, True)
    assert spec({**config, "mlp_only_layers": [0, 4]}).dense_width == 6144


def test_bytes_that_a_token_adds_to_the_cache() -> None:
    assert spec(QWEN3_30B_A3B).kv_elements_per_token * 2 == 96 * 1024


YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
ROPE_SPELLINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"rope_theta": 5e6, "rope_scaling": None}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}),
    (
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", **YARN}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **YARN}},
    ),
    (
        {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", **YARN}},
        {"rope_scaling": {"rope_type": "yarn", **YARN}, "rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn"}},
    ),
    (
        {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2}},
        {"rope_theta": 1e4, "rope_parameters": {"rope_type": "linear", "type": "linear", "factor": 2.0}},
    ),
]


@pytest.mark.parametrize(("old", "new"), ROPE_SPELLINGS)
def test_old_and_new_spelling_of_rope_give_the_same_spec(old: dict[str, Any], new: dict[str, Any]) -> None:
    base = {k: v for k, v in QWEN3_30B_A3B.items() if k not in ("rope_theta", "rope_scaling")}
    assert spec({**base, **old}) == spec({**base, **new})


def test_values_of_yarn() -> None:
    rope = attention(spec({**QWEN3_30B_A3B, "rope_scaling": {"type": "yarn", **YARN, "beta_slow": 2}})).rope
    assert (rope.kind, rope.factor, rope.original_context, rope.theta) == ("yarn", 4.0, 32768, 1e6)
    assert (rope.beta_fast, rope.beta_slow, rope.truncate) == (32.0, 2.0, True)
    assert rope.attention_factor == pytest.approx(1.1386294)  # 0.1 ln 4 + 1


def test_a_value_that_would_be_a_class_default_has_to_be_there() -> None:
    values = {k: v for k, v in QWEN3_30B_A3B.items() if k != "norm_topk_prob"}
    with pytest.raises(ConfigError, match="norm_topk_prob"):
        spec(values)


def test_newer_exporters_call_the_number_of_experts_differently() -> None:
    values = {k: v for k, v in QWEN3_30B_A3B.items() if k != "num_experts"}
    assert spec({**values, "num_local_experts": 128}) == spec(QWEN3_30B_A3B)
