"""The same layers as GGUF: a block behind the last one, in the model's file or in one of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import mixer_files
import numpy as np
import safetensors.torch
from mtp_models import FROM_ONE, LIKE, layers_of, stored
from refusals import edit_json
from torch import Tensor

GLUE = {"eh_proj": "eh_proj", "enorm": "enorm", "hnorm": "hnorm", "shared_head.norm": "shared_head_norm"}


def write(variant: str, directory: Path, tensors: dict[str, Tensor], path: Path, apart: Path | None = None) -> None:
    """The checkpoint with its layer as a GGUF file; apart: the layer goes into another file, as block 0."""
    longer, number = path.parent / "longer", layers_of(variant)
    shutil.copytree(directory, longer)
    own = {name: one for name, one in tensors.items() if name.removesuffix(".weight") not in GLUE}
    both = stored(directory) | {f"model.layers.{number}.{name}": one.contiguous() for name, one in own.items()}
    safetensors.torch.save_file(both, longer / "model.safetensors", {"format": "pt"})
    short, _ = mixer_files.read(directory)
    kinds = {
        name: [*short[name], short[name][LIKE[variant]]]
        for name in ("layer_types", "mlp_layer_types", "indexer_types")
        if isinstance(short.get(name), list)
    }
    edit_json(longer / "config.json", num_hidden_layers=number + 1, **kinds)
    config, named = mixer_files.read(longer)
    start = 1.0 if variant in FROM_ONE else 0.0
    for theirs, mine in GLUE.items():
        values = tensors[f"{theirs}.weight"].float().numpy()
        named[f"blk.{number}.nextn.{mine}.weight"] = (
            values if values.ndim == 2 else np.ascontiguousarray(values + start)
        )
    if apart is None:
        mixer_files.write(path, config, named, more={"nextn_predict_layers": 1})
        return
    prefix = f"blk.{number}."
    layer = {f"blk.0.{name.removeprefix(prefix)}": one for name, one in named.items() if name.startswith(prefix)}
    mixer_files.write(path, short, {name: one for name, one in named.items() if not name.startswith(prefix)})
    mixer_files.write(apart, config, layer, more={"nextn_predict_layers": 1})
