"""Rotary tables against transformers' own functions, every kind of scaling; partial rotation against one by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from headrace.engine.model import rope
from headrace.errors import ConfigError
from headrace.kernels import reference
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.families.rope import read_rope
from headrace.loaders.spec import RopeSpec, Temperature

KINDS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0, "original_max_position_embeddings": 64, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 4096},
    "yarn-untruncated": {
        "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False, "beta_fast": 32.0,
        "beta_slow": 1.0,
    },
    "yarn-mscale": {
        "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 0.707,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("partial", [1.0, 0.5])
def test_frequencies_equal_transformers(name: str, partial: float) -> None:
    kind = name.split("-")[0]
    values = {**KINDS[name], "rope_type": kind, "rope_theta": 150000.0, "partial_rotary_factor": partial}
    config = AutoConfig.for_model(
        "qwen3_moe", head_dim=64, hidden_size=128, num_attention_heads=2, max_position_embeddings=16384,
        rope_parameters=dict(values),
    )  # fmt: skip
    wanted, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    spec = read_rope(ConfigReader({"rope_parameters": values}, "test"), 64)
    assert spec.rotary_dim == 64 * partial
    assert torch.allclose(rope.frequencies(spec), wanted, rtol=1e-6, atol=0)
    assert spec.attention_factor == pytest.approx(factor, rel=1e-9)


@pytest.mark.parametrize("more", [{}, {"factor": 3.0}, {"attention_factor": 1.7}])
def test_both_sets_of_factors_equal_transformers(more: dict[str, float]) -> None:
    """By how long a context may be, in place of how long a sequence is."""
    values = {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 40,
        "short_factor": [1.0 + i / 9 for i in range(32)], "long_factor": [2.0 + i for i in range(32)], **more,
    }  # fmt: skip
    config = AutoConfig.for_model(
        "qwen3_moe", head_dim=64, hidden_size=128, num_attention_heads=2, max_position_embeddings=160,
        rope_parameters=dict(values),
    )  # fmt: skip
    spec = read_rope(ConfigReader({"rope_parameters": values, "max_position_embeddings": 160}, "test"), 64)
    for context in (40, 41):
        wanted, factor = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"), seq_len=context)
        cos, sin = rope.tables(spec, context)
        angles = torch.arange(context, dtype=torch.float32).unsqueeze(1) * wanted
        assert torch.allclose(cos, angles.cos() * factor, atol=1e-5)
        assert torch.allclose(sin, angles.sin() * factor, atol=1e-5)


@pytest.mark.parametrize(("first", "length"), [(1, 12), (0, 16)])
def test_temperatures_by_hand(first: int, length: int) -> None:
    """Llama 4 counts a query's own position, Mistral 4 does not."""
    found = rope.temperatures(Temperature(scale=0.3, length=length, first=first), 40)
    wanted = [1 + 0.3 * math.log(1 + (position + first) // length) for position in range(40)]
    assert torch.allclose(found, torch.tensor(wanted))
    assert (found[: length - first] == 1).all()


def test_old_and_new_spelling_give_the_same_spec() -> None:
    old = {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 99}}
    new = {
        "rope_parameters": {
            "rope_theta": 1e6, "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 99,
        }
    }  # fmt: skip
    assert read_rope(ConfigReader(old, "old"), 32) == read_rope(ConfigReader(new, "new"), 32)


def test_unknown_kind_is_refused_by_name() -> None:
    values = {"rope_theta": 1e4, "rope_scaling": {"rope_type": "ntk", "factor": 2.0}}
    with pytest.raises(ConfigError, match="ntk"):
        read_rope(ConfigReader(values, "config.json"), 32)


def test_partial_rotation_turns_the_first_dims_and_leaves_the_rest() -> None:
    spec = RopeSpec(theta=100.0, rotary_dim=4)
    cos, sin = rope.tables(spec, 8)
    x = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([0, 5, 7], dtype=torch.int32)
    turned = x.clone()
    reference.rotate_(turned, cos, sin, positions)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert torch.equal(turned[0], x[0]), "position 0 turns nothing"
    for i, position in enumerate((0, 5, 7)):
        for pair, frequency in enumerate((1.0, 100.0**-0.5)):
            point = torch.complex(x[i, :, pair], x[i, :, pair + 2])
            angle = torch.tensor(position * frequency)
            wanted = point * torch.complex(angle.cos(), angle.sin())
            assert torch.allclose(turned[i, :, pair], wanted.real, atol=1e-5)
            assert torch.allclose(turned[i, :, pair + 2], wanted.imag, atol=1e-5)
