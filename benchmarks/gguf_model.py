"""Writes a shape of Qwen3-MoE, Qwen3.5-MoE, gpt-oss or DeepSeek-V3 as a GGUF file with random weights, for
llama.cpp beside us in `vs_peers.py` and `vs_llama_shapes.py`.

Which tensor takes which type follows llama.cpp's own quantiser: `Q4_0` (with Q6_K for the head), `Q4_K_M` and
`MXFP4_MOE` (experts in MXFP4, all else in Q8_0). Rows that K-quants do not fit take what it falls back to. Only
shapes and bytes matter for speed, so quants are random bits; scales are such that weights have mean 0 and a standard
deviation near 0.046 in every type, and tokens go to many different experts as in a real model. The file has no
vocabulary: prompts are token ids. Writing needs the `gguf` package (extra "peers"), planning does not. Knows neither
how a file is run nor how fast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf_shapes
import numpy as np
from numpy.typing import NDArray

from headrace.loaders.weights.noise import half, nibbles, norm_value

Bytes = NDArray[np.uint8]

# Weights of a block, and its bytes.
BLOCKS = {
    "F32": (1, 4),
    "Q4_0": (32, 18),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "Q8_0": (32, 34),
    "Q5_0": (32, 22),
    "MXFP4": (32, 17),
}  # of weights, bytes
KEPT = ("ffn_gate_inp", "ssm_conv1d")  # llama-quantize leaves them as they are
FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q8_0", "Q6_K": "Q8_0"}  # for rows of other lengths than whole blocks
RECIPES = ("Q4_0", "Q4_K_M", "MXFP4_MOE")
POOL_BYTES = 32 << 20


@dataclass(frozen=True)
class Planned:
    """One tensor of a file: its shape, row-major, and its type."""

    shape: tuple[int, ...]
    kind: str

    @property
    def byte_shape(self) -> tuple[int, ...]:
        weights, size = BLOCKS[self.kind]
        return (*self.shape[:-1], self.shape[-1] // weights * size)

    @property
    def nbytes(self) -> int:
        return math.prod(self.byte_shape)


def uses_more_bits(layer: int, layers: int) -> bool:
    """Layers whose attn_v and ffn_down Q4_K_M keeps in Q6_K: first and last eighth, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def kind_of(recipe: str, role: str, layer: int, layers: int) -> str:
    """The type of a matrix with more than one row; `role` is its name without the layer, as "attn_v"."""
    if role in KEPT:
        return "F32"
    if recipe == "MXFP4_MOE":
        return "MXFP4" if role.endswith("_exps") else "Q8_0"
    if role == "output":
        return "Q6_K"
    if recipe == "Q4_0":
        return "Q4_0"
    if role == "attn_qkv":
        return "Q5_K"
    return "Q6_K" if role.startswith(("attn_v", "ffn_down")) and uses_more_bits(layer, layers) else "Q4_K"


def plan(config: dict[str, Any], recipe: str) -> dict[str, Planned]:
    """Every tensor of the file in its order."""
    assert recipe in RECIPES, f"{recipe}, not one of {RECIPES}"
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    table = (config["vocab_size"], hidden)
    tensors = {
        "token_embd.weight": Planned(table, kind_of(recipe, "token_embd", 0, layers)),
        "output.weight": Planned(table, kind_of(recipe, "output", 0, layers)),
        "output_norm.weight": Planned((hidden,), "F32"),
    }
    for layer in range(layers):
        for name, shape in gguf_shapes.of_layer(config, layer).items():
            is_vector = len(shape) == 1 or name.endswith(".bias")
            kind = "F32" if is_vector else kind_of(recipe, name.removesuffix(".weight"), layer, layers)
            fits = shape[-1] % BLOCKS[kind][0] == 0
            tensors[f"blk.{layer}.{name}"] = Planned(shape, kind if fits else FALLBACK[kind])
    return tensors


