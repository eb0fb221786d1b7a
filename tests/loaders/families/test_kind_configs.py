"""Released configs of MiMo-V2-Flash, Step-3.5, Step-3.7 and Laguna: what releases spell in words of their own, against
transformers' reading of them, and what of such a config is refused."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
from released.count import parameters, spec
from released.kinds import KINDS, LAGUNA_XS, MIMO_V2_FLASH, STEP_35_FLASH, STEP_37_FLASH
from transformers import LagunaConfig, MiMoV2FlashConfig, PreTrainedConfig
from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig

from headrace.errors import ConfigError
from headrace.loaders.architecture import catalogue
from headrace.loaders.architecture.by_name.text_part import text_part
from headrace.loaders.spec import AttentionSpec, DenseSpec, ModelSpec, MoeSpec

FULL, SLIDING = "full_attention", "sliding_attention"


def attention(of: ModelSpec) -> list[AttentionSpec]:
    assert all(isinstance(one, AttentionSpec) for one in of.mixers)
    return [one for one in of.mixers if isinstance(one, AttentionSpec)]


@pytest.mark.parametrize(
    ("name", "total", "routed"),
    [
        ("mimo-v2-flash", 308.779e9, 302.795e9), ("step-3.5-flash", 196.956e9, 190.254e9),
        ("step-3.7-flash", 196.956e9, 190.254e9), ("laguna-xs.2", 33.443e9, 31.407e9),
    ],
)  # fmt: skip
def test_released_models_have_their_published_sizes(name: str, total: float, routed: float) -> None:
    found = parameters(text_part(KINDS[name])[0])
    assert found[0] == pytest.approx(total, rel=1e-4)
    assert found[1] == pytest.approx(routed, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mimo-v2-flash", MiMoV2FlashConfig), ("step-3.5-flash", Step3p7TextConfig), ("laguna-xs.2", LagunaConfig)],
)
def test_releases_say_what_transformers_reads_in_them(name: str, kind: type[PreTrainedConfig]) -> None:
    """As transformers saves them again, in words of its own besides."""
    release = {key: value for key, value in copy.deepcopy(KINDS[name]).items() if key != "quantization_config"}
    saved = json.loads(kind(**release).to_json_string(use_diff=False))
    assert saved["rope_parameters"].keys() == {FULL, SLIDING}
    assert spec(saved).layers == spec(KINDS[name]).layers


@pytest.mark.parametrize(
    ("name", "model"),
    [("mimo-v2-flash", "MiMo-V2-Flash"), ("step-3.5-flash", "Step-3.5-Flash"), ("laguna-xs.2", "Laguna-XS.2")],
)
def test_the_catalogue_says_the_same(name: str, model: str) -> None:
    assert spec(catalogue.find(model).config).layers == spec(KINDS[name]).layers


def test_mimo() -> None:
    found = spec(MIMO_V2_FLASH)
    mixers = attention(found)
    assert [i for i, one in enumerate(mixers) if one.window is None] == [0, 5, 11, 17, 23, 29, 35, 41, 47]
    full, sliding = mixers[0], mixers[1]
    assert (full.heads, full.kv_heads, full.head_dim, full.v_dim, full.sinks) == (64, 4, 192, 128, False)
    assert (sliding.heads, sliding.kv_heads, sliding.window, sliding.sinks) == (64, 8, 129, True)
    assert (full.rope.theta, sliding.rope.theta, full.rope.rotary_dim) == (5e6, 1e4, 64)
    assert full.v_scale == sliding.v_scale == 0.707
    assert [isinstance(layer.ffn, DenseSpec) for layer in found.layers] == [True] + [False] * 47
    moe = found.moe
    assert (moe.scoring, moe.renormalise, moe.choice_bias, moe.scale, moe.shared_width) == ("sigmoid", True, True, 1, 0)
    assert found.norm_eps == 1e-5
    assert attention(spec(MIMO_V2_FLASH, sliding_window_size=...))[1].window == 128


def test_step() -> None:
    found = spec(STEP_35_FLASH)
    mixers = attention(found)
    full, sliding = mixers[0], mixers[1]
    assert [one.window for one in mixers[:5]] == [None, 512, 512, 512, None]
    assert (full.heads, sliding.heads, full.kv_heads, sliding.kv_heads) == (64, 96, 8, 8)
    assert (full.gate, full.soft_gate, full.qk_norm) == ("of heads", False, "head")
    assert (full.rope.kind, full.rope.factor, full.rope.rotary_dim, full.rope.theta) == ("llama3", 2.0, 64, 5e6)
    assert (sliding.rope.kind, sliding.rope.rotary_dim, sliding.rope.theta) == ("default", 128, 1e4)
    limits = [layer.ffn.activation.limit for layer in found.layers]
    assert limits == [math.inf] * 43 + [7, 7]
    shared = [one.ffn.shared_activation for one in found.layers if isinstance(one.ffn, MoeSpec)]
    assert [one.limit for one in shared if one] == [math.inf] * 41 + [16]
    newer = [one.ffn.shared_activation for one in spec(STEP_37_FLASH).layers if isinstance(one.ffn, MoeSpec)]
    assert [one.limit for one in newer if one] == [math.inf] * 40 + [16, 16]
    assert (found.moe.experts, found.moe.top_k, found.moe.scale, found.moe.shared_width) == (288, 8, 3.0, 1280)
    assert sum(layer.is_moe for layer in found.layers) == 42


def test_laguna() -> None:
    found = spec(LAGUNA_XS)
    mixers = attention(found)
    assert [one.heads for one in mixers[:5]] == [48, 64, 64, 64, 48]
    assert (mixers[0].gate, mixers[0].soft_gate, mixers[1].window) == ("of heads", True, 512)
    assert (mixers[0].rope.kind, mixers[0].rope.rotary_dim, mixers[1].rope.rotary_dim) == ("yarn", 64, 128)
    assert attention(spec(LAGUNA_XS, gating="per-element"))[0].gate_rows == 48 * 128
    assert found.context == 262144


PLAIN = ["full_attention"] * 40
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("mimo-v2-flash", {"swa_head_dim": 128}, "swa_head_dim is 128, supported is head_dim = 192"),
    ("mimo-v2-flash", {"swa_v_head_dim": 64}, "swa_v_head_dim is 64, supported is v_head_dim = 128"),
    ("mimo-v2-flash", {"swa_num_key_value_heads": 5}, "supported is a divisor of the 64 heads of a layer"),
    ("mimo-v2-flash", {"add_full_attention_sink_bias": True}, "add_full_attention_sink_bias is true, supported is"),
    ("mimo-v2-flash", {"add_swa_attention_sink_bias": False}, "add_swa_attention_sink_bias is false, supported is"),
    ("mimo-v2-flash", {"hybrid_layer_pattern": ...}, "has no 'layer_types'"),
    ("mimo-v2-flash", {"partial_rotary_factor": ...}, "has no 'partial_rotary_factor'"),
    ("mimo-v2-flash", {"v_head_dim": ..., "swa_v_head_dim": ...}, "has no 'v_head_dim'"),
    ("mimo-v2-flash", {"layernorm_epsilon": ...}, "has no 'rms_norm_eps'"),
    ("mimo-v2-flash", {"n_shared_experts": 1}, "n_shared_experts is 1, supported is 0 or null"),
    ("step-3.5-flash", {"rope_theta": [5e6, 1e4, 1e4, 2e4] * 12}, "a list of 45, the same for layers of one kind"),
    ("step-3.5-flash", {"rope_theta": [5e6, 1e4]}, "a list of 45, the same for layers of one kind"),
    ("step-3.5-flash", {"yarn_only_types": [SLIDING]}, 'supported is ["full_attention"]'),
    ("step-3.5-flash", {"use_rope_layers": [True, False] * 24}, "supported is true for every layer"),
    ("step-3.5-flash", {"moe_layers_enum": "three"}, "supported is numbers of layers, with commas between"),
    ("step-3.5-flash", {"moe_layers_enum": ...}, "has no 'first_k_dense_replace'"),
    ("step-3.5-flash", {"attention_other_setting": {"head_dim": 64}}, "attention_other_setting is"),
    ("step-3.5-flash", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar is 64, supported is head_dim = 128"),
    ("step-3.5-flash", {"swiglu_limits": [7.0]}, "a list with the limit of each of the 45 layers"),
    ("step-3.5-flash", {"swiglu_limits": [-7.0] * 45}, "swiglu_limits is -7.0, supported is a number above 0"),
    ("step-3.5-flash", {"use_head_wise_attn_gate": False}, "use_head_wise_attn_gate is false, supported is"),
    ("step-3.5-flash", {"moe_router_activation": "softmax"}, 'moe_router_activation is "softmax", supported is'),
    ("step-3.5-flash", {"layer_types": [FULL]}, "layer_types is"),
    ("laguna-xs.2", {"gating": False}, 'gating is false, supported is true, "per-head" or "per-element"'),
    ("laguna-xs.2", {"moe_router_logit_softcapping": 5.0}, "moe_router_logit_softcapping is 5.0, supported is 0"),
    ("laguna-xs.2", {"moe_apply_router_weight_on_input": True}, "moe_apply_router_weight_on_input is true"),
    ("laguna-xs.2", {"num_attention_heads_per_layer": [48]}, "a list of 40 whole numbers above 0"),
    ("laguna-xs.2", {"num_attention_heads_per_layer": [48, 60, 64, 64] * 10}, "a divisor of the 60 heads of a layer"),
    ("laguna-xs.2", {"sliding_window": ...}, "has no 'sliding_window'"),
    ("laguna-xs.2", {"norm_topk_prob": False}, "norm_topk_prob is false, supported is True"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "said"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as found:
        spec(KINDS[name], **changes)
    assert said in str(found.value)


def test_a_laguna_that_sees_everything_needs_no_window() -> None:
    ropes = {"rope_parameters": {FULL: LAGUNA_XS["rope_parameters"][FULL]}}
    found = spec(LAGUNA_XS, layer_types=PLAIN, sliding_window=..., num_attention_heads_per_layer=..., **ropes)
    assert {one.window for one in attention(found)} == {None}
    assert {one.heads for one in attention(found)} == {48}
