"""Writes checkpoints as GGUF files, with the gguf package: any tensor in any type, and the same model in float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors.numpy
import safetensors.torch
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from headrace.kernels import FORMATS
from headrace.kernels.blocks.ggml import FILE_BLOCKS

Types = Callable[[str], str]  # a tensor's GGUF name -> its type
ARCHS = {
    "qwen3_moe": "qwen3moe", "qwen2_moe": "qwen2moe", "mixtral": "llama", "olmoe": "olmoe", "granitemoe": "granitemoe",
    "granitemoeshared": "granitemoe",
}  # fmt: skip
PAIRED = ("llama", "granitemoe")  # whose converters put the rows of a head in pairs
ROLES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp", "block_sparse_moe.router.layer": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp", "shared_mlp.output_linear": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}  # fmt: skip
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
EXPERTS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}
# Where a block's halves lie, and what a minimum is beside a factor such that weights have a mean near 0.
HALVES = {
    "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,), "iq4_nl": (0,), "iq4_xs": (0,),
    "q2_k": (80, 82), "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,),
}  # fmt: skip
MINIMUM = {"q4_1": -7.5, "q5_1": -15.5, "q2_k": 1.5, "q4_k": 7.5, "q5_k": 15.5}


def read(directory: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """The config of a checkpoint, and its tensors as float32 by their GGUF names, rows in the order that GGUF has."""
    config = json.loads((directory / "config.json").read_text())
    tensors: dict[str, NDArray[np.float32]] = {}
    for path in directory.glob("model*.safetensors"):
        tensors |= {name: tensor.float().numpy() for name, tensor in safetensors.torch.load_file(path).items()}
    arch = ARCHS[config["model_type"]]
    found: dict[str, Any] = {}
    for name, values in tensors.items():
        _place(name, values, found)
    found = {name: np.stack([v[e] for e in range(len(v))]) if isinstance(v, dict) else v for name, v in found.items()}
    if arch in PAIRED:
        for name in found:
            if heads := _heads(config, name):
                found[name] = paired(found[name], heads)
    return config, found


def _place(name: str, values: NDArray[np.float32], found: dict[str, Any]) -> None:
    stem, _, kind = name.rpartition(".")
    if stem in OUTSIDE:
        found[f"{OUTSIDE[stem]}.{kind}"] = values
        return
    _, _, layer, role = name.split(".", 3)
    role = role.rpartition(".")[0]
    at = f"blk.{layer}."
    if role in ROLES:
        squeezed = values[0] if ROLES[role] == "ffn_gate_inp_shexp" else values
        found[f"{at}{ROLES[role]}.{kind}"] = squeezed
    elif role == "block_sparse_moe.input_linear":
        half = values.shape[1] // 2
        found[f"{at}ffn_gate_exps.weight"], found[f"{at}ffn_up_exps.weight"] = values[:, :half], values[:, half:]
    elif role == "shared_mlp.input_linear":
        half = len(values) // 2
        found[f"{at}ffn_gate_shexp.weight"], found[f"{at}ffn_up_shexp.weight"] = values[:half], values[half:]
    elif role == "block_sparse_moe.output_linear":
        found[f"{at}ffn_down_exps.weight"] = values
    else:
        *_, expert, part = role.split(".")
        found.setdefault(f"{at}ffn_{EXPERTS[part]}_exps.weight", {})[int(expert)] = values


def _heads(config: dict[str, Any], name: str) -> int:
    """Heads of a tensor of queries or keys; 0 of another."""
    keys = {".attn_q.": "num_attention_heads", ".attn_k.": "num_key_value_heads"}
    return next((config[key] for part, key in keys.items() if part in name), 0)


def paired(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of each head (0, 1, ... of its halves) as (0, r), (1, r + 1) ..."""
    shape = values.shape
    by_head = values.reshape(heads, 2, shape[0] // heads // 2, -1)
    return np.ascontiguousarray(by_head.swapaxes(1, 2).reshape(shape))


def unpaired(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    shape = values.shape
    by_head = values.reshape(heads, shape[0] // heads // 2, 2, -1)
    return np.ascontiguousarray(by_head.swapaxes(1, 2).reshape(shape))


def metadata(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """What llama.cpp's converter writes for these families."""
    arch = ARCHS[config["model_type"]]
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    experts = config.get("num_local_experts") or config["num_experts"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    head_dim = config.get("head_dim") or hidden // heads
    writer.add_key_length(head_dim), writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or {"rope_theta": config["rope_theta"]}
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type", "default") != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if "original_max_position_embeddings" in rope:
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_expert_count(experts)
    writer.add_expert_used_count(config["num_experts_per_tok"])
    width = config.get("moe_intermediate_size") or config["intermediate_size"]
    writer.add_expert_feed_forward_length(width)
    if config.get("shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    if config.get("norm_topk_prob") is not None:
        writer.add_expert_weights_norm(config["norm_topk_prob"])
    if config.get("clip_qkv"):
        writer.add_clamp_kqv(config["clip_qkv"])
    if arch == "granitemoe":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])


def write(
    path: Path,
    config: dict[str, Any],
    tensors: dict[str, NDArray[np.float32]],
    stored: dict[str, tuple[str, Any]] | None = None,
    *,
    arch: str = "",
    split: tuple[int, int, int] | None = None,
    tokenizer: Path | None = None,
) -> None:
    """A GGUF file of float32 tensors, but for those of `stored`: (type, uint8 rows). split: number, count and tensors
    of all parts. tokenizer: a folder with a byte-level one as Qwen's."""
    stored = stored or {}
    writer = gguf.GGUFWriter(path, arch or ARCHS[config["model_type"]])
    metadata(writer, config)
    if split is not None:
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
        writer.add_int32("split.tensors.count", split[2])
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer)
    finish(writer, tensors, stored)


def finish(
    writer: gguf.GGUFWriter, tensors: dict[str, NDArray[np.float32]], stored: dict[str, tuple[str, Any]]
) -> None:
    """Writes the file: tensors in float32, but for those of `stored`."""
    for name, values in tensors.items():
        if name in stored:
            kind, raw = stored[name]
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, directory: Path) -> None:
    whole = json.loads((directory / "tokenizer.json").read_text())
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    special = {token["content"] for token in whole["added_tokens"]}
    ids = whole["model"]["vocab"] | {token["content"]: token["id"] for token in whole["added_tokens"]}
    tokens = sorted(ids, key=ids.__getitem__)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in whole["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(ids[settings["eos_token"]])
    writer.add_add_bos_token(False)
    writer.add_chat_template(settings["chat_template"])


def quantised(tensors: dict[str, NDArray[np.float32]], types: Types) -> dict[str, tuple[str, NDArray[np.uint8]]]:
    """Tensors rounded to their types, as the gguf package rounds; F32 is left out."""
    kinds = {name: types(name) for name in tensors}
    return {
        name: (kind, quantize(tensors[name], gguf.GGMLQuantizationType[kind]))
        for name, kind in kinds.items()
        if kind != "F32"
    }


def by_role(**types: str) -> Types:
    """Types by the role of a tensor, F32 where none is given; "a/b" takes turns with the layers."""

    def of(name: str) -> str:
        role = name.removesuffix(".weight").split(".")[-1]
        found = types.get(role, "F32").split("/")
        return found[int(name.split(".")[1]) % len(found)] if name.startswith("blk.") else found[0]

    return of


def random_blocks(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> tuple[Any, NDArray[np.float32]]:
    """Random rows of a type, and their values: such that a row times a vector of ones has a deviation near 1."""
    name, cols = kind.lower(), shape[-1]
    block = FILE_BLOCKS[name]
    assert cols % block.weights == 0, f"rows of {cols} in {kind}"
    raw = rng.integers(0, 256, (*shape[:-1], cols // block.weights, block.bytes), dtype=np.uint8)
    code = gguf.GGMLQuantizationType[kind]

    def with_factor(factor: float) -> NDArray[np.uint8]:
        if name == "mxfp4":
            raw[..., 0] = round(128 + np.log2(factor))
        for i, at in enumerate(HALVES.get(name, ())):
            value = np.float16(factor * (MINIMUM[name] if i else 1.0))
            raw[..., at : at + 2] = np.frombuffer(value.tobytes(), dtype=np.uint8)
        return raw.reshape(*shape[:-1], -1)

    spread = float(dequantize(with_factor(1.0), code).std())
    rows = with_factor(1.0 / spread / cols**0.5).copy()
    return rows, dequantize(rows, code)


def mixed(directory: Path, gguf_path: Path, twin: Path, types: Types, seed: int = 0) -> dict[str, str]:
    """Writes the shapes of a checkpoint as a GGUF file with tensors of the given types and random values, and the same
    model in float32 into the folder `twin`; returns the types by name."""
    config, tensors = read(directory)
    rng, stored, used = np.random.default_rng(seed), {}, {}
    for name in tensors:
        kind = types(name)
        used[name] = kind
        if kind != "F32":
            rows, tensors[name] = random_blocks(rng, kind, tensors[name].shape)
            stored[name] = kind, rows
    write(gguf_path, config, tensors, stored)
    twin.mkdir(exist_ok=True)
    (twin / "config.json").write_text((directory / "config.json").read_text())
    safetensors.numpy.save_file(_back(directory, config, tensors), twin / "model.safetensors", {"format": "pt"})
    return used


def _back(directory: Path, config: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """The tensors under the names of the checkpoint that they were read from."""
    found: dict[str, Any] = {}
    arch = ARCHS[config["model_type"]]
    for path in directory.glob("model*.safetensors"):
        for name, values in safetensors.numpy.load_file(path).items():
            placed: dict[str, Any] = {}
            _place(name, values, placed)
            parts = []
            for target, was in placed.items():
                now = tensors[target]
                if arch in PAIRED and (".attn_q." in target or ".attn_k." in target):
                    now = unpaired(
                        now, config["num_attention_heads" if ".attn_q." in target else "num_key_value_heads"]
                    )
                parts.append(now[next(iter(was))] if isinstance(was, dict) else now)
            joined = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
            found[name] = np.ascontiguousarray(joined.reshape(values.shape).astype(np.float32))
    return found


def readable() -> list[str]:
    """The block types that there are kernels for."""
    return [name.upper() for name in FILE_BLOCKS if name in FORMATS]
