"""Releases that wrap a text model together with one that sees: the text model alone runs, the rest is left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from refusals import refused
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from headrace import LLM, CheckpointError

Checkpoints = Callable[[str], Path]
Oracle = Callable[[str], PreTrainedModel]
IDS = [5, 9, 31, 7, 120, 64, 2, 90]
# Of each kind of release: the variant, what it calls itself and its text, and what stands in front of names.
KINDS = {
    "qwen3_5_moe": ("qwen3_5_moe_text", "qwen3_5_moe_text", "model.language_model.", ""),
    "kimi_k25": ("deepseek_v3", "kimi_k2", "language_model.model.", "language_model."),
}


def wrapped(kind: str, source: Path, to: Path) -> Path:
    """The text model of a checkpoint as a release of this kind has it, with tensors of its other parts."""
    _, text, inner, outer = KINDS[kind]
    config = json.loads((source / "config.json").read_text())
    del config["architectures"]
    tensors = load_file(source / "model.safetensors")
    found = {inner + name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    found[outer + "lm_head.weight"] = tensors["lm_head.weight"]
    if kind == "qwen3_5_moe":
        found = fused(found)
        found |= {
            "model.visual.blocks.0.attn.qkv.weight": torch.ones(3, 3),
            "model.visual.merger.norm.bias": torch.ones(3),
        }
        found |= {"mtp.fc.weight": torch.ones(2, 4), "mtp.layers.0.mlp.gate.weight": torch.ones(8, 64)}
    else:
        found |= {
            "vision_tower.encoder.blocks.0.wqkv.weight": torch.ones(3, 3),
            "mm_projector.proj.0.bias": torch.ones(3),
        }
    to.mkdir()
    vision = {"depth": 27, "hidden_size": 1152, "num_hidden_layers": 27}
    whole = {"model_type": kind, "text_config": {**config, "model_type": text}, "vision_config": vision}
    (to / "config.json").write_text(json.dumps({**whole, "tie_word_embeddings": False, "image_token_id": 7}))
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, to / "model.safetensors", {"format": "pt"})
    return to


def fused(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The experts of a layer as two tensors without the word weight, as Qwen3.5 has them."""
    found = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in {name.split(".experts.")[0] for name in tensors if ".experts." in name}:
        count = len([name for name in tensors if name.startswith(f"{layer}.experts.") and "down_proj" in name])
        gate, up, down = (
            [tensors[f"{layer}.experts.{e}.{part}_proj.weight"] for e in range(count)]
            for part in ("gate", "up", "down")
        )
        found[f"{layer}.experts.gate_up_proj"] = torch.cat([torch.stack(gate), torch.stack(up)], dim=1)
        found[f"{layer}.experts.down_proj"] = torch.stack(down)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_model_runs_and_the_rest_is_left_out_with_a_word(
    kind: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    variant, *_ = KINDS[kind]
    with LLM(checkpoints(variant), kernels="reference", dtype="float32") as llm:
        expected = llm.logits(IDS)
    with LLM(wrapped(kind, checkpoints(variant), tmp_path / "m"), kernels="reference", dtype="float32") as llm:
        assert torch.equal(llm.logits(IDS), expected)
        said = "\n".join(llm.notes)
    assert "the text model is taken, text_config of the config; left out: vision_config" in said
    assert "vision and audio" in said
    assert ("multi-token prediction" in said) == (kind == "qwen3_5_moe")


# ---- layers behind the last one


def with_layer(source: Path, to: Path, number: int, more: dict[str, torch.Tensor]) -> Path:
    """A checkpoint with a copy of its last layer behind it, and these tensors in it."""
    tensors = load_file(source / "model.safetensors")
    last = f"model.layers.{number - 1}."
    copied = {name.replace(last, f"model.layers.{number}."): t.clone() for name, t in tensors.items() if last in name}
    to.mkdir()
    (to / "config.json").write_bytes((source / "config.json").read_bytes())
    extra = {f"model.layers.{number}.{name}": tensor for name, tensor in more.items()}
    save_file({**tensors, **copied, **extra}, to / "model.safetensors", {"format": "pt"})
    return to


def test_a_layer_for_further_tokens_is_left_out(checkpoints: Checkpoints, oracle: Oracle, tmp_path: Path) -> None:
    """DeepSeek's lies behind the last one, with a decoder layer in it."""
    more = {"eh_proj.weight": torch.ones(64, 128), "enorm.weight": torch.ones(64), "hnorm.weight": torch.ones(64)}
    with LLM(
        with_layer(checkpoints("deepseek_v3"), tmp_path / "m", 3, more), kernels="reference", dtype="float32"
    ) as llm:
        assert (llm.logits(IDS) - tiny.oracle_logits(oracle("deepseek_v3"), IDS)).abs().max() < 1e-4
        assert any("multi-token prediction" in note for note in llm.notes)


@pytest.mark.parametrize("variant", ["deepseek_v3", "qwen3_next", "gpt_oss"])
def test_more_decoder_layers_than_the_config_counts_are_refused(
    variant: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    layers = 3 if variant == "deepseek_v3" else 4
    directory = with_layer(checkpoints(variant), tmp_path / "m", layers, {})
    with refused(CheckpointError, f"has {layers + 1} layers, config.json counts {layers}"):
        LLM(directory, kernels="reference")


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("gpt_oss", "model.layers.1.self_attn.sinks"),
        ("gpt_oss", "model.layers.0.mlp.experts.down_proj_bias"),
        ("deepseek_v3", "model.layers.2.self_attn.kv_b_proj.weight"),
        ("deepseek_v3", "model.layers.1.mlp.gate.e_score_correction_bias"),
        ("qwen3_next", "model.layers.0.linear_attn.A_log"),
        ("qwen3_5_moe_text", "model.layers.3.self_attn.q_norm.weight"),
    ],
)
def test_a_missing_tensor_is_named(variant: str, name: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    directory = with_layer(checkpoints(variant), tmp_path / "m", 99, {})
    tensors = load_file(directory / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if n != name}, directory / "model.safetensors", {"format": "pt"})
    with refused(CheckpointError, "lacks 1 of the", name):
        LLM(directory, kernels="reference")
