"""Released configs of every family, as the hub has them, against the numbers that are known of these models."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import ConfigError
from headrace.kernels import FORMATS
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.spec import ModelSpec
from headrace.loaders.weights.model_weights import Formats, allocate
from headrace.loaders.weights.targets import targets

BF16 = FORMATS["bf16"]

QWEN3_30B_A3B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
    "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": True,
    "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
    "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
QWEN15_MOE_A27B: dict[str, Any] = {
    "architectures": ["Qwen2MoeForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "decoder_sparse_step": 1, "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 5632, "max_position_embeddings": 8192, "max_window_layers": 21,
    "model_type": "qwen2_moe", "moe_intermediate_size": 1408, "norm_topk_prob": False, "num_attention_heads": 16,
    "num_experts": 60, "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 16,
    "output_router_logits": False, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 5632, "sliding_window": 32768, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.39.0.dev0", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
MIXTRAL_8X7B: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32, "num_experts_per_tok": 2,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.36.0.dev0", "use_cache": True,
    "vocab_size": 32000,
}  # fmt: skip
OLMOE_1B_7B: dict[str, Any] = {
    "architectures": ["OlmoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "clip_qkv": None,
    "eos_token_id": 50279, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 1024, "max_position_embeddings": 4096, "model_type": "olmoe", "norm_topk_prob": False,
    "num_attention_heads": 16, "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 16,
    "num_key_value_heads": 16, "output_router_logits": False, "pad_token_id": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "rope_theta": 10000.0, "router_aux_loss_coef": 0.01, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.43.0.dev0", "use_cache": True, "vocab_size": 50304,
}  # fmt: skip
GRANITE_1B_A400M: dict[str, Any] = {
    "architectures": ["GraniteMoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.1,
    "attention_multiplier": 0.015625, "bos_token_id": 0, "embedding_multiplier": 12.0, "eos_token_id": 0,
    "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 512,
    "logits_scaling": 6.0, "max_position_embeddings": 131072, "model_type": "granitemoe", "num_attention_heads": 16,
    "num_experts_per_tok": 8, "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32,
    "output_router_logits": False, "pad_token_id": 0, "residual_multiplier": 0.22, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1500000.0, "router_aux_loss_coef": 0.0, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.46.0.dev0", "use_cache": True, "vocab_size": 49155,
}  # fmt: skip
RELEASED = {
    "qwen3-30b-a3b": QWEN3_30B_A3B,
    "qwen1.5-moe-a2.7b": QWEN15_MOE_A27B,
    "mixtral-8x7b": MIXTRAL_8X7B,
    "olmoe-1b-7b": OLMOE_1B_7B,
    "granite-3.1-1b-a400m": GRANITE_1B_A400M,
}


def spec(values: dict[str, Any]) -> ModelSpec:
    return spec_of(ConfigReader(values, "config.json"))[1]


def parameters(values: dict[str, Any]) -> tuple[int, int]:
    """All parameters of a model, and those of its routed experts, summed over the tensors a checkpoint must have."""
    family, found = spec_of(ConfigReader(values, "config.json"))
    weights = allocate(found, Formats(experts=BF16, dense=BF16, embed=BF16), "meta")
    total = sum(target.elements for target in targets(found, family.tensors, weights).values())
    routed = sum(layer.experts.nbytes for layer in weights.layers if layer.experts is not None) // 2
    return total, routed


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
    att, moe = found.attention, found.moe
    assert (found.layers, found.moe_layers, found.hidden, found.vocab) == (layers, layers, hidden, vocab)
    assert (moe.experts, moe.top_k, moe.width, found.context) == (experts, top_k, width, context)
    assert (att.heads, att.kv_heads, att.head_dim, found.rope.rotary_dim) == (heads, kv_heads, head_dim, head_dim)


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
    recipes = {name: (spec(c).attention.qk_norm, spec(c).attention.qkv_bias) for name, c in RELEASED.items()}
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
    assert granite.attention.scale == 0.015625
    assert (qwen2.moe.shared_width, qwen2.moe.shared_gate, qwen2.dense_width) == (5632, True, 5632)
    assert spec(OLMOE_1B_7B).attention.clip is None
    assert spec({**OLMOE_1B_7B, "clip_qkv": 8.0}).attention.clip == 8.0
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
    rope = spec({**QWEN3_30B_A3B, "rope_scaling": {"type": "yarn", **YARN, "beta_slow": 2}}).rope
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
