"""A config.json that misses a key, or asks for what is not supported: refused by key and value."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusals import ABSENT, edit_json, read, refused

from headrace import LLM, CheckpointError, ConfigError, HubError

Checkpoints = Callable[[str], Path]
Make = Callable[..., Path]
FAMILIES = ["qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "granitemoe", "gpt_oss", "deepseek_v2", "deepseek_v3",
            "glm4_moe_lite", "qwen3_next", "qwen3_5_moe_text", "glm4_moe", "minimax_m2", "dots1", "solar_open", "hy_v3",
            "ernie4_5_moe", "granitemoeshared", "exaone_moe", "hunyuan_v1_moe", "llama4_text", "phimoe",
            "mistral4", "lfm2_moe", "granitemoehybrid", "nemotron_h"]  # fmt: skip
LATENT = ["kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_routed_experts",
          "moe_intermediate_size", "intermediate_size", "routed_scaling_factor"]  # fmt: skip
BIASED = ["hidden_act", "moe_intermediate_size", "norm_topk_prob", "routed_scaling_factor", "attention_bias"]
# Families with a name of their own for the experts that a token takes.
TAKEN = {"ernie4_5_moe": "moe_k", "hunyuan_v1_moe": "moe_topk"}
DELTA = ["linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim",
         "linear_conv_kernel_dim", "moe_intermediate_size", "shared_expert_intermediate_size",
         "num_experts"]  # fmt: skip


REQUIRED = {
    "qwen3_moe": ["hidden_act", "decoder_sparse_step", "intermediate_size", "moe_intermediate_size", "norm_topk_prob",
                  "attention_bias", "num_local_experts"],
    "qwen2_moe": ["hidden_act", "decoder_sparse_step", "intermediate_size", "moe_intermediate_size",
                  "shared_expert_intermediate_size", "norm_topk_prob", "num_experts"],
    "mixtral": ["hidden_act", "intermediate_size", "num_local_experts"],
    "olmoe": ["hidden_act", "intermediate_size", "num_experts", "norm_topk_prob", "attention_bias"],
    "granitemoe": ["hidden_act", "intermediate_size", "num_local_experts", "attention_bias", "attention_multiplier",
                   "embedding_multiplier", "residual_multiplier", "logits_scaling", "tie_word_embeddings"],
    "gpt_oss": ["hidden_act", "intermediate_size", "num_local_experts", "attention_bias", "sliding_window"],
    "deepseek_v2": [*LATENT, "first_k_dense_replace"],
    "deepseek_v3": [*LATENT, "first_k_dense_replace", "norm_topk_prob"],
    "glm4_moe_lite": [*LATENT, "norm_topk_prob"],
    "qwen3_next": [*DELTA, "norm_topk_prob", "decoder_sparse_step"],
    "qwen3_5_moe_text": DELTA,
    "glm4_moe": [*BIASED, "n_routed_experts", "first_k_dense_replace", "intermediate_size", "use_qk_norm"],
    "minimax_m2": ["hidden_act", "intermediate_size", "num_local_experts"],
    "dots1": [*BIASED, "n_routed_experts", "first_k_dense_replace", "intermediate_size"],
    "solar_open": [*BIASED, "n_routed_experts"],
    "hy_v3": ["hidden_act", "moe_intermediate_size", "num_experts", "intermediate_size", "router_scaling_factor",
              "attention_bias"],
    "ernie4_5_moe": ["hidden_act", "moe_intermediate_size", "moe_num_experts", "intermediate_size",
                     "moe_layer_start_index", "moe_layer_interval"],
    "granitemoeshared": ["hidden_act", "intermediate_size", "num_local_experts", "shared_intermediate_size",
                         "attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"],
    "exaone_moe": ["hidden_act", "moe_intermediate_size", "num_experts", "intermediate_size", "layer_types",
                   "norm_topk_prob", "routed_scaling_factor"],
    "hunyuan_v1_moe": ["hidden_act", "intermediate_size", "num_experts", "attention_bias"],
    "llama4_text": ["hidden_act", "intermediate_size", "num_local_experts", "use_qk_norm"],
    "phimoe": ["hidden_act", "intermediate_size", "num_local_experts", "attention_bias", "lm_head_bias"],
    "mistral4": [*LATENT, "first_k_dense_replace", "norm_topk_prob"],
    "lfm2_moe": ["moe_intermediate_size", "num_experts", "intermediate_size", "num_dense_layers", "norm_topk_prob",
                 "conv_L_cache", "layer_types", "norm_eps"],
    "granitemoehybrid": ["hidden_act", "intermediate_size", "num_local_experts", "shared_intermediate_size",
                         "attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling",
                         "mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_head", "mamba_d_conv",
                         "layer_types"],
    "nemotron_h": ["mlp_hidden_act", "moe_intermediate_size", "n_routed_experts", "norm_topk_prob",
                   "routed_scaling_factor", "moe_shared_expert_intermediate_size", "layers_block_type",
                   "mamba_num_heads", "n_groups", "ssm_state_size", "mamba_head_dim", "conv_kernel",
                   "layer_norm_epsilon"],
}  # fmt: skip
# Of these families nothing, or a key with another name, stands in the place of one that the others have.
OWN_NAMES = {"lfm2_moe": ["rms_norm_eps"], "nemotron_h": ["rms_norm_eps", "num_hidden_layers"]}
EVERYWHERE = ["model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps",
              "max_position_embeddings", "num_experts_per_tok"]  # fmt: skip


def check_config(checkpoints: Checkpoints, variant: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Reads the family's config with changes, without any weights: config errors come first."""
    (path := tmp_path / "config.json").write_bytes((checkpoints(variant) / "config.json").read_bytes())
    edit_json(path, **changes)
    read(tmp_path)


