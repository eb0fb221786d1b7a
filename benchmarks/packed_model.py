"""Writes a shape as a directory in our own packed layout with random weights: what `headrace convert` would leave.

Tensors are made and written layer by layer, so that a model of any size needs little memory; the noise is that of
`headrace bench --random-weights`. Knows layouts, runs nothing.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headrace.kernels import FORMATS
from headrace.kernels.packed import ExpertBank, Matrix
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader
from headrace.loaders.files.safetensors import NAMES
from headrace.loaders.spec import ModelSpec
from headrace.loaders.weights.converted import MANIFEST, VERSION, WEIGHTS
from headrace.loaders.weights.model_weights import Formats, allocate
from headrace.loaders.weights.noise import Noise, Part, parts


def write(directory: Path, config: dict[str, Any], formats: Formats, seed: int = 0) -> None:
    """Writes a converted directory of a config (keys as in config.json); the manifest last, so that it is whole."""
    _, spec = spec_of(ConfigReader(config, "shape"))
    weights = allocate(spec, formats, "meta")
    found = dict(parts(weights))
    assert list(found) == list(weights.named()), "a tensor of this model is not written"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    noise = Noise(seed)
    with (directory / WEIGHTS).open("wb") as file:
        file.write(_header(weights.named()))
        for name, part in found.items():
            file.write(_filled(noise, part, name))
    names = {group: format.name for group, format in vars(formats).items()}
    (directory / MANIFEST).write_text(json.dumps({"version": VERSION, "formats": names}, indent=2) + "\n")


def _filled(noise: Noise, part: Part, name: str) -> memoryview:
    """The bytes of a tensor that has sizes and no memory yet."""
    if isinstance(part, Tensor):
        made: Part = torch.empty_like(part, device="cpu")
    elif isinstance(part, Matrix):
        made = Matrix.empty(part.format, part.rows, part.cols)
    else:
        made = ExpertBank.empty(part.layout, part.experts)
    noise.part(made, name)
    data = made if isinstance(made, Tensor) else made.data
    return data.view(-1).view(torch.uint8).numpy().data


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
