"""Formats and mixes by name: which tensor of which layer gets which, in a run as in a plan."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from refusals import refused
from released.biased import BIASED
from released.mixers import MIXERS
from released.recurrent import RECURRENT
from released.warm import WARM

from headrace import ConfigError, OptionError
from headrace.engine.bench.random_weights import random_llm
from headrace.engine.memory.deciding import storage_of
from headrace.engine.planning import storage
from headrace.loaders import model_source
from headrace.loaders.architecture import catalogue
from headrace.loaders.architecture.by_name.text_part import text_part
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.quants import of_config, of_text, recipes
from headrace.loaders.quants.encodings import ENCODINGS, SMALLER_BLOCKS
from headrace.loaders.weights import chosen_formats, imagined
from headrace.loaders.weights.checkpoint import Checkpoint
from headrace.loaders.weights.chosen_formats import LoadOptions

SMALL = {
    "model_type": "qwen3_moe", "hidden_size": 256, "head_dim": 32, "num_attention_heads": 8, "num_key_value_heads": 2,
    "moe_intermediate_size": 256, "intermediate_size": 512, "num_experts": 4, "num_experts_per_tok": 2,
    "num_hidden_layers": 8, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True, "vocab_size": 96,
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 256,
    "attention_bias": False, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


def asked(model: str | dict[str, Any], experts: str, dense: str = "native") -> Checkpoint:
    return imagined.imagine(model, LoadOptions(expert_format=experts, dense_format=dense))


def of_role(checkpoint: Checkpoint, role: str) -> list[str]:
    """The formats of a role, layer by layer."""
    group: Any = "experts" if role in ("gate", "up", "down") else "dense"
    return [checkpoint.formats.of(f"{i}.{role}", group).name for i in range(len(checkpoint.spec.layers))]


def test_q4_k_m_of_48_layers_by_hand() -> None:
    """The first and last six layers, and every third between: down and values in six bits there; the head too."""
    found = asked("Qwen3-30B-A3B", "q4_k_m", "q4_k_m")
    more = {*range(6), *range(42, 48), *range(8, 42, 3)}
    wanted = ["q6_k" if layer in more else "q4_k" for layer in range(48)]
    assert of_role(found, "down") == of_role(found, "v") == wanted
    for role in ("gate", "up", "q", "k", "o"):
        assert of_role(found, role) == ["q4_k"] * 48
    assert found.formats.of("head", "dense").name == "q6_k"
    assert found.formats.of("embed", "embed").name == "bf16", "as it is stored"


def test_q2_k_is_the_mix_of_that_name() -> None:
    found = asked("Qwen3-30B-A3B", "q2_k", "q2_k")
    assert of_role(found, "gate") == ["q2_k"] * 48
    assert of_role(found, "down") == of_role(found, "o") == ["q3_k"] * 48
    assert of_role(found, "v") == ["q4_k"] * 48, "eight heads share a key"
    assert found.formats.names == {"experts": "q2_k/q3_k", "dense": "q2_k/q6_k/q4_k/q3_k", "embed": "bf16"}


def test_mxfp4_moe_is_for_experts() -> None:
    found = asked("Qwen3-30B-A3B", "mxfp4_moe", "mxfp4_moe")
    assert found.formats.names == {"experts": "mxfp4", "dense": "q8_0", "embed": "bf16"}


SHAPES = {
    "shared keys": {},
    "eight experts": {"num_experts": 8, "num_key_value_heads": 8},
    "a dense layer, a tied head": {"mlp_only_layers": [0, 3], "tie_word_embeddings": True, "num_hidden_layers": 17},
    "a shared expert": {
        "model_type": "qwen2_moe",
        "shared_expert_intermediate_size": 512,
        "attention_bias": True,
    },
    "windows and biases": {
        "model_type": "gpt_oss", "num_local_experts": 4, "intermediate_size": 256, "sliding_window": 64,
        "attention_bias": True, "norm_topk_prob": None,
    },
    "latents": {
        "model_type": "deepseek_v3", "n_routed_experts": 4, "n_shared_experts": 2, "first_k_dense_replace": 2,
        "q_lora_rank": 256, "kv_lora_rank": 512, "qk_nope_head_dim": 96, "qk_rope_head_dim": 32, "v_head_dim": 64,
        "routed_scaling_factor": 2.0, "num_key_value_heads": 8, "head_dim": 32,
    },
    "delta rules": {
        "model_type": "qwen3_next", "shared_expert_intermediate_size": 512, "linear_num_key_heads": 4,
        "linear_num_value_heads": 8, "linear_key_head_dim": 32, "linear_value_head_dim": 64,
        "linear_conv_kernel_dim": 4, "full_attention_interval": 4, "partial_rotary_factor": 0.25,
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("experts", "dense"),
    [(name, name) for name in recipes.PACKED]
    + [("q4_k_m", "q8_0"), ("q6_k", "q5_k"), ("mxfp4", "q4_0"), ("iq4_xs", "q4_k_m"), ("q3_k", "q4_1")],
)
def test_a_run_and_a_plan_choose_alike(shape: str, experts: str, dense: str) -> None:
    """The same bytes of every format in every layer."""
    config = {**SMALL, **SHAPES[shape]}
    engine = asked(config, experts, dense)
    found = storage_of(engine.spec, engine.formats)
    architecture = model_source.of_config(config, "c", "c").described.architecture
    quant = of_text.parse(f"experts={experts},dense={dense}", of_config.native(config, "c"))
    planned = storage.computed(architecture, quant)
    for one, other in zip(planned.layers, found.layers, strict=True):
        for part in ("common_in", "shared_in", "expert_in"):
            assert dict(getattr(one, part).parts) == dict(getattr(other, part).parts)
    assert dict(planned.head_in.parts) == dict(found.head_in.parts)
    assert planned.in_memory == found.in_memory == engine.weight_bytes


@pytest.mark.parametrize(("name", "instead"), SMALLER_BLOCKS.items())
def test_rows_that_are_no_whole_blocks(name: str, instead: str) -> None:
    """gate and up have rows of 256, down of 96; a plan counts the same."""
    config = {**SMALL, "moe_intermediate_size": 96}
    engine = asked(config, name, name)
    smaller = {"q2_k": "iq4_nl"}.get(name, instead)  # q2_k's down is q3_k, and that iq4_nl
    assert set(of_role(engine, "gate")) == {name}
    assert set(of_role(engine, "down")) == {smaller}
    architecture = model_source.of_config(config, "c", "c").described.architecture
    quant = of_text.parse(f"experts={name},dense={name}", of_config.native(config, "c"))
    assert storage.computed(architecture, quant).in_memory == engine.weight_bytes


def test_what_no_format_fits_is_named() -> None:
    with pytest.raises(OptionError, match=r"--expert-format q5_0 packs 32 weights to a block, but this .* rows of 80"):
        asked({**SMALL, "moe_intermediate_size": 80}, "q4_k")


def test_a_model_of_random_weights_runs_in_a_mix() -> None:
    with random_llm(SMALL, layers=8, expert_format="q4_k_m", dense_format="q5_k_m", max_context=32) as llm:
        assert llm.parts.checkpoint.formats.names == {
            "experts": "q4_k/q6_k", "dense": "q5_k/q6_k", "embed": "bf16",
        }  # fmt: skip
        text = llm.generate([[1, 2, 3]], {"max_new_tokens": 4, "ignore_eos": True})[0]
        assert len(text.token_ids) == 4


@pytest.mark.parametrize("shape", ["windows and biases", "latents", "delta rules"])
def test_random_weights_of_every_kind_of_layer_run(shape: str) -> None:
    config = {**SMALL, **SHAPES[shape]}
    with random_llm(
        config, layers=4, expert_format="q4_k_m", dense_format="q8_0", max_context=32, kernels="reference"
    ) as llm:
        assert len(llm.spec.layers) == 4
        said = llm.generate([[1, 2, 3]], {"max_new_tokens": 4, "ignore_eos": True})[0]
        assert len(said.token_ids) == 4
        assert llm.logits([1, 2, 3]).isfinite().all()


LACKING = {"Qwen3.8-Flash-Next": "has no 'indexer_budget'"}  # what is not known of a release, and decides on sizes


@pytest.mark.parametrize("name", [name for name in catalogue.names() if name not in LACKING])
def test_every_model_takes_a_mix_of_formats(name: str) -> None:
    """Also for matrices that llama.cpp has no rule for; q5_0 is for rows that are none of q4_k's blocks."""
    assert asked(catalogue.find(name).config, "q4_k_m", "q4_k_m").formats.experts.name in ("q4_k", "q5_0")


