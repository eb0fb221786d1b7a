"""A plan reads what decides on sizes: other keys neither stop nor cloud it, wrapped and unknown models are planned."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from headrace import ConfigError
from headrace.loaders import model_source
from headrace.loaders.architecture import catalogue
from headrace.loaders.architecture.by_name.size_keys import may_change_sizes
from headrace.loaders.architecture.by_name.text_part import text_part
from headrace.loaders.architecture.readers import read
from headrace.loaders.model_source import Source

QWEN3 = catalogue.find("Qwen3-30B-A3B").config
PLAIN = read(QWEN3, "c").architecture


def planned(values: dict[str, Any]) -> Source:
    return model_source.of_config(values, "c", "c")


# Keys that change no size

ODD: list[dict[str, Any]] = [
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0], "factor": 2}},
    {"rope_scaling": "a text"},
    {"rope_theta": None},
    {"rope_parameters": {"full_attention": {"rope_type": "default"}, "sliding_attention": {}}},
    {"rms_norm_eps": None},
    {"hidden_act": "relu_of_2027"},
    {"norm_topk_prob": "maybe"},
    {"initializer_range": "0.02", "attention_dropout": [0.1], "router_aux_loss_coef": {}, "eos_token_id": "</s>"},
    {"router_z_loss_coef": 1e-3, "num_beams": 4, "max_new_tokens": 512, "num_labels": 2, "temperature": 0.7},
    {"some_token_id": 151000, "image_token_index": 4, "pretraining_tp": 8, "ep_size": 16, "chunk_size": 64},
    {"max_position_embeddings": None},
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: next(iter(odd)))
@pytest.mark.parametrize("name", ["Qwen3-30B-A3B", "Mixtral-8x7B", "Granite-3.1-3b-a800m", "DeepSeek-V3", "GLM-4.5"])
def test_keys_that_change_no_size_neither_stop_nor_cloud(name: str, odd: dict[str, Any]) -> None:
    config = catalogue.find(name).config
    described = planned({**config, **odd}).described
    plain = read(config, "c").architecture
    assert (described.architecture.layers, described.unknown_keys) == (plain.layers, ())
    assert described.architecture.total_parameters == plain.total_parameters


def test_what_stops_a_run_is_still_said() -> None:
    described = planned({**QWEN3, "hidden_act": "relu_of_2027"}).described
    assert any("relu_of_2027" in objection for objection in described.objections)
    assert all(len(objection) < 300 for objection in described.objections)


def test_yarn_reaches_as_far_as_it_stretches() -> None:
    """The trained context is the config's where the rope does not say one, as in transformers and vLLM."""
    longest = QWEN3["max_position_embeddings"]
    for rope, context in (
        ({"rope_type": "yarn", "factor": 4.0}, 4 * longest),
        ({"type": "yarn", "factor": 2, "original_max_position_embeddings": longest}, 2 * longest),
        ({"type": "linear", "factor": 4}, longest),
    ):
        assert planned({**QWEN3, "rope_scaling": rope}).described.architecture.context == context


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "2048"},
        {"hidden_size": 2048.0},
        {"num_hidden_layers": " 48 ", "num_experts": "128", "num_experts_per_tok": 8.0},
        {"tie_word_embeddings": "false", "attention_bias": 0},
        {"tie_word_embeddings": 0, "mlp_only_layers": None, "decoder_sparse_step": None},
    ],
)
def test_values_of_another_type_are_taken_by_their_value(changes: dict[str, Any]) -> None:
    found = planned({**QWEN3, **changes}).described.architecture
    assert found.layers == PLAIN.layers
    assert found.total_parameters == PLAIN.total_parameters


@pytest.mark.parametrize("value", ["many", 2048.5, -1, 0, [2048], "2e3", True])
def test_values_that_are_no_size_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="hidden_size"):
        planned({**QWEN3, "hidden_size": value})


@pytest.mark.parametrize(
    ("key", "value", "may"),
    [
        ("num_extra_experts", 3, True), ("adapter_rank", 16, True), ("memory_heads", [4, 4], True),
        ("num_extra_experts", 0, False), ("num_extra_experts", None, False), ("use_extra_experts", True, False),
        ("expert_dropout", 0.1, False), ("num_token_ids", 4, False), ("rope_head_scaling", 2.0, False),
        ("vision_hidden_size", 1024, False), ("layer_norm_scale", 0.5, False), ("router_z_loss_coef", 0.1, False),
        ("num_beams", 4, False), ("description", "layers", False),
    ],
)  # fmt: skip
def test_which_unread_keys_are_worth_a_word(key: str, value: object, may: bool) -> None:
    assert may_change_sizes(key, value) is may
    assert (key in planned({**QWEN3, key: value}).described.unknown_keys) is may


# Text models inside of others