@pytest.mark.parametrize(
    ("family", "key"),
    [(f, k) for f in FAMILIES for k in (*EVERYWHERE, *REQUIRED[f]) if k not in OWN_NAMES.get(f, ())],
)
def test_required_key(family: str, key: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """A class default of a model library is not the checkpoint's value, so a missing key is never filled in."""
    key = TAKEN.get(family, key) if key == "num_experts_per_tok" else key
    named = "num_experts" if (family, key) == ("qwen3_moe", "num_local_experts") else key
    with refused(ConfigError, "config.json", named):
        check_config(checkpoints, family, {key: ABSENT}, tmp_path)


@pytest.mark.parametrize("value", [0, -4, 2.5, "64", True, [64], {}])
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_experts_per_tok", "vocab_size", "head_dim"])
def test_count_that_is_none(key: str, value: Any, checkpoints: Checkpoints, tmp_path: Path) -> None:
    with refused(ConfigError, f"{key} is {json.dumps(value)}", "whole number from 1 to"):
        check_config(checkpoints, "qwen3_moe", {key: value}, tmp_path)


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("qwen3_moe", {"rms_norm_eps": -1e-6}, ["rms_norm_eps is -1e-06", "above 0"]),
        ("qwen3_moe", {"rms_norm_eps": float("nan")}, ["rms_norm_eps is NaN", "above 0"]),
        ("granitemoe", {"logits_scaling": float("inf")}, ["logits_scaling is Infinity", "above 0"]),
        ("granitemoe", {"attention_multiplier": "x"}, ['attention_multiplier is "x"', "above 0"]),
        ("qwen3_moe", {"norm_topk_prob": 1}, ["norm_topk_prob is 1", "true or false"]),
        ("qwen3_moe", {"mlp_only_layers": 3}, ["mlp_only_layers is 3", "list"]),
        ("qwen3_moe", {"mlp_only_layers": ["a"]}, ["mlp_only_layers", "list"]),
        ("olmoe", {"clip_qkv": "much"}, ['clip_qkv is "much"', "above 0"]),
        ("olmoe", {"clip_qkv": -1.0}, ["clip_qkv is -1.0", "above 0"]),
        ("qwen3_moe", {"eos_token_id": "</s>"}, ["eos_token_id is '</s>'", "token id"]),
        ("qwen3_moe", {"hidden_act": "gelu"}, ['hidden_act is "gelu"', '"silu"']),
        ("qwen3_moe", {"layer_types": ["full_attention", "linear_attention"]}, ['layer_types is "linear_attention"']),
        ("mixtral", {"norm_topk_prob": False}, ["norm_topk_prob is false", "--ignore-config-keys norm_topk_prob"]),
        ("olmoe", {"scoring_func": "sigmoid"}, ['scoring_func is "sigmoid"', "softmax"]),
        ("granitemoe", {"mlp_bias": True}, ["mlp_bias = true", "--ignore-config-keys mlp_bias"]),
        ("qwen2_moe", {"moe_topk": 7}, ["moe_topk is 7", "as the rest says"]),
        ("qwen3_moe", {"quantization_config": {"quant_method": "hqq"}}, ["quantised as hqq", "fp8", "unquantised"]),
        ("qwen3_moe", {"num_experts_per_tok": 9}, ["num_experts_per_tok is 9", "8 experts"]),
        ("qwen3_moe", {"num_key_value_heads": 3}, ["num_key_value_heads is 3", "num_attention_heads = 4"]),
        ("olmoe", {"num_attention_heads": 5, "num_key_value_heads": 5}, ["num_attention_heads is 5", "64", "head_dim"]),
        ("qwen3_moe", {"surprise": 7}, ["surprise = 7", "--ignore-config-keys surprise"]),
        ("qwen3_moe", {"model_type": "qwen3_mo"}, ["'qwen3_mo'", "nearest: qwen3_moe", "granitemoe"]),
        ("qwen3_moe", {"model_type": "llama"}, ["'llama'", "Supported: qwen3_moe, qwen2_moe, mixtral"]),
        ("qwen3_moe", {"model_type": ["qwen3_moe"]}, ["qwen3_moe", "not supported"]),
    ],
)  # fmt: skip
def test_value_that_is_not_supported(
    family: str, changes: dict[str, Any], said: list[str], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    with refused(ConfigError, "config.json", *said):
        check_config(checkpoints, family, changes, tmp_path)


def test_unknown_keys_can_be_ignored(make: Make) -> None:
    directory = make(surprise=7, other=True)
    with refused(ConfigError, "surprise = 7", "--ignore-config-keys other,surprise"):
        read(directory)
    read(directory, ignore_config_keys=("surprise", "other"))


PARAMETERS = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_parameters": {**PARAMETERS, "rope_type": "ntk"}}, ['rope_type is "ntk"', "yarn"]),
        ({"rope_parameters": {**PARAMETERS, "rope_type": "longrope"}}, ["longrope", "misses long_factor"]),
        ({"rope_parameters": {**PARAMETERS, "rope_type": 5}}, ["rope_type is 5", "yarn"]),
        ({"rope_parameters": {**PARAMETERS, "rope_type": "linear"}}, ["'linear'", "misses factor"]),
        ({"rope_parameters": {**PARAMETERS, "rope_type": "yarn"}}, ["'yarn'", "misses factor"]),
        ({"rope_parameters": {**PARAMETERS, "rope_type": "linear", "factor": "x"}}, ['factor is "x"', "above 0"]),
        ({"rope_parameters": {**PARAMETERS, "rope_type": "linear", "factor": 0}}, ["factor is 0", "above 0"]),
        ({"rope_parameters": {**PARAMETERS, "colour": 2}}, ["unknown colour", "--ignore-config-keys colour"]),
        ({"rope_parameters": {"rope_type": "default"}}, ["rope_theta", "card"]),
        ({"rope_parameters": {**PARAMETERS, "rope_theta": 0}}, ["rope_theta is 0", "above 0"]),
        ({"rope_parameters": {**PARAMETERS, "rope_theta": True}}, ["rope_theta is true", "above 0"]),
        ({"rope_parameters": {**PARAMETERS, "partial_rotary_factor": 0.01}}, ["partial_rotary_factor is 0.01", "24"]),
        ({"rope_parameters": {**PARAMETERS, "partial_rotary_factor": 2.0}}, ["partial_rotary_factor is 2.0", "24"]),
        ({"rope_parameters": [1]}, ["rope_parameters is [1]", "object"]),
        ({"rope_scaling": "linear"}, ['rope_scaling is "linear"', "object"]),
        ({"rope_theta": 5e5}, ["rope_theta is both", "500000", "10000"]),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, ["rope_type is both", "default", "linear"]),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 1e4},
             "rope_scaling": {"rope_type": "linear", "factor": 2}},
            ["factor is both 4 and 2", "remove"],
        ),
    ],
)  # fmt: skip
def test_rope(changes: dict[str, Any], said: list[str], checkpoints: Checkpoints, tmp_path: Path) -> None:
    with refused(ConfigError, "config.json", *said):
        check_config(checkpoints, "qwen3_moe", changes, tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[1, 2]", ["list", "object"]),
        (b'"text"', ["str", "object"]),
        (b"{", ["not valid JSON"]),
        (b"", ["is empty"]),
        (b'{"a": "\xff\xfe"}', ["not valid JSON"]),
        (b"[" * 100_000, ["not valid JSON"]),
    ],
)
def test_config_that_is_no_object(content: bytes, said: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with refused(ConfigError, str(tmp_path / "config.json"), *said):
        read(tmp_path)


def test_config_with_a_byte_order_mark_is_read(make: Make) -> None:
    path = make() / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    read(path.parent)


def test_directory_without_config(tmp_path: Path) -> None:
    with refused(ConfigError, "config.json", str(tmp_path)):
        read(tmp_path)
    with refused(HubError, "config.json", str(tmp_path)):
        LLM(str(tmp_path), kernels="reference")


@pytest.mark.parametrize(
    "content", [b"{", b"[1]", b"\xff\xfe{}", b'{"eos_token_id": "x"}', b'{"eos_token_id": {}}', b"[" * 100_000]
)
def test_damaged_generation_config(content: bytes, make: Make) -> None:
    directory = make()
    (directory / "generation_config.json").write_bytes(content)
    with refused(CheckpointError, "generation_config.json", "damaged", "download"):
        read(directory)
