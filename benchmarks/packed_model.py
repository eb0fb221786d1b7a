"""Writes a shape as a directory in our own packed layout with random weights: what `headrace convert` would leave.

Tensors are written one after the other, so that a model of any size needs little memory. Quants are random, scales are
such that weights have mean 0 and a standard deviation near 0.046, as in `gguf_model.py`. Knows layouts, runs nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf_model import Bytes, half, nibbles, norm_value
from headrace.kernels import FORMATS, ExpertBank, Format, Matrix
from headrace.loaders.config import ConfigReader
from headrace.loaders.converted import MANIFEST, VERSION, WEIGHTS
from headrace.loaders.families import spec_of
from headrace.loaders.safetensors import NAMES
from headrace.loaders.spec import ModelSpec
from headrace.loaders.weights import Formats, ModelWeights, allocate
from torch import Tensor

Part = Tensor | Matrix | ExpertBank
POOL_BYTES = 32 << 20


def parts(weights: ModelWeights) -> Iterator[tuple[str, Part]]:
    """Every stored tensor under its name, a matrix with its format; models without dense or shared MLPs."""
    yield "embed", weights.embed
    yield "final_norm", weights.final_norm
    yield "head", weights.head
    for i, layer in enumerate(weights.layers):
        for name, value in vars(layer).items():
            if isinstance(value, (Tensor, Matrix, ExpertBank)):
                yield f"layers.{i}.{name}", value


class Noise:
    """Random packed rows, cut from one pool per format at a random place for each matrix."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.pools: dict[str, Bytes] = {}

    def part(self, part: Part, name: str) -> Bytes:
        """The bytes of a tensor; vectors are norms."""
        if isinstance(part, Tensor):
            return np.full(part.numel(), norm_value(name), dtype=np.float32).view(np.uint8)
        if isinstance(part, Matrix):
            return self.rows(part.format, part.rows, part.cols).ravel()
        return np.concatenate([self.expert(part) for _ in range(part.experts)])

    def expert(self, bank: ExpertBank) -> Bytes:
        layout = bank.layout
        shapes = [(layout.width, layout.hidden)] * 2 + [(layout.hidden, layout.width)]
        block = np.concatenate([self.rows(layout.format, *shape).ravel() for shape in shapes])
        return np.pad(block, (0, layout.bytes - len(block)))

    def rows(self, format: Format, rows: int, cols: int) -> Bytes:
        """Packed rows [rows, row bytes]."""
        if format.name not in self.pools:
            self.pools[format.name] = _quants(format, self.rng)
        pool = self.pools[format.name]
        size = rows * format.row_bytes(cols)
        start = 64 * int(self.rng.integers(len(pool) // 128))
        out = np.resize(pool[start:], size).reshape(rows, -1)
        if format.scale_bytes:
            scales = format.scales_bytes(cols)
            out[:, :scales] = np.resize(half(0.01 if format.bits == 4 else 0.0006), scales)
        return out


def _quants(format: Format, rng: np.random.Generator) -> Bytes:
    """A pool of what follows the scales in a row; for plain formats of the values."""
    if format.bits == 4:
        return nibbles(rng, (POOL_BYTES,))
    if format.name == "q8_0":
        return rng.integers(-127, 128, POOL_BYTES, dtype=np.int8).view(np.uint8)
    values = rng.normal(0, 0.02, POOL_BYTES // 4).astype(np.float32)
    if format.name == "f32":
        return values.view(np.uint8)
    assert format.name == "bf16", f"no noise for {format.name}"
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def write(directory: Path, config: dict[str, Any], formats: Formats, seed: int = 0) -> None:
    """Writes a converted directory of a config (keys as in config.json); the manifest last, so that it is whole."""
    _, spec = spec_of(ConfigReader(config, "shape"))
    weights = allocate(spec, formats, "meta")
    found = dict(parts(weights))
    assert set(found) == set(weights.named()), "a tensor of this model is not written"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    noise = Noise(seed)
    with (directory / WEIGHTS).open("wb") as file:
        file.write(_header(weights.named()))
        for name in weights.named():
            file.write(noise.part(found[name], name).data)
    names = {group: format.name for group, format in vars(formats).items()}
    (directory / MANIFEST).write_text(json.dumps({"version": VERSION, "formats": names}, indent=2) + "\n")


def _header(named: dict[str, Tensor]) -> bytes:
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in named.items():
        size = tensor.itemsize * math.prod(tensor.shape)
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    blob = json.dumps(header).encode()
    blob += b" " * (-(len(blob) + 8) % 64)
    return len(blob).to_bytes(8, "little") + blob


def four_bit() -> Formats:
    """The formats of the comparison: q4_0 for experts and dense matrices, bf16 for the embedding."""
    return Formats(experts=FORMATS["q4_0"], dense=FORMATS["q4_0"], embed=FORMATS["bf16"])


def bytes_per_token(spec: ModelSpec, formats: Formats) -> int:
    """Bytes of weights that decoding one token reads: the chosen experts, one row of the embedding, all the rest."""
    total = 0
    for name, part in parts(allocate(spec, formats, "meta")):
        if name == "embed":
            total += formats.embed.row_bytes(spec.hidden)
        elif isinstance(part, ExpertBank):
            total += spec.moe.top_k * part.layout.bytes
        else:
            total += part.nbytes
    return total