@pytest.mark.parametrize("name", [*catalogue.names(), "deepseek-ai/DeepSeek-R1", "Qwen/Qwen3.6-35B-A3B"])
def test_models_of_the_catalogue_can_be_run_with_random_weights(name: str) -> None:
    """Their entries have all that a run needs, or it says in one line what is missing; and what is computed is what the
    release's config says."""
    if name in LACKING:
        with refused(ConfigError, LACKING[name]):
            asked(catalogue.find(name).config, "q4_0")
        return
    found = asked(catalogue.find(name).config, "q4_0")
    released = {
        "gpt-oss-20b": "gpt-oss-20b", "gpt-oss-120b": "gpt-oss-120b", "DeepSeek-V2-Lite": "deepseek-v2-lite",
        "DeepSeek-V2": "deepseek-v2", "DeepSeek-V3": "deepseek-v3", "deepseek-ai/DeepSeek-R1": "deepseek-r1",
        "Kimi-K2": "kimi-k2", "Kimi-K2-Thinking": "kimi-k2-thinking", "Moonlight-16B-A3B": "moonlight-16b-a3b",
        "GLM-4.7-Flash": "glm-4.7-flash", "Qwen3-Next-80B-A3B": "qwen3-next-80b-a3b",
        "Qwen3.5-35B-A3B": "qwen3.6-35b-a3b", "Qwen/Qwen3.6-35B-A3B": "qwen3.6-35b-a3b",
        "GLM-4.5": "glm-4.5", "GLM-4.6": "glm-4.6", "GLM-4.5-Air": "glm-4.5-air", "MiniMax-M2": "minimax-m2",
        "dots.llm1": "dots.llm1", "Solar-Open-100B": "solar-open-100b", "Hy3": "hy3",
        "ERNIE-4.5-21B-A3B": "ernie-4.5-21b-a3b", "ERNIE-4.5-300B-A47B": "ernie-4.5-300b-a47b",
        "Hunyuan-A13B": "hunyuan-a13b", "LFM2-8B-A1B": "lfm2-8b-a1b", "Granite-4.0-h-tiny": "granite-4.0-h-tiny",
        "Granite-4.0-h-small": "granite-4.0-h-small", "Nemotron-3-Nano-30B-A3B": "nemotron-3-nano-30b-a3b",
        "Kimi-K3": "kimi-k3", "GLM-5.3-Flash": "glm-5.3-flash", "Mistral-Large-4": "mistral-large-4",
    }  # fmt: skip
    assert model_source.of_config(catalogue.find(name).config, name, name).described.objections == ()
    if name in released:
        config, _ = text_part({**MIXERS, **BIASED, **RECURRENT, **WARM}[released[name]])
        assert replace(found.spec, eos_ids=()) == replace(spec_of(ConfigReader(config, name))[1], eos_ids=())


def test_every_type_of_a_mix_is_packed() -> None:
    for name in recipes.PACKED:
        assert name in chosen_formats.NAMES
        for shape in SHAPES.values():
            checkpoint = asked({**SMALL, **shape}, name, name)
            found = Counter(format.name for format in checkpoint.formats.own.values())
            assert all(ENCODINGS[one].packed is not None for one in found)
