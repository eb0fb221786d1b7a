"""Whether a head is the embedding: what config and files say of it, held against each other as transformers does.

A config that ties a head which the file has, with other values, is wrong: the stored head is used. Where the file has
the head alone, that is the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ..families import TensorNames
from ..files import safetensors
from ..files.safetensors import Entry
from ..spec import ModelSpec

CHUNK_ROWS = 4096


def as_stored(
    spec: ModelSpec, names: TensorNames, entries: Mapping[str, Entry], notes: list[str]
) -> tuple[ModelSpec, TensorNames]:
    """Spec and names as the files have the head."""
    head, embed = entries.get(names.head), entries.get(names.embed)
    if not spec.tied_head or head is None:
        return spec, names
    if embed is None:
        return spec, replace(names, embed=names.head)
    if are_equal(head, embed):
        return spec, names
    notes.append(
        "config.json says that the head is the embedding (tie_word_embeddings), and the file has another one: that is "
        "used, as by transformers"
    )
    return replace(spec, tied_head=False), names


def are_equal(one: Entry, other: Entry) -> bool:
    """Whether two tensors hold the same values, read by a few thousand rows."""
    if one.shape != other.shape:
        return False
    rows = one.shape[0]
    for start in range(0, rows, CHUNK_ROWS):
        count = min(CHUNK_ROWS, rows - start)
        pair = [safetensors.read_rows(entry, start, count) for entry in (one, other)]
        if not torch.equal(*(part.float() for part in pair)):
            return False
    return True
