"""Text models that transformers has inside of a wrapper with eyes alone: what is saved is the text part, as a release
names it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import torch
from transformers import AutoConfig
from transformers.models.glm5_next.modeling_glm5_next import Glm5NextForConditionalGeneration
from transformers.models.mistral_large4.modeling_mistral_large4 import MistralLarge4ForConditionalGeneration

EYES: dict[str, dict[str, Any]] = {
    "mistral_large4": dict(
        model_type="pixtral", hidden_size=32, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2,
        patch_size=14, image_size=28,
    ),
    "glm5_next": dict(
        depth=1, hidden_size=32, num_heads=2, intermediate_size=40, out_hidden_size=48, projection_intermediate_size=40,
        image_size=28,
    ),
}  # fmt: skip
CLASSES = {
    "mistral_large4": MistralLarge4ForConditionalGeneration,
    "glm5_next": Glm5NextForConditionalGeneration,
}
OF_EYES = ("vision", "patch_merger", "pre_mm_projector", "model.visual")


class Wrapped(torch.nn.Module):
    """A wrapper that is given text alone."""

    def __init__(self, family: str, settings: dict[str, Any]) -> None:
        super().__init__()
        config = AutoConfig.for_model(family, text_config=settings, vision_config=EYES[family])
        made = CLASSES[family]._from_config(config, dtype=torch.float32, attn_implementation="eager")
        made.set_experts_implementation("eager")
        self.whole = made

    def forward(self, ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.whole(input_ids=ids).logits)

    def save_pretrained(self, directory: Path) -> None:
        """The text model's config and tensors."""
        self.whole.save_pretrained(directory)
        values = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(values["text_config"]))
        path = directory / "model.safetensors"
        tensors = {n: t for n, t in safetensors.torch.load_file(path).items() if not n.startswith(OF_EYES)}
        safetensors.torch.save_file(tensors, path, {"format": "pt"})


def name_minimax_m3(directory: Path) -> None:
    """The names of its release, where transformers writes its own."""
    path = directory / "model.safetensors"
    found: dict[str, torch.Tensor] = {}
    for name, tensor in safetensors.torch.load_file(path).items():
        place, _, rest = name.partition(".mlp.")
        if rest.startswith(("gate_up_proj", "shared_experts.gate_up_proj")):
            module = f"{place}.block_sparse_moe.shared_experts" if rest.startswith("shared") else f"{place}.mlp"
            halves = zip(("gate", "up"), tensor.chunk(2), strict=True)
            found |= {f"{module}.{part}_proj.weight": half.contiguous() for part, half in halves}
        elif rest in ("experts.gate_up_proj", "experts.down_proj"):
            for e, expert in enumerate(tensor):
                parts = {"w2": expert} if "down" in rest else dict(zip(("w1", "w3"), expert.chunk(2), strict=True))
                module = f"{place}.block_sparse_moe.experts.{e}"
                found |= {f"{module}.{part}.weight": one.clone() for part, one in parts.items()}
        elif rest == "gate.e_score_correction_bias":
            found[f"{place}.block_sparse_moe.e_score_correction_bias"] = tensor
        elif rest and not rest.startswith("down_proj"):
            found[f"{place}.block_sparse_moe.{rest}"] = tensor
        else:
            found[name.replace("self_attn.indexer.", "self_attn.index_")] = tensor
    safetensors.torch.save_file(found, path, {"format": "pt"})


def name_deepseek_v4(directory: Path) -> None:
    """The names of its release, some of which transformers does not write back."""
    path = directory / "model.safetensors"
    moved = {"embed_tokens.": "embed.", "hc_head.hc_": "hc_head_", ".attn.norm.": ".attn.kv_norm."}
    found: dict[str, torch.Tensor] = {}
    for name, tensor in safetensors.torch.load_file(path).items():
        name = name.removeprefix("model.")
        for old, new in moved.items():
            name = name.replace(old, new)
        found[name] = tensor
    safetensors.torch.save_file(found, path, {"format": "pt"})
