"""Writes a checkpoint of a real shape with random weights: real config and names, sharded bfloat16.

    python benchmarks/random_checkpoint.py olmoe-1b-7b bench-data/olmoe [--layers 4]

Speed depends on shapes and bytes, not on values, so a shape that cannot be downloaded can still be measured. Values are
cut from one block of normal noise (standard deviation 0.02) at a random place for each tensor, which is quick.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any

import torch

from headrace.kernels import FORMATS
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.weights.model_weights import Formats, allocate
from headrace.loaders.weights.targets import targets

COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 0,
    "attention_bias": False,
    "rope_scaling": None,
}
QWEN = {"decoder_sparse_step": 1, "mlp_only_layers": [], "use_sliding_window": False, "rms_norm_eps": 1e-6}
SHAPES: dict[str, dict[str, Any]] = {
    "olmoe-1b-7b": {
        **COMMON, "model_type": "olmoe", "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 1024,
        "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": 50304, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "clip_qkv": None,
    },
    "qwen3-30b-a3b": {
        **COMMON, **QWEN, "model_type": "qwen3_moe", "num_hidden_layers": 48, "hidden_size": 2048,
        "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
        "norm_topk_prob": True, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "vocab_size": 151936, "max_position_embeddings": 40960, "rope_theta": 1000000.0,
    },
    "mixtral-8x7b": {
        **{k: v for k, v in COMMON.items() if k != "attention_bias"}, "model_type": "mixtral", "num_hidden_layers": 32,
        "hidden_size": 4096, "intermediate_size": 14336, "num_local_experts": 8, "num_experts_per_tok": 2,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
    },
    "qwen1.5-moe-a2.7b": {
        **{k: v for k, v in COMMON.items() if k != "attention_bias"}, **QWEN, "model_type": "qwen2_moe",
        "num_hidden_layers": 24, "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632, "num_experts": 60, "num_experts_per_tok": 4, "norm_topk_prob": False,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 151936, "max_position_embeddings": 8192,
        "rope_theta": 1000000.0,
    },
}  # fmt: skip
NOISE = 1 << 26  # elements
SHARD_BYTES = 4 << 30


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every tensor that a checkpoint with this config has."""
    family, spec = spec_of(ConfigReader(config, "shape"))
    plain = FORMATS["bf16"]
    weights = allocate(spec, Formats(experts=plain, dense=plain, embed=plain), "meta")
    return {name: target.shape for name, target in targets(spec, family.tensors, weights).items()}


def into_shards(shapes: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    """Cuts the tensors into runs of about SHARD_BYTES."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        if size > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += 2 * math.prod(shape)
    return shards


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], noise: torch.Tensor, rng: random.Random) -> None:
    """One safetensors file, written tensor by tensor."""
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    blob = json.dumps(header).encode()
    raw = noise.view(torch.uint8).numpy().data
    with path.open("wb") as file:
        file.write(len(blob).to_bytes(8, "little") + blob)
        for shape in shapes.values():
            left = 2 * math.prod(shape)
            while left:
                start = 2 * rng.randrange(NOISE // 2)
                take = min(left, len(raw) - start)
                file.write(raw[start : start + take])
                left -= take


def write(directory: Path, shape: str, layers: int | None = None, seed: int = 0) -> None:
    """Writes a checkpoint of a shape of `SHAPES`, cut to `layers` layers if given."""
    config = {**SHAPES[shape], **({"num_hidden_layers": layers} if layers else {})}
    directory.mkdir(parents=True, exist_ok=True)
    noise = torch.randn(NOISE, generator=torch.Generator().manual_seed(seed)).mul_(0.02).bfloat16()
    shards = into_shards(tensor_shapes(config))
    where = {}
    for i, shapes in enumerate(shards):
        name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        write_shard(directory / name, shapes, noise, random.Random(seed + i))
        where.update(dict.fromkeys(shapes, name))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (directory / "config.json").write_text(json.dumps(config, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int)
    args = parser.parse_args()
    write(args.directory, args.shape, args.layers)


if __name__ == "__main__":
    main()