def bytes_per_token(config: dict[str, Any], recipe: str) -> int:
    """Bytes of weights that decoding one token reads: the chosen experts, one row of the embedding, all the rest."""
    total = 0
    for name, tensor in plan(config, recipe).items():
        if name == "token_embd.weight":
            total += tensor.byte_shape[-1]
        elif "_exps." in name:
            total += tensor.nbytes * config["num_experts_per_tok"] // gguf_shapes.experts_of(config)
        else:
            total += tensor.nbytes
    return total


class Noise:
    """Random blocks, cut from one pool per type at a random place for each tensor."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.pools: dict[str, Bytes] = {}

    def tensor(self, planned: Planned, name: str) -> NDArray[Any]:
        """The values of a tensor: float32, or packed bytes."""
        if len(planned.shape) == 1:
            return np.full(planned.shape, _vector_value(name), dtype=np.float32)
        if planned.kind == "F32":
            return self.rng.normal(0, 0.02, planned.shape).astype(np.float32)
        if planned.kind not in self.pools:
            self.pools[planned.kind] = _pool(planned.kind, self.rng)
        pool = self.pools[planned.kind]
        start = int(self.rng.integers(len(pool)))
        out = np.empty((planned.nbytes // pool.shape[1], pool.shape[1]), dtype=np.uint8)
        done = 0
        while done < len(out):
            piece = pool[start : start + len(out) - done]
            out[done : done + len(piece)] = piece
            done, start = done + len(piece), 0
        return out.reshape(planned.byte_shape)


def _vector_value(name: str) -> float:
    return next((value for part, value in gguf_shapes.VALUES.items() if part in name), norm_value(name))


def _pool(kind: str, rng: np.random.Generator) -> Bytes:
    size = BLOCKS[kind][1]
    blocks = POOL_BYTES // size
    pool = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
    if kind == "Q4_0":  # f16 d | 16 bytes of nibbles; w = d (q - 8)
        pool[:, :2] = half(0.01)
        pool[:, 2:] = nibbles(rng, (blocks, 16))
    elif kind == "Q4_K":  # f16 d | f16 dmin | 12 bytes of 6-bit scales, here 1 | nibbles; w = d q - dmin
        pool[:, :2], pool[:, 2:4] = half(0.01), half(0.075)
        pool[:, 4:12], pool[:, 12:16] = 0x01, 0x11
    elif kind == "Q5_K":  # as Q4_K, with a bit more of each weight behind the scales
        pool[:, :2], pool[:, 2:4] = half(0.005), half(0.075)
        pool[:, 4:12], pool[:, 12:16] = 0x01, 0x11
    elif kind == "Q5_0":  # f16 d | 4 bytes of fifth bits | 16 of nibbles; w = d (q - 16)
        pool[:, :2] = half(0.005)
    elif kind == "Q8_0":  # f16 d | 32 signed bytes
        pool[:, :2] = half(0.0006)
    elif kind == "MXFP4":  # a power of two | 16 bytes of e2m1; the sixteen have a deviation near 3
        pool[:, 0] = 127 - 6
    else:  # Q6_K: low bits | high bits | 16 int8 scales, here 1 | f16 d; w = d (q - 32)
        pool[:, 192:208], pool[:, 208:] = 1, half(0.0025)
    return pool


def write(path: Path, config: dict[str, Any], recipe: str) -> None:
    """Writes a file of a config (keys as in config.json) tensor by tensor; whole or not at all."""
    import gguf

    partial = path.with_suffix(".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(partial, gguf_shapes.arch(config))
    gguf_shapes.write_metadata(writer, config)
    tensors = plan(config, recipe)
    for name, planned in tensors.items():
        kind = gguf.GGMLQuantizationType[planned.kind]
        shape, dtype = (planned.shape, np.float32) if planned.kind == "F32" else (planned.byte_shape, np.uint8)
        writer.add_tensor_info(name, shape, np.dtype(dtype), planned.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    noise = Noise()
    for name, planned in tensors.items():
        writer.write_tensor_data(noise.tensor(planned, name))
    writer.close()
    partial.rename(path)
