"""Released configs of gpt-oss, DeepSeek, Kimi, Moonlight, GLM-4.7-Flash, Qwen3-Next, Qwen3.6 and Gemma 4 against what
is known of these models, and what of such a config is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from released.count import parameters, spec
from released.mixers import (
    DEEPSEEK_V2,
    DEEPSEEK_V2_LITE,
    DEEPSEEK_V3,
    GEMMA_4_26B,
    GLM_47_FLASH,
    GPT_OSS_20B,
    KIMI_K2,
    KIMI_K2_THINKING,
    KIMI_K25,
    MIXERS,
    MOONLIGHT_16B,
    QWEN3_NEXT_80B,
    QWEN36_35B,
)

from headrace.errors import ConfigError
from headrace.kernels.recipes import GEGLU
from headrace.loaders.architecture.by_name.text_part import text_part
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.spec import AttentionSpec, DeltaSpec, LatentSpec


def latent(values: dict[str, Any], **changes: Any) -> LatentSpec:
    """The latent attention of every layer."""
    (one,) = {*spec(values, **changes).mixers}
    assert isinstance(one, LatentSpec)
    return one


@pytest.mark.parametrize(
    ("name", "total", "routed"),
    [
        ("gpt-oss-20b", 20.915e9, 19.117e9), ("gpt-oss-120b", 116.829e9, 114.702e9),
        ("deepseek-v2-lite", 15.706e9, 14.395e9), ("deepseek-v2", 235.741e9, 222.718e9),
        ("deepseek-v3", 671.026e9, 653.909e9), ("deepseek-r1", 671.026e9, 653.909e9),
        ("deepseek-v3.1", 671.026e9, 653.909e9), ("kimi-k2", 1026.408e9, 1014.686e9),
        ("kimi-k2-thinking", 1026.408e9, 1014.686e9), ("kimi-k2.5", 1026.408e9, 1014.686e9),
        ("moonlight-16b-a3b", 15.960e9, 14.395e9), ("glm-4.7-flash", 29.943e9, 27.783e9),
        ("qwen3-next-80b-a3b", 79.674e9, 77.309e9), ("qwen3.6-35b-a3b", 34.661e9, 32.212e9),
        ("gemma-4-26b-a4b", 25.233e9, 22.838e9),
    ],
)  # fmt: skip
def test_a_released_config_asks_for_as_many_parameters_as_the_model_has(name: str, total: float, routed: float) -> None:
    found, of_experts = parameters(text_part(MIXERS[name])[0])
    assert found == pytest.approx(total, rel=1e-4)
    assert of_experts == pytest.approx(routed, rel=1e-4)


def test_every_released_config_is_checked() -> None:
    assert {name: bool(spec(config).layers) for name, config in MIXERS.items()} == dict.fromkeys(MIXERS, True)


def test_gpt_oss() -> None:
    found = spec(GPT_OSS_20B)
    windows = [mixer.window for mixer in found.mixers]
    assert windows == [128, None] * 12
    one = found.mixers[0]
    assert isinstance(one, AttentionSpec)
    assert (one.heads, one.kv_heads, one.head_dim, one.sinks, one.qkv_bias, one.output_bias) == (64, 8, 64, *[True] * 3)
    rope = one.rope
    assert (rope.kind, rope.theta, rope.factor, rope.original_context, rope.truncate) == (
        "yarn",
        150000,
        32,
        4096,
        False,
    )
    assert rope.attention_factor == pytest.approx(1.34657, abs=1e-5)
    assert found.context == 131072
    moe = found.moe
    assert (moe.scoring, moe.renormalise, moe.router_bias, moe.expert_bias) == ("softmax_topk", False, True, True)
    assert (moe.activation.alpha, moe.activation.offset, moe.activation.limit) == (1.702, 1.0, 7.0)


@pytest.mark.parametrize(
    ("config", "temperature", "context"),
    [(DEEPSEEK_V3, 1.87385, 163840), (DEEPSEEK_V2, 1.58963, 163840), (KIMI_K2, 1.81326, 131072),
     (KIMI_K25, 2.00474, 262144), (MOONLIGHT_16B, 1.0, 8192)],
)  # fmt: skip
def test_scale_of_latent_attention(config: dict[str, Any], temperature: float, context: int) -> None:
    one = latent(config)
    assert one.scale == pytest.approx(temperature / math.sqrt(192), rel=1e-5)
    assert one.rope.attention_factor == 1.0
    assert spec(config).context == context


def test_sizes_and_eps_of_latents() -> None:
    one = latent(GLM_47_FLASH)
    assert (one.heads, one.q_rank, one.kv_rank, one.nope, one.rope_dim, one.v_dim) == (20, 768, 512, 192, 64, 256)
    assert (spec(GLM_47_FLASH).norm_eps, one.norm_eps) == (1e-5, 1e-6)
    assert latent(DEEPSEEK_V2_LITE).q_rank == 0


def test_routers_of_deepseek() -> None:
    v3, lite, v2 = (spec(config).moe for config in (DEEPSEEK_V3, DEEPSEEK_V2_LITE, DEEPSEEK_V2))
    assert (v3.scoring, v3.choice_bias, v3.renormalise, v3.scale) == ("sigmoid", True, True, 2.5)
    assert (v3.groups, v3.top_groups, v3.group_score) == (8, 4, "top2")
    assert (lite.scoring, lite.choice_bias, lite.renormalise, lite.groups, lite.scale) == (
        "softmax",
        False,
        False,
        1,
        1,
    )
    assert (v2.groups, v2.top_groups, v2.group_score, v2.scale) == (8, 3, "max", 16.0)
    assert (v3.shared_width, lite.shared_width) == (2048, 2816)
    assert spec(DEEPSEEK_V3).is_moe == (False,) * 3 + (True,) * 58
    assert spec(GLM_47_FLASH, first_k_dense_replace=..., mlp_layer_types=["dense"] + ["sparse"] * 46) == spec(
        GLM_47_FLASH
    )


def test_delta_rules_of_qwen() -> None:
    for config in (QWEN3_NEXT_80B, QWEN36_35B):
        found = spec(config)
        assert [isinstance(mixer, DeltaSpec) for mixer in found.mixers[:8]] == [True, True, True, False] * 2
        delta, full = found.mixers[0], found.mixers[3]
        assert isinstance(delta, DeltaSpec)
        assert (delta.k_heads, delta.v_heads, delta.k_dim, delta.v_dim, delta.taps) == (16, 32, 128, 128, 4)
        assert not delta.in_turns
        assert isinstance(full, AttentionSpec)
        assert (full.heads, full.kv_heads, full.head_dim, full.gate, full.qk_norm) == (16, 2, 256, "of values", "head")
        assert (full.rope.rotary_dim, full.rope.theta) == (64, 1e7)
        assert (found.moe.renormalise, found.moe.shared_width, found.moe.shared_gate) == (True, 512, True)
    assert spec(QWEN3_NEXT_80B).moe.top_k == 10


def test_gemma_4() -> None:
    found = spec(GEMMA_4_26B)
    assert [mixer.window for mixer in found.mixers] == ([1024] * 5 + [None]) * 5
    sliding, full = found.mixers[0], found.mixers[5]
    assert isinstance(sliding, AttentionSpec)
    assert isinstance(full, AttentionSpec)
    assert (sliding.heads, sliding.kv_heads, sliding.head_dim, sliding.own_values) == (16, 8, 256, True)
    assert (full.heads, full.kv_heads, full.head_dim, full.own_values) == (16, 2, 512, False)
    assert sliding.scale == full.scale == 1.0
    assert [one.v_norm for one in (sliding, full)] == [True, True]
    assert (sliding.rope.kind, sliding.rope.theta, sliding.rope.rotary_dim) == ("default", 1e4, 256)
    assert (full.rope.kind, full.rope.theta, full.rope.rotary_dim, full.rope.share) == ("proportional", 1e6, 512, 0.25)
    assert (found.moe.experts, found.moe.top_k, found.moe.shared_width, found.moe.factors) == (128, 8, 2112, True)
    assert found.moe.activation == GEGLU
    assert (found.logits_cap, found.tied_head, found.embedding_scale) == (30.0, True, math.sqrt(2816))
    assert all(layer.own_norms for layer in found.layers)


def test_layers_of_gemma_4_by_other_keys() -> None:
    """Without a list every sixth layer sees everything, and the last; sizes as entries of layers, as saved today."""
    fewer = {"num_hidden_layers": 8, "layer_types": ...}
    assert [mixer.window for mixer in spec(GEMMA_4_26B, **fewer).mixers] == [1024] * 5 + [None, 1024, None]
    own = {str(i): {"head_dim": 512, "num_key_value_heads": 2} for i in range(5, 30, 6)}
    other = {"global_head_dim": ..., "num_global_key_value_heads": ..., "per_layer_config": own}
    assert spec(GEMMA_4_26B, **other) == spec(GEMMA_4_26B)
    apart = spec(GEMMA_4_26B, attention_k_eq_v=False).mixers[5]
    assert isinstance(apart, AttentionSpec)
    assert (apart.kv_heads, apart.own_values) == (8, True)
    assert spec(GEMMA_4_26B, final_logit_softcapping=None).logits_cap is None


def test_a_wrapper_is_its_text_model_with_a_note() -> None:
    for config, text in ((KIMI_K25, KIMI_K2_THINKING), (QWEN36_35B, QWEN36_35B["text_config"])):
        values, notes = text_part(config)
        assert notes == ("the text model is taken, text_config of the config; left out: vision_config",)
        assert spec_of(ConfigReader(values, "c"))[1] == spec(text)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("deepseek-v3", {"topk_method": "softmax_topk"}, 'topk_method is "softmax_topk", supported is \'noaux_tc\''),
    ("deepseek-v3", {"topk_method": "greedy"}, 'topk_method is "greedy", supported is \'noaux_tc\''),
    ("deepseek-v2", {"topk_method": "noaux_tc"}, 'topk_method is "noaux_tc", supported is \'group_limited_greedy\''),
    ("deepseek-v3", {"scoring_func": "softmax"}, 'scoring_func is "softmax", supported is \'sigmoid\''),
    ("deepseek-v2-lite", {"norm_topk_prob": True}, "norm_topk_prob is true, supported is false or null"),
    ("deepseek-v3", {"moe_layer_freq": 2}, "moe_layer_freq is 2, supported is 1 or null"),
    ("deepseek-v3", {"first_k_dense_replace": 61}, "none of the 61 layers has experts"),
    ("deepseek-v3", {"first_k_dense_replace": ...}, "has no 'first_k_dense_replace'"),
    ("deepseek-v3", {"mlp_layer_types": ["dense"] + ["sparse"] * 60}, "mlp_layer_types is"),
    ("glm-4.7-flash", {"first_k_dense_replace": ..., "mlp_layer_types": ["dense"]}, "a list of 47 times dense"),
    ("deepseek-v3", {"n_group": 7}, "n_group is 7, supported is a divisor of the 256 experts"),
    ("deepseek-v3", {"topk_group": 9}, "topk_group is 9, supported is at most the 8 groups there are"),
    ("deepseek-v3", {"topk_group": 1, "n_group": 64}, "topk_group is 1, supported is enough groups for 8 experts"),
    ("deepseek-v3", {"rope_interleave": False}, "rope_interleave is false, supported is true or null"),
    ("deepseek-v3", {"hidden_act": "gelu"}, 'hidden_act is "gelu", supported is "silu" or "swish"'),
    ("deepseek-v3", {"rope_scaling": {"type": "ntk"}}, 'rope_type is "ntk", supported is default, linear'),
    ("deepseek-v3", {"rope_scaling": {"type": "yarn", "factor": 40, "colour": 2}}, "has unknown colour"),
    ("deepseek-v3", {"kv_lora_rank": ...}, "has no 'kv_lora_rank'"),
    ("deepseek-v3", {"routed_scaling_factor": ...}, "has no 'routed_scaling_factor'"),
    ("kimi-k2", {"index_topk": 2048, "index_n_heads": 64}, "index_n_heads = 64, index_topk = 2048"),
    ("gpt-oss-20b", {"swiglu_alpha": 1.5}, "swiglu_alpha is 1.5, supported is 1.702 or null"),
    ("gpt-oss-20b", {"initial_context_length": 8192}, "initial_context_length is 8192, supported is 4096"),
    ("gpt-oss-20b", {"experts_per_token": 8}, "experts_per_token is 8, supported is 4"),
    ("gpt-oss-20b", {"sliding_window": ...}, "has no 'sliding_window'"),
    ("gpt-oss-20b", {"layer_types": ["sliding_attention", "chunked_attention"] * 12}, "layer_types is"),
    ("gpt-oss-20b", {"hidden_act": "gelu_pytorch_tanh"}, 'hidden_act is "gelu_pytorch_tanh"'),
    ("qwen3-next-80b-a3b", {"partial_rotary_factor": ...}, "has no 'partial_rotary_factor'"),
    ("qwen3-next-80b-a3b", {"linear_num_value_heads": 24}, "a multiple of linear_num_key_heads = 16"),
    ("qwen3-next-80b-a3b", {"full_attention_interval": ...}, "has no 'full_attention_interval'"),
    ("qwen3-next-80b-a3b", {"layer_types": ["mamba"] * 48}, "a list of 48 times linear_attention or full_attention"),
    ("qwen3.6-35b-a3b", {"attn_output_gate": False}, "attn_output_gate is false, supported is true or null"),
    ("qwen3.6-35b-a3b", {"output_gate_type": "sigmoid"}, 'output_gate_type is "sigmoid", supported is "silu"'),
    ("qwen3.6-35b-a3b", {"norm_topk_prob": False}, "norm_topk_prob is false, supported is True"),
    ("qwen3.6-35b-a3b", {"mlp_only_layers": [3]}, "mlp_only_layers = [3]"),
    ("gemma-4-26b-a4b", {"hidden_activation": "silu"}, 'supported is "gelu_pytorch_tanh"'),
    ("gemma-4-26b-a4b", {"enable_moe_block": False}, "enable_moe_block is false, supported is true"),
    ("gemma-4-26b-a4b", {"hidden_size_per_layer_input": 256}, "hidden_size_per_layer_input is 256, supported is 0"),
    ("gemma-4-26b-a4b", {"num_kv_shared_layers": 4}, "num_kv_shared_layers is 4, supported is 0 or null"),
    ("gemma-4-26b-a4b", {"use_bidirectional_attention": "all"}, 'is "all", supported is "vision" or null'),
    ("gemma-4-26b-a4b", {"use_double_wide_mlp": True}, "use_double_wide_mlp is true, supported is false or null"),
    ("gemma-4-26b-a4b", {"attention_bias": True}, "attention_bias is true, supported is false or null"),
    ("gemma-4-26b-a4b", {"layer_types": ["sliding_attention"] * 30}, "full_attention for the last layer"),
    ("gemma-4-26b-a4b", {"layer_types": ["chunked_attention"] * 30}, "a list of 30 times full_attention or sliding"),
    ("gemma-4-26b-a4b", {"num_global_key_value_heads": 3}, "a divisor of num_attention_heads = 16"),
    ("gemma-4-26b-a4b", {"global_head_dim": ...}, "has no 'global_head_dim'"),
    ("gemma-4-26b-a4b", {"per_layer_config": {"3": {"head_dim": 64}}}, "for all layers of full_attention alone"),
    ("gemma-4-26b-a4b", {"per_layer_config": {"5": {"window": 64}}}, "for all layers of full_attention alone"),
    ("gemma-4-26b-a4b", {"top_k_experts": 129}, "top_k_experts is 129, supported is at most the 128 experts"),
    ("gemma-4-26b-a4b", {"intermediate_size": ...}, "has no 'intermediate_size'"),
    ("gemma-4-26b-a4b", {"router_scale": 2.0}, "router_scale = 2.0"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "said"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as found:
        spec(MIXERS[name], **changes)
    assert said in str(found.value)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("deepseek-v2", {"topk_method": "greedy"}),  # groups or not: which experts are chosen differs
        ("deepseek-v3", {"mscale_all_dim": None}),
    ],
)
def test_what_changes_a_spec(name: str, changes: dict[str, Any]) -> None:
    if "topk_method" in changes:
        assert spec(MIXERS[name], **changes).moe.groups == 1
    else:
        rope = {key: value for key, value in MIXERS[name]["rope_scaling"].items() if key != "mscale_all_dim"}
        assert latent(MIXERS[name], rope_scaling=rope).scale == pytest.approx(192**-0.5)
