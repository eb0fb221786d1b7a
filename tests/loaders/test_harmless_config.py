"""What a config may say besides without stopping a load: settings that say nothing, of training, said twice."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from released.attention import RELEASED

from headrace.errors import ConfigError
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.spec import ModelSpec


def read(name: str, changes: dict[str, Any], ignored: tuple[str, ...] = ()) -> tuple[ModelSpec, list[str]]:
    """The spec of a released config with changes, and what was said about them."""
    config = ConfigReader({**copy.deepcopy(RELEASED[name]), **changes}, "config.json", ignored)
    return spec_of(config)[1], config.notes


@pytest.mark.parametrize(
    "changes",
    [
        {"mlp_bias": False, "pretraining_tp": 1, "attention_bias": False},
        {"some_new_scale": 1.0, "some_new_switch": None, "some_new_count": 0, "some_list": [], "other": {"a": None}},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "max_length": 4096, "length_penalty": 0.8},
        {"moe_aux_loss_coeff": 0.01, "embd_pdrop_dropout": 0.1, "init_std": 0.02, "router_bias_update_speed": 0.001},
        {"hidden_act": "swish", "num_layers": 32, "moe_topk": 2, "norm_topk_prob": True, "norm_type": "rmsnorm"},
        {"_name_or_path": "/tmp/model", "_commit_hash": "abc", "unsloth_fixed": True, "image_token_id": 7},
        {"max_seq_len": 32768, "seq_length": 8192, "model_max_length": 32768},
        {"layer_types": ["full_attention"] * 32, "quantization_config": {}},
    ],
)  # fmt: skip
def test_what_says_nothing_changes_nothing(changes: dict[str, Any]) -> None:
    assert read("mixtral-8x7b", changes) == read("mixtral-8x7b", {})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mixtral-8x7b", {"mlp_bias": True}),
        ("olmoe-1b-7b", {"some_new_scale": 2.0}),
        ("qwen3-30b-a3b", {"other": {"a": None, "b": 3}}),
    ],
)
def test_what_says_something_stops_a_load_and_can_be_ignored(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--ignore-config-keys"):
        read(name, changes)
    assert read(name, changes, tuple(changes)) == read(name, {})


# ---- windows


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mixtral-8x7b", {"sliding_window": 32768}),
        ("mixtral-8x7b", {"sliding_window": 131072}),
        ("olmoe-1b-7b", {"sliding_window": 4096}),
        ("qwen3-30b-a3b", {"sliding_window": 4096}),
        ("qwen3-30b-a3b", {"sliding_window": 4096, "use_sliding_window": False}),
        ("qwen1.5-moe-a2.7b", {"use_sliding_window": True, "sliding_window": 8192}),
        (
            "qwen1.5-moe-a2.7b",
            {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["full_attention"] * 24},
        ),
    ],
)
def test_a_window_that_cannot_bind_changes_nothing(name: str, changes: dict[str, Any]) -> None:
    found, notes = read(name, changes)
    assert (found.context, notes) == (read(name, {})[0].context, [])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mixtral-8x7b", {"sliding_window": 4096}),
        ("qwen3-30b-a3b", {"sliding_window": 4096, "use_sliding_window": True}),
        ("qwen1.5-moe-a2.7b", {"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 12}),
        ("granite-3.1-1b-a400m", {"sliding_window": 4096}),
    ],
)
def test_where_a_window_begins_to_bind_the_context_ends(name: str, changes: dict[str, Any]) -> None:
    found, notes = read(name, changes)
    assert found.context == 4096
    assert "sliding_window is 4096" in notes[0]
    lifted, said = read(name, changes, ("sliding_window",))
    assert (lifted.context, said) == (read(name, {})[0].context, [])


# ---- rope

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("leftover", "without"),
    [
        ({"rope_type": "default", "factor": 1.0}, None),
        ({**YARN, "finetuned": True}, YARN),
        ({**YARN, "type": "yarn"}, YARN),
        ({**YARN, "attn_factor": 1.0, "beta_fast": None}, YARN),
        ({"type": "mrope", "mrope_section": [16, 24, 24], "rope_type": "default"}, None),
        ({"type": "dynamic", "factor": 1.0}, None),
        ({"full_attention": {**YARN}}, YARN),
    ],
)
def test_leftovers_in_rope_settings_are_read_over(leftover: dict[str, Any], without: dict[str, Any] | None) -> None:
    found, notes = read("qwen3-30b-a3b", {"rope_scaling": leftover})
    assert (found, notes) == read("qwen3-30b-a3b", {"rope_scaling": without})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rope_type": "default", "factor": 4.0}, "no factor 4.0"),
        ({**YARN, "low_freq_factor": 2.0}, "no low_freq_factor 2.0"),
        ({**YARN, "type": "linear"}, "the first is used"),
    ],
)
def test_settings_of_another_kind_are_read_over_and_said(settings: dict[str, Any], said: str) -> None:
    notes = read("qwen3-30b-a3b", {"rope_scaling": settings})[1]
    assert len(notes) == 1
    assert said in notes[0]


@pytest.mark.parametrize("ignored", ["colour", "rope_scaling.colour", "rope_scaling"])
def test_what_nobody_knows_in_rope_settings_can_be_ignored_by_name(ignored: str) -> None:
    changes = {"rope_scaling": {"rope_type": "default", "colour": 2}}
    with pytest.raises(ConfigError, match="unknown colour"):
        read("qwen3-30b-a3b", changes)
    assert read("qwen3-30b-a3b", changes, (ignored,)) == read("qwen3-30b-a3b", {})


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_the_trained_context_is_that_of_the_model_unless_it_is_said(kind: str) -> None:
    """As in transformers: rope settings, a key beside them, then max_position_embeddings."""
    settings = {"rope_type": kind, "factor": 4.0}
    if kind == "llama3":
        settings |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert read("qwen3-30b-a3b", {"rope_scaling": settings})[0].mixers[0].rope.original_context == 40960
    beside = {"rope_scaling": settings, "original_max_position_embeddings": 8192}
    assert read("qwen3-30b-a3b", beside)[0].mixers[0].rope.original_context == 8192


def test_a_file_is_read_without_what_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"a": 1, "b": {"a": 2, "c": {"a": 3, "d": 4}}}))
    assert ConfigReader.open(tmp_path / "config.json", ("b.a",)).values == {"a": 1, "b": {"c": {"a": 3, "d": 4}}}
    assert ConfigReader.open(tmp_path / "config.json", ("a",)).values == {"b": {"c": {"d": 4}}}
