"""Configs of GLM-4.5 to 4.7, MiniMax-M2, dots.llm1, Solar-Open, Hy3, ERNIE-4.5, K-EXAONE, Granite with a shared expert
and Hunyuan against what is known of the models: what a run computes with, what it refuses, and what it leaves out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch
from released.biased import BIASED
from released.count import parameters

from headrace import LLM, ConfigError
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.spec import AttentionSpec, ModelSpec

# Billions of parameters: all, and those of routed experts.
PUBLISHED = {
    "glm-4.5": (352.798, 335.964), "glm-4.6": (352.798, 335.964), "glm-4.5-air": (106.852, 99.657),
    "minimax-m2": (228.690, 224.680), "dots.llm1": (142.774, 135.090), "solar-open-100b": (102.652, 96.637),
    "hy3": (295.034, 286.286), "ernie-4.5-21b-a3b": (21.825, 20.384), "ernie-4.5-300b-a47b": (299.484, 287.494),
    "hunyuan-a13b": (80.393, 77.309),
}  # fmt: skip


def spec(config: dict[str, Any], **changes: Any) -> ModelSpec:
    """The spec of a config with changes; ... takes a key out."""
    values = {key: value for key, value in {**config, **changes}.items() if value is not ...}
    reader = ConfigReader(values, "config.json")
    found = spec_of(reader)[1]
    assert all("has no beta_fast" in note for note in reader.notes)  # Hunyuan's says what no other rope has either
    return found


def attention(config: dict[str, Any]) -> AttentionSpec:
    found = spec(config).mixers[0]
    assert isinstance(found, AttentionSpec)
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    total, routed = parameters(BIASED[name])
    assert (total / 1e9, routed / 1e9) == pytest.approx(PUBLISHED[name], rel=1e-3)


def test_attention() -> None:
    glm, air, minimax = (attention(BIASED[name]) for name in ("glm-4.5", "glm-4.5-air", "minimax-m2"))
    assert (glm.qk_norm, glm.qkv_bias, glm.output_bias) == ("head", True, False)
    assert (glm.rope.rotary_dim, glm.rope.theta) == (64, 1e6)
    assert (air.qk_norm, air.qkv_bias) == ("none", True)
    assert (minimax.qk_norm, minimax.rope.rotary_dim, minimax.rope.theta) == ("full", 64, 5e6)
    hunyuan = attention(BIASED["hunyuan-a13b"])
    assert (hunyuan.qk_norm, hunyuan.norms_last) == ("head", True)
    assert hunyuan.rope.theta == pytest.approx(11158839.9, rel=1e-7)


def test_windows_rotate_and_full_layers_do_not() -> None:
    found = [mixer for mixer in spec(BIASED["k-exaone"]).mixers if isinstance(mixer, AttentionSpec)]
    assert [mixer.window for mixer in found] == [128, 128, 128, None] * 12
    assert [mixer.rope.kind for mixer in found] == ["default", "default", "default", "none"] * 12
    whole = spec(BIASED["k-exaone"], sliding_window=None).mixers
    assert {(mixer.window, mixer.rope.kind) for mixer in whole if isinstance(mixer, AttentionSpec)} == {
        (None, "default")
    }


def test_routers() -> None:
    glm, hy3, ernie = (spec(BIASED[name]).moe for name in ("glm-4.5", "hy3", "ernie-4.5-21b-a3b"))
    assert (glm.scoring, glm.choice_bias, glm.renormalise, glm.scale) == ("sigmoid", True, True, 2.5)
    assert (hy3.scoring, hy3.choice_bias, hy3.renormalise, hy3.scale) == ("sigmoid", True, True, 2.826)
    assert (ernie.scoring, ernie.choice_bias, ernie.renormalise, ernie.top_k) == ("softmax", True, True, 6)
    assert (glm.shared_width, ernie.shared_width, spec(BIASED["hunyuan-a13b"]).moe.shared_width) == (1536, 3072, 3072)
    minimax = spec(BIASED["minimax-m2"]).moe
    assert (minimax.scoring, minimax.choice_bias, minimax.renormalise, minimax.shared_width) == (
        "sigmoid",
        True,
        True,
        0,
    )


def test_which_layers_have_experts() -> None:
    assert spec(BIASED["glm-4.5"]).is_moe == (False,) * 3 + (True,) * 89
    assert spec(BIASED["ernie-4.5-300b-a47b"]).is_moe == (False,) * 3 + (True,) * 51
    assert all(spec(BIASED["solar-open-100b"]).is_moe)
    some = spec(BIASED["ernie-4.5-21b-a3b"], moe_layer_interval=2, moe_layer_end_index=9)
    assert [i for i, has in enumerate(some.is_moe) if has] == [1, 3, 5, 7, 9]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("glm-4.5", {"partial_rotary_factor": ...}, "has no 'partial_rotary_factor'"),
    ("glm-4.5", {"scoring_func": "softmax"}, 'scoring_func is "softmax", supported is \'sigmoid\''),
    ("glm-4.5", {"hidden_act": "gelu"}, 'hidden_act is "gelu"'),
    ("glm-4.5", {"index_topk": 2048}, "index_topk = 2048"),
    ("minimax-m2", {"rotary_dim": ...}, "has no 'partial_rotary_factor'"),
    ("minimax-m2", {"rotary_dim": 256}, "rotary_dim is 256"),
    ("minimax-m2", {"partial_rotary_factor": 1.0}, "partial_rotary_factor is both 0.5 and 1.0"),
    ("minimax-m2", {"qk_norm_type": "per_head"}, 'qk_norm_type is "per_head", supported is "per_layer" or null'),
    ("minimax-m2", {"use_routing_bias": False}, "use_routing_bias is false, supported is true or null"),
    ("minimax-m2", {"use_qk_norm": False}, "use_qk_norm is false"),
    ("minimax-m2", {"shared_intermediate_size": 512}, "shared_intermediate_size is 512, supported is 0 or null"),
    ("dots.llm1", {"scoring_func": "softmax"}, 'scoring_func is "softmax", supported is "noaux_tc"'),
    ("dots.llm1", {"moe_layer_freq": 2}, "moe_layer_freq is 2"),
    ("solar-open-100b", {"first_k_dense_replace": 1}, "first_k_dense_replace is 1, supported is 0 or null"),
    ("solar-open-100b", {"use_qk_norm": True}, "use_qk_norm is true"),
    ("hy3", {"mlp_bias": True}, "mlp_bias = true"),
    ("ernie-4.5-21b-a3b", {"use_bias": True}, "use_bias is true, supported is false or null"),
    ("ernie-4.5-21b-a3b", {"moe_norm_min": 0.1}, "moe_norm_min is 0.1, supported is 1e-12 or null"),
    ("ernie-4.5-21b-a3b", {"moe_layer_start_index": [1, 1]}, "moe_layer_start_index is [1, 1]"),
    ("ernie-4.5-21b-a3b", {"moe_layer_end_index": 28}, "moe_layer_end_index is 28, supported is the number of one"),
    ("ernie-4.5-21b-a3b", {"moe_layer_start_index": 27, "moe_layer_interval": 3}, "none of the 28 layers has experts"),
    ("ernie-4.5-21b-a3b", {"moe_k": 65}, "moe_k is 65, supported is at most the 64 experts"),
    ("k-exaone", {"layer_types": ["full_attention"]}, "layer_types is"),
    ("hunyuan-a13b", {"moe_topk": [8] * 31 + [4]}, "supported is the same in every layer"),
    ("hunyuan-a13b", {"num_shared_expert": [2] * 32}, "num_shared_expert is 2, supported is 1 or null"),
    ("hunyuan-a13b", {"use_cla": True}, "use_cla = true"),
    ("hunyuan-a13b", {"rope_scaling": {"type": "dynamic", "alpha": -1}}, "alpha is -1, supported is a number above 0"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "said"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as found:
        spec(BIASED[name], **changes)
    assert said in str(found.value)


def test_layers_for_multi_token_prediction_are_left_out_with_a_note(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    """GLM's lie behind the last layer, as one layer more with parts of its own; ERNIE's and K-EXAONE's apart."""
    for variant in ("glm4_moe", "exaone_moe"):
        directory = tmp_path / variant
        tiny.build(variant, directory)
        stored = safetensors.torch.load_file(directory / "model.safetensors")
        last = max(int(name.split(".")[2]) for name in stored if name.startswith("model.layers."))
        if variant == "glm4_moe":
            at, of = f"model.layers.{last + 1}.", f"model.layers.{last}."
            more = {at + name: torch.ones(64) for name in ("enorm.weight", "hnorm.weight", "shared_head.norm.weight")}
        else:
            at, of, more = "mtp.layers.0.", f"model.layers.{last}.", {"mtp.norm.weight": torch.ones(64)}
        more |= {name.replace(of, at): values.clone() for name, values in stored.items() if name.startswith(of)}
        safetensors.torch.save_file(stored | more, directory / "model.safetensors", {"format": "pt"})
        with LLM(directory, kernels="reference") as llm, LLM(checkpoints(variant), kernels="reference") as plain:
            assert torch.equal(llm.logits([5, 9, 3]), plain.logits([5, 9, 3]))
            assert any("multi-token prediction" in note for note in llm.notes)
