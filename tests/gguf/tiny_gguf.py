"""GGUF files for tests: a small Qwen3-MoE by the gguf library, and headers byte by byte for what that refuses."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

SIZES = dict(hidden=64, layers=4, heads=4, kv=2, size=16, width=32, experts=8, vocab=96)
CODES = {bool: 7, int: 4, float: 6, str: 8}


def tensors_of(sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes [rows, columns] of its tensors."""
    s = sizes
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (s["vocab"], s["hidden"]), "output_norm.weight": (s["hidden"],),
        "output.weight": (s["vocab"], s["hidden"]),
    }  # fmt: skip
    for i in range(s["layers"]):
        layer = {
            "attn_norm.weight": (s["hidden"],), "ffn_norm.weight": (s["hidden"],),
            "attn_q.weight": (s["heads"] * s["size"], s["hidden"]), "attn_q_norm.weight": (s["size"],),
            "attn_k.weight": (s["kv"] * s["size"], s["hidden"]), "attn_k_norm.weight": (s["size"],),
            "attn_v.weight": (s["kv"] * s["size"], s["hidden"]),
            "attn_output.weight": (s["hidden"], s["heads"] * s["size"]),
            "ffn_gate_inp.weight": (s["experts"], s["hidden"]),
            "ffn_gate_exps.weight": (s["experts"], s["width"], s["hidden"]),
            "ffn_up_exps.weight": (s["experts"], s["width"], s["hidden"]),
            "ffn_down_exps.weight": (s["experts"], s["hidden"], s["width"]),
        }  # fmt: skip
        shapes.update({f"blk.{i}.{name}": shape for name, shape in layer.items()})
    return shapes


def write_gguf(path: Path, arch: str = "qwen3moe", kind: Any = None, **changes: Any) -> list[tuple[str, int]]:
    """A small Qwen3-MoE as a GGUF, written by the gguf library; returns names and bytes of its tensors."""
    kind = gguf.GGMLQuantizationType.Q8_0 if kind is None else kind
    s = {**SIZES, **changes}
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(s["layers"])
    writer.add_context_length(4096)
    writer.add_embedding_length(s["hidden"])
    writer.add_feed_forward_length(96)
    writer.add_head_count(s["heads"])
    writer.add_head_count_kv(s["kv"])
    writer.add_key_length(s["size"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_expert_count(s["experts"])
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(s["width"])
    writer.add_token_list([f"t{i}" for i in range(s["vocab"])])
    for name, shape in tensors_of(s).items():
        values = np.zeros(shape, dtype=np.float32)
        if len(shape) > 1 and "gate_inp" not in name:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [(t.name, int(t.n_bytes)) for t in gguf.GGUFReader(path).tensors]


def metadata_of(sizes: dict[str, int], arch: str = "qwen3moe") -> dict[str, Any]:
    """What converters write for it."""
    own = {
        "block_count": sizes["layers"], "context_length": 4096, "embedding_length": sizes["hidden"],
        "attention.head_count": sizes["heads"], "attention.head_count_kv": sizes["kv"],
        "attention.key_length": sizes["size"], "attention.value_length": sizes["size"], "expert_used_count": 2,
        "expert_count": sizes["experts"],
    }  # fmt: skip
    return {"general.architecture": arch, **{f"{arch}.{key}": value for key, value in own.items()}}


def packed(
    pairs: Sequence[tuple[str, Any]],
    tensors: Sequence[tuple[str, tuple[int, ...], int, int]],
    *,
    version: int = 3,
    order: str = "<",
    alignment: int = 32,
) -> bytes:
    """A GGUF file of these pairs and tensors (name, [rows, columns], type, bytes); a value is bytes where it is no
    number, flag or text: its type and its content as they stand in the file."""
    length = "I" if version == 1 else "Q"

    def number(format: str, value: Any) -> bytes:
        return struct.pack(order + format, value)

    def text(value: str) -> bytes:
        return number(length, len(value.encode())) + value.encode()

    def value(given: Any) -> bytes:
        if isinstance(given, bytes):
            return given
        plain = {bool: "?", int: "I", float: "f"}.get(type(given))
        return number("I", CODES[type(given)]) + (text(given) if plain is None else number(plain, given))

    out = b"GGUF" + number("I", version) + number(length, len(tensors)) + number(length, len(pairs))
    out += b"".join(text(key) + value(given) for key, given in pairs)
    at = 0
    for name, shape, kind, size in tensors:
        out += text(name) + number("I", len(shape)) + b"".join(number(length, n) for n in reversed(shape))
        out += number("I", kind) + number("Q", at)
        at += -(-size // alignment) * alignment
    return out + b"\0" * (-len(out) % alignment) + b"\0" * at


def small(kind: int = 0, arch: str = "qwen3moe") -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], int, int]]]:
    """Metadata and tensors of the small model for `packed`, all of one type that takes 4 bytes a weight."""
    tensors = [(name, shape, kind, 4 * int(np.prod(shape))) for name, shape in tensors_of(SIZES).items()]
    return metadata_of(SIZES, arch), tensors


def split(folder: Path, count: int, names: Any = None, **more: Any) -> list[Path]:
    """The small model in so many parts, as llama-gguf-split writes them."""
    metadata, tensors = small()
    names = names or [f"m-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    paths = []
    for i in range(count):
        own = {"split.no": i, "split.count": count, "split.tensors.count": len(tensors), **more}
        pairs = {**(metadata if i == 0 else {}), **own}
        paths.append(folder / names[i])
        paths[-1].write_bytes(packed(list(pairs.items()), tensors[i::count]))
    return paths
