"""Delta rules with decays by key beside latent attention: Kimi-Linear, which rotates nothing, and Ling-3.0."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from family_runs import Checkpoints, prompt

from headrace import LLM
from headrace.errors import ConfigError, OptionError
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.spec import DeltaSpec, LatentSpec, ModelSpec

LISTS = {"full_attn_layers": [3, 5], "kda_layers": [1, 2, 4]}
SIZES = {"head_dim": 20, "num_heads": 3, "short_conv_kernel_size": 4}


def spec(checkpoint: Path, **changes: Any) -> ModelSpec:
    values = {**ConfigReader.open(checkpoint / "config.json").values, **changes}
    return spec_of(ConfigReader(values, "config.json"))[1]


def test_which_layers_have_a_delta_rule(checkpoints: Checkpoints) -> None:
    """By lists whose first layer is 1, or by names; sizes in either place."""
    path = checkpoints("kimi_linear")
    own = {"linear_head_dim": None, "linear_num_heads": None, "linear_conv_kernel_dim": None}
    by_lists = spec(path, layer_types=None, linear_attn_config={**LISTS, **SIZES}, **own)
    assert [isinstance(one, DeltaSpec) for one in by_lists.mixers] == [True, True, False, True, False]
    assert by_lists == spec(path, linear_attn_config=None) == spec(path)
    delta, latent = by_lists.mixers[1], by_lists.mixers[2]
    assert isinstance(delta, DeltaSpec)
    assert (delta.v_heads, delta.k_dim, delta.v_dim, delta.taps, delta.by_key) == (3, 20, 20, 4, True)
    assert isinstance(latent, LatentSpec)
    assert latent.rope.kind == "none"
    assert not by_lists.layers[0].is_moe


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer_types": None, "linear_attn_config": {**SIZES, **LISTS, "kda_layers": [1, 2]}}, "without layer 4"),
        ({"layer_types": None, "linear_attn_config": SIZES}, "linear_attn_config.kda_layers is null"),
        ({"linear_attn_config": {**LISTS, **SIZES, "num_heads": 5}}, "linear_num_heads is 3, supported is 5"),
        ({"linear_attn_config": {**LISTS, **SIZES, "head_dim": 0}}, "linear_attn_config.head_dim is 0"),
        ({"linear_attn_config": [20]}, "linear_attn_config is .*, supported is an object or null"),
        ({"layer_types": ["linear_attention"] * 4}, "layer_types is .*, supported is a list of 5 times"),
        ({"mla_use_nope": False}, "mla_use_nope is false, supported is true or null"),
    ],
)
def test_impossible_layers_are_refused(changes: dict[str, Any], said: str, checkpoints: Checkpoints) -> None:
    with pytest.raises(ConfigError, match=said):
        spec(checkpoints("kimi_linear"), **changes)


def test_decays_with_a_bound(checkpoints: Checkpoints) -> None:
    """Which layers have them says a list, or every so many is another; sizes of released configs have other names."""
    path = checkpoints("bailing_hybrid")
    found = spec(path)
    delta, latent = found.mixers[0], found.mixers[1]
    assert isinstance(delta, DeltaSpec)
    assert (delta.least, delta.decay_rank, delta.gate_rank, delta.k_dim, delta.taps) == (-3.0, 0, 0, 20, 3)
    assert isinstance(latent, LatentSpec)
    assert latent.gate
    assert latent.rope.kind == "default"
    released = {"linear_head_dim": None, "linear_num_heads": None, "linear_conv_kernel_dim": None, "head_dim": 20}
    assert spec(path, layer_types=None, **released) == found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kda_lower_bound": 1.0}, "kda_lower_bound is 1.0, supported is a number below 0"),
        ({"kda_lower_bound": None}, "has no 'kda_lower_bound'"),
        ({"kda_safe_gate": False}, "kda_safe_gate is false, supported is true or null"),
        ({"short_conv_kernel_size": 4}, "short_conv_kernel_size is 4, supported is 3"),
    ],
)
def test_other_bounds_are_refused(changes: dict[str, Any], said: str, checkpoints: Checkpoints) -> None:
    with pytest.raises(ConfigError, match=said):
        spec(checkpoints("bailing_hybrid"), **changes)


def test_dims_of_one_are_read_over(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """A rate a head, and taps of a channel, with or without dims between."""
    shutil.copytree(checkpoints("kimi_linear"), tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*.safetensors"):
        tensors = safetensors.torch.load_file(path)
        assert tensors["model.layers.0.self_attn.A_log"].shape == (1, 1, 3, 1)
        flat = {n: t.squeeze() if n.endswith(("A_log", "conv1d.weight")) else t for n, t in tensors.items()}
        safetensors.torch.save_file({n: t.contiguous() for n, t in flat.items()}, path)
    options = dict(kernels="reference", dtype="float32")
    with LLM(str(tmp_path), **options) as flat_one, LLM(str(checkpoints("kimi_linear")), **options) as plain:
        assert torch.equal(flat_one.logits(prompt(9)), plain.logits(prompt(9)))


@pytest.mark.parametrize(
    ("variant", "lacking"),
    [("kimi_linear", "decays by key"), ("bailing_hybrid", "gates on heads of latents, decays by key")],
)
def test_a_gpu_is_refused_by_name(
    variant: str, lacking: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(OptionError, match=f"its kernels lack {lacking}; run it with --device cpu"):
        LLM(str(checkpoints(variant)), kernels="reference", dtype="float32", device="simulated:gpu")
