"""Tiny checkpoints with a layer for multi-token prediction, in the three ways of storing it, and its twin: the layer of
transformers that it is like, with the joined inputs written out."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import tiny
import torch
from refusals import edit_json
from torch import Tensor, nn

# By variant the number of the layer that the extra one is like: the last that attends to everything and has experts.
LIKE = {
    "qwen3_moe": 2, "qwen3_next": 3, "qwen3_5_moe_text": 3, "deepseek_v3": 2, "glm4_moe": 2, "glm4_moe_lite": 2,
    "deepseek_v32": 2, "glm_moe_dsa-whole": 2,
}  # fmt: skip
FROM_ONE = ("qwen3_next", "qwen3_5_moe_text")  # norms are stored less 1
QWEN = {"fc.weight": "eh_proj.weight", "pre_fc_norm_embedding.weight": "enorm.weight",
        "pre_fc_norm_hidden.weight": "hnorm.weight", "norm.weight": "shared_head.norm.weight"}  # fmt: skip


def stored(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    found: dict[str, Tensor] = {}
    for path in directory.glob("*.safetensors"):
        found |= safetensors.torch.load_file(path)
    return found


def layer_tensors(variant: str, directory: Path, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of the extra layer, by the names that DeepSeek-V3 has for them behind the layer's prefix."""
    random, like = torch.Generator().manual_seed(seed + 77), f"model.layers.{LIKE[variant]}."
    tensors = stored(directory)
    hidden = tensors["model.norm.weight"].shape[0]
    base = {name.removeprefix(like): one for name, one in tensors.items() if name.startswith(like)}
    found = {name: one + 0.3 * one.std() * _noise(one.shape, random) for name, one in base.items()}
    norms = {name: 1.0 + 0.2 * _noise((hidden,), random) for name in ("enorm", "hnorm", "shared_head.norm")}
    start = 1.0 if variant in FROM_ONE else 0.0
    found |= {f"{name}.weight": one - start for name, one in norms.items()}
    return found | {"eh_proj.weight": _noise((hidden, 2 * hidden), random) * (2 * hidden) ** -0.5}


def _noise(shape: Any, random: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=random)


def agreeing(tensors: dict[str, Tensor], variant: str) -> dict[str, Tensor]:
    """The same layer made so that it hands the normed embedding of its token to the head, whatever came before."""
    hidden = tensors["eh_proj.weight"].shape[0]
    zero = {name: torch.zeros_like(one) for name, one in tensors.items() if name.endswith((".o_proj.weight",))}
    zero |= {name: torch.zeros_like(one) for name, one in tensors.items() if "down_proj" in name}
    eye = torch.cat((torch.eye(hidden), torch.zeros(hidden, hidden)), dim=1)
    return {**tensors, **zero, "eh_proj.weight": eye}


