"""Layers with norms in front of and behind each part, two kinds of attention and two ropes: however a pass is cut,
computed and shared, the logits are those of transformers. Windows are of 8 and 5 tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import tiny
import torch
from family_runs import GREEDY, Checkpoints, Oracle, check_fused, check_greedy, load, prompt

from headrace import SamplingParams
from headrace.errors import OptionError

VARIANTS = ("gemma4_text", "gemma4_text-values")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_greedy_tokens_over_48_steps(variant: str, kernels: str, checkpoints: Checkpoints, oracle: Oracle) -> None:
    check_greedy(variant, kernels, checkpoints, oracle)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_layers_at_once_are_their_ops(variant: str, checkpoints: Checkpoints) -> None:
    check_fused(checkpoints(variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_beginning_that_was_computed_before_changes_nothing(variant: str, checkpoints: Checkpoints) -> None:
    ids = prompt(90, 7)
    with load(checkpoints(variant)) as llm:
        fresh = llm.generate([ids], GREEDY)[0].token_ids
    with load(checkpoints(variant)) as llm:
        llm.generate([ids[:70]], SamplingParams(max_new_tokens=4, ignore_eos=True))
        again = llm.generate([ids], GREEDY)[0]
        assert again.token_ids == fresh
        assert again.reused_tokens == 64


def test_a_release_with_eyes_is_its_text_model(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """As the hub has it: the text model inside of a wrapper, with tensors of what sees beside it."""
    inner = json.loads((checkpoints("gemma4_text") / "config.json").read_text())
    vision = {"model_type": "gemma4_vision", "num_hidden_layers": 2, "hidden_size": 48}
    outer = {"model_type": "gemma4", "text_config": inner, "vision_config": vision, "image_token_id": 150}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    stored = safetensors.torch.load_file(checkpoints("gemma4_text") / "model.safetensors")
    renamed = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in stored.items()}
    seen = {
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight": torch.zeros(48, 48),
        "model.vision_tower.patch_embedder.input_proj.weight": torch.zeros(48, 12),
        "model.embed_vision.embedding_projection.weight": torch.zeros(64, 48),
    }
    safetensors.torch.save_file(renamed | seen, tmp_path / "model.safetensors")
    with load(tmp_path) as wrapped, load(checkpoints("gemma4_text")) as plain:
        assert torch.equal(wrapped.logits(prompt(20)), plain.logits(prompt(20)))
        assert any("vision and audio" in note for note in wrapped.notes)
        assert any("left out: vision_config" in note for note in wrapped.notes)


def test_a_gpu_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what a GPU's kernels have no room for."""
    pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    tiny.build("gemma4_text", tmp_path, global_head_dim=520)
    with pytest.raises(OptionError) as found:
        load(tmp_path, device="simulated:gpu")
    assert str(found.value) == (
        "gemma4 does not run on a GPU yet: its kernels lack heads of more than 512 numbers; run it with --device cpu"
    )
