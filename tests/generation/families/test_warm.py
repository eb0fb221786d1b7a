"""Llama 4, Phi-3.5-MoE and Mistral 4: chunks, temperatures by position, weights of what experts take, LayerNorms, a
router that masks, a rope with two sets of factors. However a pass is cut, computed and shared, the logits are those of
transformers. Chunks are of 8 and 5 positions, temperatures change every 12, 9, 16 and 64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch
from family_runs import Checkpoints, Oracle, check_fused, check_taken_over, load, prompt

VARIANTS = ("llama4_text", "llama4_text-interleaved", "phimoe", "phimoe-plain", "mistral4", "mistral4-straight")


def changed(source: Path, directory: Path, **changes: Any) -> Path:
    """A checkpoint with a config that says something else."""
    values = json.loads((source / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(values))
    (directory / "model.safetensors").symlink_to(source / "model.safetensors")
    return directory


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_over_48_steps(variant: str, checkpoints: Checkpoints, oracle: Oracle) -> None:
    check_taken_over(variant, checkpoints, oracle)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_layers_at_once_are_their_ops(variant: str, checkpoints: Checkpoints) -> None:
    check_fused(checkpoints(variant))


@pytest.mark.parametrize(
    ("variant", "first", "changes"),
    [
        ("llama4_text", 8, {"attention_chunk_size": None}),
        ("llama4_text", 11, {"attn_temperature_tuning": False}),
        ("llama4_text", 1, {"use_qk_norm": False}),
        ("mistral4", 16, {"llama_4_scaling_beta": None}),
    ],
)
def test_from_which_token_on_something_counts(
    variant: str, first: int, changes: dict[str, Any], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """Without it tokens before say the same, and that one does not."""
    source = checkpoints(variant)
    if "llama_4_scaling_beta" in changes:
        rope = json.loads((source / "config.json").read_text())["rope_parameters"]
        changes = {"rope_parameters": rope | changes}
    with load(source) as llm, load(changed(source, tmp_path, **changes)) as other:
        apart = (llm.logits(prompt(30)) - other.logits(prompt(30))).abs().amax(-1)
    assert apart[:first].max() < 1e-4 if first > 1 else True
    assert apart[first] > 1e-3


def test_a_release_with_eyes_is_its_text_model(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """As the hub has Llama 4: the text model inside of a wrapper, with tensors of what sees beside it."""
    inner = json.loads((checkpoints("llama4_text") / "config.json").read_text())
    vision = {"model_type": "llama4_vision_model", "num_hidden_layers": 2, "hidden_size": 48}
    outer = {"model_type": "llama4", "text_config": inner, "vision_config": vision, "image_token_index": 150}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    stored = safetensors.torch.load_file(checkpoints("llama4_text") / "model.safetensors")
    renamed = {f"language_model.{name}": tensor for name, tensor in stored.items()}
    seen = {
        "vision_model.model.layers.0.self_attn.q_proj.weight": torch.zeros(48, 48),
        "vision_model.positional_embedding_vlm": torch.zeros(9, 48),
        "multi_modal_projector.linear_1.weight": torch.zeros(64, 48),
    }
    safetensors.torch.save_file(renamed | seen, tmp_path / "model.safetensors")
    with load(tmp_path) as wrapped, load(checkpoints("llama4_text")) as plain:
        assert torch.equal(wrapped.logits(prompt(20)), plain.logits(prompt(20)))
        assert any("vision and audio" in note for note in wrapped.notes)
        assert any("left out: vision_config" in note for note in wrapped.notes)


def test_the_second_set_of_factors(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Where a context may be longer than was trained, the factors for long ones hold for every sequence. transformers
    takes those for short ones in any case, so it is given the long ones for both."""
    rope = {**tiny.LONGROPE, "original_max_position_embeddings": 64}
    as_long = {**rope, "short_factor": rope["long_factor"], "short_mscale": rope["long_mscale"]}
    (tmp_path / "long").mkdir(), (tmp_path / "both").mkdir()
    model = tiny.build("phimoe", tmp_path / "long", rope_parameters=as_long)
    both = changed(tmp_path / "long", tmp_path / "both", rope_parameters=rope)
    with load(both) as llm:
        assert (llm.logits(prompt(90)) - tiny.oracle_logits(model, prompt(90))).abs().max() < 1e-4
        assert any("--max-context 64 or less takes those for short ones" in note for note in llm.notes)
    with load(both, max_context=64) as llm, load(checkpoints("phimoe")) as plain:
        assert torch.equal(llm.logits(prompt(40)), plain.logits(prompt(40)))


def test_two_experts_of_a_token_take_their_own_input(checkpoints: Checkpoints) -> None:
    """More than the one that Llama 4 was trained with: the kernels still say the same."""
    found = []
    for kernels in ("reference", "cpu"):
        with load(checkpoints("llama4_text"), kernels=kernels, experts_per_token=2) as llm:
            found.append(llm.logits(prompt(30)))
    assert (found[0] - found[1]).abs().max() < 1e-4
    with load(checkpoints("llama4_text")) as llm:
        assert (llm.logits(prompt(30)) - found[1]).abs().max() > 1e-2
