"""LFM2-MoE, Granite 4.0 H and Nemotron-3: what their configs say, what is refused, and what a layer of one part is."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import Run
from released.recurrent import GRANITE_4_H_SMALL, GRANITE_4_H_TINY, LFM2_8B, NEMOTRON_3_NANO

from headrace import LLM, ConfigError, OptionError
from headrace.kernels.recipes import SQUARED_RELU
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.spec import NO_ROPE, AttentionSpec, ConvSpec, DenseSpec, ModelSpec, MoeSpec, SpaceSpec

Checkpoints = Callable[[str], Path]


def spec(config: dict[str, Any], **changes: Any) -> ModelSpec:
    return spec_of(ConfigReader({**config, **changes}, "config.json"))[1]


def test_convolutions_of_lfm2() -> None:
    found = spec(LFM2_8B)
    assert [i for i, mixer in enumerate(found.mixers) if isinstance(mixer, AttentionSpec)] == [2, 6, 10, 14, 18, 21]
    assert found.mixers[0] == ConvSpec(channels=2048, taps=3, bias=False)
    assert found.state_elements == 18 * 2048 * 2
    assert found.kv_elements_per_token == 6 * 2 * 8 * 64
    assert [isinstance(layer.ffn, DenseSpec) for layer in found.layers[:3]] == [True, True, False]
    moe = found.moe
    assert (moe.experts, moe.top_k, moe.scoring, moe.choice_bias, moe.renormalise) == (32, 4, "sigmoid", True, True)
    assert found.tied_head
    assert not spec(LFM2_8B, use_expert_bias=False).moe.choice_bias
    attention = found.mixers[2]
    assert isinstance(attention, AttentionSpec)
    assert (attention.qk_norm, attention.rope.theta) == ("head", 1e6)


def test_state_spaces_of_granite() -> None:
    for config, heads in ((GRANITE_4_H_TINY, 48), (GRANITE_4_H_SMALL, 128)):
        found = spec(config)
        assert [i for i, mixer in enumerate(found.mixers) if isinstance(mixer, AttentionSpec)] == [5, 15, 25, 35]
        assert found.mixers[0] == SpaceSpec(heads=heads, groups=1, k_dim=128, v_dim=64, taps=4, conv_bias=True)
        attention = found.mixers[5]
        assert isinstance(attention, AttentionSpec)
        assert (attention.rope, attention.scale) == (NO_ROPE, 0.0078125)
    assert spec(GRANITE_4_H_TINY, mamba_d_head="auto") == spec(GRANITE_4_H_TINY)
    turned = spec(GRANITE_4_H_TINY, position_embedding_type="rope").mixers[5]
    assert isinstance(turned, AttentionSpec)
    assert (turned.rope.theta, turned.rope.rotary_dim) == (10000, 128)


def test_parts_of_nemotron() -> None:
    found = spec(NEMOTRON_3_NANO)
    kinds = {SpaceSpec: "M", AttentionSpec: "*", type(None): "E"}
    assert "".join(kinds[type(layer.mixer)] for layer in found.layers) == NEMOTRON_3_NANO["hybrid_override_pattern"]
    assert all((layer.mixer is None) == isinstance(layer.ffn, MoeSpec) for layer in found.layers)
    assert found.mixers[0] == SpaceSpec(heads=64, groups=8, k_dim=128, v_dim=64, taps=4, conv_bias=True)
    assert (found.moe.activation, found.moe.shared_width, found.moe.scale) == (SQUARED_RELU, 3712, 2.5)
    listed = [
        {"M": "mamba", "E": "moe", "*": "attention"}[letter] for letter in NEMOTRON_3_NANO["hybrid_override_pattern"]
    ]
    assert (
        spec(NEMOTRON_3_NANO, hybrid_override_pattern=None, layers_block_type=listed, num_hidden_layers=None) == found
    )
    with_mlp = spec(NEMOTRON_3_NANO, hybrid_override_pattern="M-E*", num_hidden_layers=4)
    assert with_mlp.layers[1].ffn == DenseSpec(width=1856, activation=SQUARED_RELU)


@pytest.mark.parametrize(
    ("limit", "found"),
    [
        (None, (0.0, math.inf)), ([0.0, {"__float__": "Infinity"}], (0.0, math.inf)),
        ([0.001, "Infinity"], (0.001, math.inf)), ([0.25, 1.5], (0.25, 1.5)),
    ],
)  # fmt: skip
def test_bounds_of_a_step_however_they_are_written(limit: Any, found: tuple[float, float]) -> None:
    space = spec(GRANITE_4_H_TINY, time_step_limit=limit).mixers[0]
    assert isinstance(space, SpaceSpec)
    assert space.dt_range == found


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [
        (LFM2_8B, {"conv_L_cache": 1}, "conv_L_cache is 1, supported is 2 or more"),
        (LFM2_8B, {"layer_types": ["conv"] * 5}, "a list of 24 times conv or full_attention"),
        (LFM2_8B, {"layer_types": ["sliding_attention"] * 24}, "a list of 24 times conv or full_attention"),
        (LFM2_8B, {"tie_embedding": False}, "tie_embedding is false"),
        (GRANITE_4_H_TINY, {"mamba_n_groups": 5}, "mamba_n_groups is 5, supported is a divisor of the 48 heads"),
        (GRANITE_4_H_TINY, {"mamba_d_head": 32}, "mamba_d_head is 32, supported is one that gives 3072 values"),
        (GRANITE_4_H_TINY, {"time_step_limit": [1.0]}, "time_step_limit is \\[1.0\\], supported is the least and the"),
        (GRANITE_4_H_TINY, {"time_step_limit": [2.0, 1.0]}, "the least and the largest step"),
        (GRANITE_4_H_TINY, {"time_step_limit": ["x", 1.0]}, "the least and the largest step"),
        (GRANITE_4_H_TINY, {"position_embedding_type": "alibi"}, 'position_embedding_type is "alibi"'),
        (NEMOTRON_3_NANO, {"hybrid_override_pattern": "MX"}, 'layers_block_type is "X"'),
        (NEMOTRON_3_NANO, {"hybrid_override_pattern": None}, "layers_block_type is null"),
        (NEMOTRON_3_NANO, {"num_hidden_layers": 51}, "num_hidden_layers is 51, supported is 52"),
        (
            NEMOTRON_3_NANO,
            {"hybrid_override_pattern": "M*", "num_hidden_layers": 2},
            "none of the 2 layers has experts",
        ),
        (NEMOTRON_3_NANO, {"moe_latent_size": -1}, "moe_latent_size is -1, supported is a whole number from 1"),
        (NEMOTRON_3_NANO, {"n_shared_experts": 2}, "n_shared_experts is 2"),
        (NEMOTRON_3_NANO, {"mlp_hidden_act": "silu"}, 'mlp_hidden_act is "silu", supported is "relu2"'),
    ],
)
def test_what_is_not_computed_is_refused(config: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        spec(config, **changes)


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_logits_of_a_prompt_alone_where_the_last_layer_is_one_part(kernels: str, tmp_path: Path) -> None:
    """Experts, or a mixer, as the last layer: the tokens that go on are those whose logits are asked for."""
    ids = torch.randint(3, 160, (40,), generator=torch.Generator().manual_seed(6)).tolist()
    for kinds in (
        ["linear_attention", "full_attention", "moe"],
        ["moe", "full_attention"],
        ["moe", "full_attention", "linear_attention"],
    ):
        model = tiny.build("nemotron_h", tmp_path / "m", layers_block_type=kinds)
        with LLM(str(tmp_path / "m"), kernels=kernels, dtype="float32", prefill_chunk=16) as llm:
            said = llm.generate([ids], {"max_new_tokens": 12, "ignore_eos": True})[0].token_ids
            assert said == tiny.oracle_greedy(model, ids, said)
            assert llm.generate([[*ids, 5]], {"max_new_tokens": 1, "ignore_eos": True})[0].reused_tokens == 32


def test_a_converted_model_is_the_same(checkpoints: Checkpoints, tmp_path: Path, run: Run) -> None:
    """Experts of two matrices in our own layout."""
    source, target = checkpoints("nemotron_h"), tmp_path / "packed"
    status, _, err = run("convert", source, target, "--expert-format", "f32", "--dense-format", "f32")
    assert status == 0, err
    with (
        LLM(str(target), kernels="reference") as packed,
        LLM(str(source), kernels="reference", dtype="float32") as plain,
    ):
        assert torch.equal(packed.logits([5, 9, 70, 3]), plain.logits([5, 9, 70, 3]))


LACKS = {
    "lfm2_moe": "convolutions between gates",
    "granitemoehybrid": "state spaces",
    "nemotron_h": "state spaces, experts without gates, layers of one part",
}


@pytest.mark.parametrize("variant", LACKS)
def test_a_gpu_is_refused_by_name(variant: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(
        OptionError, match=f"{variant} does not run on a GPU yet: its kernels lack {LACKS[variant]}; run"
    ):
        LLM(str(checkpoints(variant)), device="simulated:gpu")