def names(variant: str, layers: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the names of the family's releases."""
    if not variant.startswith("qwen"):
        return {f"model.layers.{layers}.{name}": one for name, one in tensors.items()}
    back = {theirs: f"mtp.{mine}" for mine, theirs in QWEN.items()}
    return {back.get(name, f"mtp.layers.0.{name}"): one for name, one in tensors.items()}


def layers_of(variant: str) -> int:
    return int(tiny.VARIANTS[variant]["num_hidden_layers"])


def add(variant: str, directory: Path, tensors: dict[str, Tensor], way: str = "in it") -> None:
    """Puts a layer beside a checkpoint: into its file, into a shard of its own, or into `mtp.safetensors`."""
    named = {name: one.contiguous() for name, one in names(variant, layers_of(variant), tensors).items()}
    path = directory / "model.safetensors"
    own = safetensors.torch.load_file(path)
    key = "mtp_num_hidden_layers" if variant.startswith("qwen") else "num_nextn_predict_layers"
    edit_json(directory / "config.json", **{key: 1})
    if way == "in it":
        if not variant.startswith("qwen"):
            prefix = f"model.layers.{layers_of(variant)}."
            named |= {f"{prefix}embed_tokens.weight": own["model.embed_tokens.weight"].clone()}
            named |= {f"{prefix}shared_head.head.weight": own["lm_head.weight"].clone()}
        safetensors.torch.save_file(own | named, path, {"format": "pt"})
    elif way == "beside it":
        safetensors.torch.save_file(named, directory / "mtp.safetensors", {"format": "pt"})
    else:
        path.unlink()
        shards = {"model-00001-of-00002.safetensors": own, "model-00002-of-00002.safetensors": named}
        for name, held in shards.items():
            safetensors.torch.save_file(held, directory / name, {"format": "pt"})
        where = {tensor: name for name, held in shards.items() for tensor in held}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


class Twin:
    """The layer as transformers computes one like it, alone: all positions at once, no cache."""

    def __init__(self, variant: str, oracle: Any, tensors: dict[str, Tensor]) -> None:
        self.start = 1.0 if variant in FROM_ONE else 0.0
        self.oracle, self.tensors, self.eps = oracle, tensors, oracle.config.rms_norm_eps
        model = copy.deepcopy(oracle)
        like = LIKE[variant]
        layer = model.model.layers[like]
        own = {name: one for name, one in tensors.items() if not name.startswith(("eh_", "enorm", "hnorm", "shared_h"))}
        _fill(layer, own)
        if hasattr(layer, "self_attn"):
            layer.self_attn.layer_idx = 0
        model.model.layers = nn.ModuleList([layer])
        model.config.num_hidden_layers = 1
        for name in ("layer_types", "mlp_layer_types", "indexer_types"):
            if (kinds := getattr(model.config, name, None)) is not None:
                setattr(model.config, name, [kinds[like]])
        model.model.norm.weight.data = tensors["shared_head.norm.weight"].clone()
        self.model = model

    def _norm(self, x: Tensor, name: str) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return x * scale * (self.tensors[name] + self.start)

    @torch.no_grad()
    def trunk(self, ids: list[int]) -> Tensor:
        """The model's hidden states behind its final norm."""
        found: Tensor = self.oracle.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
        return found

    @torch.no_grad()
    def states(self, ids: list[int], hidden_TD: Tensor) -> Tensor:
        """The layer's states of tokens ids[i] (those behind the states hidden[i])."""
        embedded = self.oracle.get_input_embeddings()(torch.tensor(ids))
        joined = torch.cat((self._norm(embedded, "enorm.weight"), self._norm(hidden_TD, "hnorm.weight")), dim=-1)
        x = joined @ self.tensors["eh_proj.weight"].T
        found: Tensor = self.model.model(inputs_embeds=x[None], use_cache=False).last_hidden_state[0]
        return found

    @torch.no_grad()
    def logits(self, states_TD: Tensor) -> Tensor:
        found: Tensor = self.oracle.lm_head(states_TD)
        return found

    def draft(self, ids: list[int], count: int) -> list[int]:
        """What the layer says of the tokens behind a text: again and again of its own states."""
        tokens, hidden_TD = ids[1:], self.trunk(ids)[:-1]
        said: list[int] = []
        for _ in range(count):
            states = self.states(tokens, hidden_TD)
            said.append(int(self.logits(states[-1:]).argmax()))
            tokens, hidden_TD = [*tokens, said[-1]], torch.cat((hidden_TD, states[-1:]))
        return said


def _fill(layer: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Puts tensors by their stored names into a layer, whose experts are fused."""
    state = layer.state_dict()
    for name, value in state.items():
        if name in tensors:
            value.copy_(tensors[name])
            continue
        start = name.rpartition(".")[0]
        count = value.shape[0]
        parts = ("gate_proj", "up_proj") if name.endswith("gate_up_proj") else ("down_proj",)
        one = [torch.cat([tensors[f"{start}.{e}.{part}.weight"] for part in parts]) for e in range(count)]
        value.copy_(torch.stack(one))