@pytest.mark.parametrize(
    "wrapped",
    [
        {"model_type": "some_vl", "text_config": QWEN3, "vision_config": {"num_hidden_layers": 27}},
        {"model_type": "some_chat", "llm_config": QWEN3, "vision_config": {"depth": 3}},
        {"language_config": QWEN3, "projector_config": {"n_layers": 2}, "aligner": {}},
        {
            "thinker_config": {"text_config": QWEN3, "audio_config": {"num_layers": 3}},
            "talker_config": {"text_config": {**QWEN3, "num_experts": 4}},
        },
        {"model_type": "x", "core": {"decoder": QWEN3}, "vision_tower": {"num_hidden_layers": 2}},
    ],
    ids=["text", "llm", "language", "thinker", "other"],
)
def test_the_text_model_of_a_wrapper_is_planned(wrapped: dict[str, Any]) -> None:
    source = planned(wrapped)
    assert source.described.architecture.layers == PLAIN.layers
    assert any("the text model is taken" in note for note in source.notes)
    assert source.described.objections == ()


def test_what_is_not_counted_is_said() -> None:
    (note,) = planned({"text_config": QWEN3, "vision_config": {"depth": 3}, "audio_config": {"d_model": 3}}).notes
    assert note.endswith("left out: audio_config, vision_config")


def test_a_config_that_wraps_nothing_is_itself() -> None:
    flat = {**QWEN3, "vision_config": {"num_hidden_layers": 3, "hidden_size": 8}}
    assert text_part(flat) == (flat, ())


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen3_omni_moe", "glm4v_moe", "kimi_k25", "aria", "llama4"])
def test_wrappers_of_transformers(family: str) -> None:
    """Whatever it calls its parts, the layers are those of the class of the text model."""
    config = json.loads(CONFIG_MAPPING[family]().to_json_string(use_diff=False))
    inner, _ = text_part(config)
    inner["head_dim"] = inner.get("head_dim") or 128  # as releases have it, where the classes have none
    found = read(inner, family).architecture
    assert len(found.layers) == inner["num_hidden_layers"]
    assert found.moe_layers
    assert not read(inner, family).unknown_keys


# Families that nobody wrote a reader for


@pytest.mark.parametrize("family", ["mellum", "flex_olmo", "cohere2_moe", "axk1", "aria_text", "granitemoe_swa"])
def test_unknown_families_have_the_parameters_of_transformers(family: str) -> None:
    """Grouped-query and latent attention, windows, shared experts, dense layers: all but norms and biases."""
    config = CONFIG_MAPPING[family]()
    config.num_hidden_layers = min(8, config.num_hidden_layers)
    for name in ("layer_types", "mlp_layer_types", "moe_layer_freq"):
        if isinstance(getattr(config, name, None), list):
            setattr(config, name, getattr(config, name)[:8])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    source = planned(json.loads(config.to_json_string(use_diff=False)))
    counted = sum(p.numel() for p in model.parameters())
    assert source.described.architecture.total_parameters == pytest.approx(counted, rel=1e-3)
    assert any("not known: planned by the usual names" in note for note in source.notes)


SPELLED: list[dict[str, Any]] = [
    {"n_embd": 2048, "n_layer": 48, "n_head": 32, "n_head_kv": 4, "num_experts": 128, "top_k": 8, "expert_dim": 768},
    {
        "d_model": 2048, "n_layers": 48, "attn_config": {"n_heads": 32, "kv_n_heads": 4},
        "ffn_config": {"moe_num_experts": 128, "moe_top_k": 8, "ffn_hidden_size": 768},
    },
    {
        "hidden_size": "2048", "num_hidden_layers": 48.0, "num_attention_heads": 32, "num_query_groups": 4,
        "n_routed_experts": 128, "moe_router_topk": 8, "moe_ffn_hidden_size": 768,
    },
]  # fmt: skip


@pytest.mark.parametrize("values", SPELLED, ids=["gpt", "mpt", "megatron"])
def test_sizes_under_other_names(values: dict[str, Any]) -> None:
    found = planned({"model_type": "moe_of_2027", "vocab_size": 151936, "head_dim": 128, **values}).described
    assert found.architecture.total_parameters == pytest.approx(PLAIN.total_parameters, rel=1e-3)
    assert found.architecture.routed_per_token == PLAIN.routed_per_token


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_experts": None}, "has no experts"),
        ({"num_experts_per_tok": None}, "no 'num_experts_per_tok'"),
        ({"layer_types": ["mamba"] * 48}, "layers of kind 'mamba'"),
        ({"mamba_d_state": 16}, "mamba_d_state"),
    ],
)
def test_unknown_families_without_the_numbers_name_the_nearest(changes: dict[str, Any], said: str) -> None:
    values = {**QWEN3, "model_type": "qwen3_moe_plus", **changes}
    with pytest.raises(ConfigError, match=said) as raised:
        planned(values)
    assert "nearest: qwen3_moe" in str(raised.value)
    assert len(str(raised.value)) < 300


def test_a_config_without_a_type_goes_by_its_class() -> None:
    values = {key: value for key, value in QWEN3.items() if key != "model_type"}
    found = planned({**values, "architectures": ["Qwen3MoeForCausalLM"]})
    assert found.described.architecture.layers == PLAIN.layers
    assert not any("not known" in note for note in found.notes)
    found = planned({**QWEN3, "model_type": "a_tuned_one", "architectures": ["Qwen3MoeForCausalLM"]})
    assert found.described.architecture.layers == PLAIN.layers
    assert "planned as qwen3_moe, which its class says" in found.notes[0]
