"""Planned architectures: totals of real checkpoints, and every family against the model that transformers builds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from released.biased import BIASED
from released.kinds import KINDS
from released.mixers import MIXERS
from released.recurrent import RECURRENT
from released.warm import WARM
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from headrace import ConfigError
from headrace.kernels import FORMATS
from headrace.loaders.architecture import catalogue
from headrace.loaders.architecture.architecture import Architecture, Cache
from headrace.loaders.architecture.by_name.text_part import text_part
from headrace.loaders.architecture.of_spec import of_spec
from headrace.loaders.architecture.readers import read
from headrace.loaders.families import FAMILIES, spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.weights.model_weights import Formats, allocate
from headrace.loaders.weights.targets import targets

# Billions of parameters of released checkpoints: total, routed, routed per token, common, active.
PUBLISHED = {
    "Mixtral-8x7B": (46.703, 45.097, 11.274, 1.475, 12.749),
    "Mixtral-8x22B": (140.630, 135.291, 33.823, 5.137, 38.960),
    "Qwen1.5-MoE-A2.7B": (14.316, 12.457, 0.830, 1.548, 2.378),
    "Qwen2-57B-A14B": (57.409, 49.325, 6.166, 7.539, 13.705),
    "Qwen3-30B-A3B": (30.532, 28.991, 1.812, 1.230, 3.042),
    "Qwen3-30B-A3B-2507": (30.532, 28.991, 1.812, 1.230, 3.042),
    "Qwen3-235B-A22B": (235.094, 227.096, 14.194, 7.375, 21.568),
    "Qwen3-Coder-480B-A35B": (480.155, 468.084, 23.404, 11.137, 34.541),
    "Qwen3-Next-80B-A3B": (79.674, 77.309, 1.510, 2.054, 3.564),
    "Qwen3.5-35B-A3B": (34.661, 32.212, 1.007, 1.940, 2.946),
    "Qwen3.5-122B-A10B": (122.112, 115.964, 3.624, 5.385, 9.008),
    "Qwen3.5-397B-A17B": (396.346, 386.547, 7.550, 8.782, 16.332),
    "Qwen3.8-2.4T-A95B": (2419.8, 2370.8, 46.305, 46.949, 93.25),
    "Qwen3.8-Flash-Next": (176.944, 120.796, 2.359, None, None),
    "DeepSeek-V2-Lite": (15.706, 14.395, 1.350, 1.102, 2.451),
    "DeepSeek-V2": (235.741, 222.718, 8.352, 12.500, 20.852),
    "DeepSeek-V3": (671.026, 653.909, 20.435, 16.191, 36.626),
    "DeepSeek-V3.2": (671.878, 653.909, 20.435, 17.042, 37.477),
    "Kimi-K2": (1026.408, 1014.686, 21.139, 10.548, 31.687),
    "Kimi-K2-Thinking": (1026.408, 1014.686, 21.139, 10.548, 31.687),
    "Moonlight-16B-A3B": (15.960, 14.395, 1.350, 1.230, 2.579),
    "Kimi-Linear-48B-A3B": (49.133, 47.110, 1.472, 1.645, 3.117),
    "Kimi-K3": (2779.5, 2722.7, 48.62, 55.57, 104.2),
    "GLM-4.5": (352.798, 335.964, 16.798, 16.058, 32.856),
    "GLM-4.6": (352.798, 335.964, 16.798, 16.058, 32.856),
    "GLM-4.5-Air": (106.852, 99.657, 6.229, 6.575, 12.803),
    "GLM-4.7-Flash": (29.943, 27.783, 1.736, 1.843, 3.580),
    "GLM-5": (743.911, 724.776, 22.649, 18.184, 40.833),
    "GLM-5.3-Flash": (313.327, 304.406, 8.456, 8.287, 16.742),
    "DeepSeek-V4-Flash": (284.332, 277.025, 6.493, 6.777, 13.270),
    "DeepSeek-V4-Pro": (1572.997, 1547.396, 24.178, 24.674, 48.852),
    "gpt-oss-20b": (20.915, 19.117, 2.390, 1.219, 3.608),
    "gpt-oss-120b": (116.829, 114.702, 3.584, 1.548, 5.133),
    "MiniMax-M2": (228.690, 224.680, 7.021, 3.395, 10.416),
    "MiniMax-M3": (426.175, 413.122, 12.910, 11.823, 24.733),
    "OLMoE-1B-7B": (6.919, 6.442, 0.805, 0.374, 1.179),
    "Granite-3.1-1b-a400m": (1.335, 1.208, 0.302, 0.127, 0.429),
    "Granite-3.1-3b-a800m": (3.299, 3.020, 0.604, 0.279, 0.883),
    "Granite-4.0-h-tiny": (6.939, 6.040, 0.566, 0.899, 1.465),
    "Granite-4.0-h-small": (32.207, 27.179, 3.775, 5.028, 8.803),
    "Llama-4-Scout": (107.770, 96.637, 6.040, 10.099, 16.138),
    "Llama-4-Maverick": (400.712, 386.547, 3.020, 13.130, 16.150),
    "gemma-4-26B-A4B": (25.233, 22.838, 1.427, 2.395, 3.823),
    "LFM2-8B-A1B": (8.340, 7.751, 0.969, 0.589, 1.558),
    "ERNIE-4.5-21B-A3B": (21.825, 20.384, 1.911, 1.441, 3.352),
    "ERNIE-4.5-300B-A47B": (299.484, 287.494, 35.937, 11.143, 47.079),
    "Hunyuan-A13B": (80.393, 77.309, 9.664, 3.084, 12.747),
    "Hy3": (295.034, 286.286, 11.929, 8.252, 20.181),
    "MiMo-V2-Flash": (308.779, 302.795, 9.462, 5.359, 14.821),
    "Step-3.5-Flash": (196.956, 190.254, 5.285, 6.175, 11.459),
    "dots.llm1": (142.774, 135.090, 6.332, 7.061, 13.394),
    "Phi-3.5-MoE": (41.873, 40.265, 5.033, 1.476, 6.509),
    "Mistral-Small-4-119B": (118.973, 115.964, 3.624, 2.472, 6.096),
    "Mistral-Large-4": (1050.1, 1029.2, 32.162, 19.678, 51.840),
    "Solar-Open-100B": (102.652, 96.637, 6.040, 5.210, 11.250),
    "Ling-3.0-Flash": (124.414, 120.796, 1.887, 3.216, 5.103),
    "Nemotron-3-Nano-30B-A3B": (31.578, 29.375, 1.377, 1.851, 3.228),
    "Laguna-XS.2": (33.443, 31.407, 0.981, 1.830, 2.812),
}

BASE = dict(
    vocab_size=128, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=256,
)  # fmt: skip
LATENT = dict(
    num_key_value_heads=4, q_lora_rank=32, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=24,
    intermediate_size=96, moe_intermediate_size=40, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=3,
)  # fmt: skip
DELTA = dict(
    head_dim=32, moe_intermediate_size=40, shared_expert_intermediate_size=48, num_experts=8, num_experts_per_tok=3,
    linear_key_head_dim=16, linear_value_head_dim=24, linear_num_key_heads=2, linear_num_value_heads=4,
    layer_types=["linear_attention"] * 3 + ["full_attention"],
)  # fmt: skip
DEEP = dict(intermediate_size=96, moe_intermediate_size=40, n_routed_experts=8, num_experts_per_tok=3, head_dim=24)
INDEX = dict(index_topk=8, index_head_dim=12, index_n_heads=3)
MIXED = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
FIRST_DENSE = ["dense", "sparse", "sparse", "sparse"]
PLAIN = {"qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "granitemoe"}  # as their totals and `tiny` hold them
# One small model a family, no two sizes alike where the family allows it.
SMALL: dict[str, dict[str, Any]] = {
    "qwen3_next": {**DELTA, "intermediate_size": 96},
    "qwen3_5_moe_text": DELTA,
    "deepseek_v2": {**LATENT, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1},
    "deepseek_v3": {**LATENT, "q_lora_rank": None, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1},
    "deepseek_v32": {**LATENT, **INDEX, "first_k_dense_replace": 1, "mlp_layer_types": FIRST_DENSE},
    "glm_moe_dsa": {
        **LATENT, **INDEX, "first_k_dense_replace": 1, "mlp_layer_types": FIRST_DENSE,
        "indexer_types": ["full", "shared"] * 2,
    },
    "glm4_moe_lite": {**LATENT, "mlp_layer_types": FIRST_DENSE},
    "glm4_moe": dict(DEEP, attention_bias=True, use_qk_norm=True, n_shared_experts=1, first_k_dense_replace=1),
    "dots1": {**DEEP, "n_shared_experts": 2, "first_k_dense_replace": 1},
    "solar_open": {**DEEP, "n_shared_experts": 1},
    "gpt_oss": dict(
        head_dim=24, intermediate_size=40, num_local_experts=8, num_experts_per_tok=3, sliding_window=8,
        layer_types=MIXED,
    ),
    "minimax_m2": dict(head_dim=24, intermediate_size=40, num_local_experts=8, num_experts_per_tok=3, rotary_dim=16),
    "llama4_text": dict(
        head_dim=24, intermediate_size=40, intermediate_size_mlp=96, num_local_experts=8, interleave_moe_layer_step=2,
        attention_chunk_size=8, use_qk_norm=False,
    ),
    "mimo_v2_flash": dict(
        DEEP, head_dim=24, v_head_dim=16, sliding_window=8, layer_types=MIXED, mlp_layer_types=FIRST_DENSE,
    ),
    "gemma4_text": dict(
        head_dim=16, global_head_dim=32, num_global_key_value_heads=1, enable_moe_block=True, num_experts=8,
        top_k_experts=3, attention_k_eq_v=True, sliding_window=8, hidden_size_per_layer_input=0, intermediate_size=96,
        moe_intermediate_size=40, layer_types=["sliding_attention"] * 3 + ["full_attention"],
    ),
    "kimi_linear": dict(
        LATENT, q_lora_rank=None, linear_num_heads=3, linear_head_dim=12, linear_conv_kernel_dim=4, num_experts=8,
        num_experts_per_token=3, num_shared_experts=1, mlp_layer_types=FIRST_DENSE, layer_types=DELTA["layer_types"],
    ),
    "bailing_hybrid": dict(
        LATENT, linear_num_heads=3, linear_head_dim=12, linear_conv_kernel_dim=4, num_experts=8,
        num_experts_per_token=3, num_shared_experts=1, mlp_layer_types=FIRST_DENSE, layer_types=DELTA["layer_types"],
        num_expert_group=1, topk_group=1, q_lora_rank=None, first_k_dense_replace=1,
    ),
    "deepseek_v4": dict(
        head_dim=32, q_lora_rank=24, o_groups=2, o_lora_rank=16, index_n_heads=3, index_head_dim=12, index_topk=4,
        sliding_window=8, qk_rope_head_dim=8, num_key_value_heads=1, moe_intermediate_size=40, n_routed_experts=8,
        n_shared_experts=1, num_experts_per_tok=3, mlp_layer_types=["hash_moe", "moe", "moe", "moe"],
        layer_types=[
            "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention",
            "compressed_sparse_attention",
        ],
        compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
    ),
    "lfm2_moe": dict(
        intermediate_size=96, moe_intermediate_size=40, num_experts=8, num_experts_per_tok=3, num_dense_layers=1,
        layer_types=["conv", "full_attention", "conv", "full_attention"],
    ),
    "granitemoehybrid": dict(
        intermediate_size=40, num_local_experts=8, num_experts_per_tok=3, shared_intermediate_size=48, mamba_n_heads=8,
        mamba_d_head=16, mamba_n_groups=1, mamba_d_state=12, mamba_d_conv=4, mamba_expand=2,
        layer_types=["linear_attention", "full_attention"] * 2,
    ),
    "granitemoeshared": dict(
        intermediate_size=40, num_local_experts=8, num_experts_per_tok=3, shared_intermediate_size=48
    ),
    "exaone_moe": dict(
        DEEP, num_experts=8, num_shared_experts=1, first_k_dense_replace=1, sliding_window=8, sliding_window_pattern=4
    ),
    "ernie4_5_moe": dict(
        intermediate_size=96, moe_intermediate_size=40, moe_num_experts=8, moe_k=3, moe_num_shared_experts=2,
        moe_layer_start_index=1, moe_layer_end_index=3,
    ),
    "hunyuan_v1_moe": dict(intermediate_size=40, num_experts=8, moe_topk=3, head_dim=24),
    "hy_v3": dict(
        intermediate_size=96, moe_intermediate_size=40, num_experts=8, num_experts_per_tok=3, num_shared_experts=1,
        head_dim=24, mlp_layer_types=FIRST_DENSE,
    ),
    "phimoe": dict(
        intermediate_size=40, num_local_experts=8, num_experts_per_tok=2, attention_bias=True, lm_head_bias=True
    ),
    "laguna": dict(
        DEEP, num_experts=8, shared_expert_intermediate_size=48, layer_types=MIXED, sliding_window=8,
        mlp_layer_types=FIRST_DENSE, num_attention_heads_per_layer=[4, 6, 6, 4],
    ),
    "nemotron_h": dict(
        layers_block_type=["linear_attention", "moe", "full_attention", "mlp"], head_dim=24, ssm_state_size=12,
        mamba_num_heads=8, mamba_head_dim=16, n_groups=2, n_routed_experts=8, num_experts_per_tok=3,
        moe_intermediate_size=40, moe_shared_expert_intermediate_size=48, intermediate_size=96, moe_latent_size=20,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_totals_of_released_checkpoints(name: str) -> None:
    found = read(catalogue.find(name).config, name).architecture
    counted = (
        found.total_parameters, found.routed_parameters, found.routed_per_token, found.common_parameters,
        found.active_parameters,
    )  # fmt: skip
    kinds = ("total", "routed", "per token", "common", "active")
    for what, count, billions in zip(kinds, counted, PUBLISHED[name], strict=True):
        if billions is not None:
            # What is published to three decimals may be off by half of the last one.
            assert count / 1e9 == pytest.approx(billions, rel=1e-3, abs=5e-4), what


def test_every_model_of_the_catalogue_is_checked() -> None:
    assert set(catalogue.names()) == set(PUBLISHED)


@pytest.mark.parametrize("family", SMALL)
def test_families_have_the_parameters_of_transformers(family: str) -> None:
    config = CONFIG_MAPPING[family](**{**BASE, "pad_token_id": 0, **SMALL[family]})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    stored = model.state_dict()
    buffers = sum(b.numel() for name, b in model.named_buffers() if name in stored)
    described = read(json.loads(config.to_json_string(use_diff=False)), family)
    assert described.architecture.total_parameters == sum(p.numel() for p in model.parameters()) + buffers
    runs = family.removesuffix("_text") in FAMILIES
    assert bool(described.objections) != runs


def test_small_models_cover_the_families() -> None:
    """The rest are compared by their published totals alone: transformers has no model class for them, or another
    layout of the config."""
    covered = {name.removesuffix("_text") for name in SMALL}
    alone = {
        "kimi_k2", "kimi_k3", "mistral4", "mistral_large4", "step3p5", "step3p7", "qwen4_exp", "glm5_next",
        "minimax_m3_vl",
    }  # fmt: skip
    assert set(FAMILIES) - PLAIN == covered | alone


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_what_runs_is_described_by_its_spec(variant: str, checkpoints: Any) -> None:
    """The architecture of a spec has exactly the elements that the loader demands of a checkpoint."""
    config = ConfigReader.open(checkpoints(variant) / "config.json")
    family, spec = spec_of(config)
    plain = FORMATS["f32"]
    wanted = targets(spec, family.tensors, allocate(spec, Formats(experts=plain, dense=plain, embed=plain), "meta"))
    tables = sum(one.grams.rows * one.grams.row for one in spec.layers if one.grams)
    assert of_spec(spec).total_parameters == tables + sum(target.elements for target in wanted.values())
    described = read(config.values, variant)
    assert replace(described.architecture, family=spec.family) == of_spec(spec)
    assert described.objections == () == described.unknown_keys


RELEASED = {**MIXERS, **BIASED, **WARM, **KINDS, **RECURRENT}


@pytest.mark.parametrize("name", RELEASED)
def test_a_plan_says_what_a_run_says(name: str) -> None:
    """A plan is made of configs too that cannot be run, and reads them less strictly."""
    values, _ = text_part(RELEASED[name])
    of_run = of_spec(spec_of(ConfigReader(values, name))[1])
    described = read(RELEASED[name], name)
    assert replace(described.architecture, family=of_run.family) == of_run
    assert described.objections == () == described.unknown_keys


def test_every_family_that_runs_is_tested() -> None:
    """Of Kimi-K2 transformers has no class of its own; it is DeepSeek-V3's. Step-3.7 is Step-3.5 with eyes. Kimi-K3 it
    does not have: tests/generation/families/test_kimi_k3.py."""
    alike = {"kimi_k2", "step3p7", "kimi_k3"}
    assert {name.split("-")[0].removesuffix("_text") for name in tiny.VARIANTS} | alike == set(FAMILIES)
    read_for_plans = {str(text_part(config)[0]["model_type"]).removesuffix("_text") for config in RELEASED.values()}
    assert set(FAMILIES) - PLAIN == read_for_plans


def test_caches_by_hand() -> None:
    window = Cache(width=10, window=128)
    assert (window.stored(100), window.stored(4096), window.read(4096)) == (1000, 1280, 1280)
    chunks = Cache(width=10, window=128, in_chunks=True)
    assert (chunks.stored(300), *(chunks.read(context) for context in (128, 129, 300))) == (1280, 1280, 10, 440)
    compressed = Cache(width=10, every=4, chosen=512)
    assert (compressed.stored(4096), compressed.read(4096)) == (10240, 5120)


def _architecture(name: str) -> Architecture:
    return read(catalogue.find(name).config, name).architecture


@pytest.mark.parametrize(
    ("name", "kilobytes"),
    [
        ("DeepSeek-V3", 70.272),
        ("Kimi-K2", 70.272),
        ("Qwen3-30B-A3B", 98.304),
        ("Qwen3-235B-A22B", 192.512),
        ("Qwen3.5-35B-A3B", 20.48),
    ],
)
def test_cache_bytes_of_a_token(name: str, kilobytes: float) -> None:
    """bf16: grouped-query 2 x layers x kv heads x head size x 2 bytes; latent (512 + 64) x layers x 2 bytes."""
    found = _architecture(name)
    assert 2 * (found.cache_elements(1001) - found.cache_elements(1000)) == pytest.approx(kilobytes * 1e3)


def test_state_of_a_hybrid() -> None:
    """30 layers of 32 heads with a state of 128 x 128, and three past inputs of 8192 channels."""
    assert _architecture("Qwen3.5-35B-A3B").state_elements == 30 * (32 * 128 * 128 + 3 * 8192)


def test_half_of_gpt_oss_forgets() -> None:
    found = _architecture("gpt-oss-120b")
    assert found.cache_elements(4096) == 18 * 2 * 8 * 64 * (4096 + 128)  # 18 layers in full, 18 over 128


def test_unknown_families_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"model_type 'qwen3_moo' is not known \(nearest: qwen3_moe.*has no experts"):
        read({"model_type": "qwen3_moo"}, "config.json")


def test_keys_that_nobody_knows_are_listed() -> None:
    values = {**catalogue.find("DeepSeek-V3").config, "extra_experts": 3}
    assert read(values, "config.json").unknown_keys == ("extra_experts",)


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "n_routed_experts", "kv_lora_rank", "vocab_size"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "many"])
def test_impossible_sizes_are_refused(key: str, value: object) -> None:
    values = {**catalogue.find("DeepSeek-V3").config, key: value}
    with pytest.raises(ConfigError, match=key):
        read(values, "config.json")


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("DeepSeek-V4-Flash", {"compress_ratios": [-1] * 43}),
        ("DeepSeek-V4-Flash", {"compress_ratios": [4]}),
        ("Kimi-Linear-48B-A3B", {"layer_types": None, "linear_attn_config": {"kda_layers": [1]}}),
        ("Step-3.5-Flash", {"attention_other_setting": 96}),
        ("Qwen3-Next-80B-A3B", {"layer_types": ["linear"] * 48}),
        ("GLM-4.5", {"first_k_dense_replace": "three"}),
        ("Llama-4-Scout", {"moe_layers": 5}),
        ("Nemotron-3-Nano-30B-A3B", {"hybrid_override_pattern": "MEX"}),
        ("Hunyuan-A13B", {"moe_topk": [8, 9]}),
        ("gpt-oss-20b", {"num_experts_per_tok": 33}),
    ],
)
def test_values_of_another_kind_are_refused(model: str, changes: dict[str, Any]) -> None:
    """By a message, not by a traceback."""
    with pytest.raises(ConfigError, match=r"config\.json"):
        read({**catalogue.find(model).config, **changes}, "config.json")


def test_wrapped_configs_are_unwrapped() -> None:
    inner = catalogue.find("Kimi-K2").config
    wrapped = {"model_type": "kimi_k25", "text_config": inner, "vision_config": {"depth": 3}}
    assert read(wrapped, "w").architecture == read(inner, "i").architecture
