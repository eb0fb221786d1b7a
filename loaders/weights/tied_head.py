"""Whether a head is the embedding: what config and files say of it, held against each other as transformers does.

A config that ties a head which the file has, with other values, is wrong: the stored head is used. Where the file has
the head alone, that is the embedding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch

from ..families import TensorNames
from ..files import safetensors
from ..files.entry import Entry
from ..spec import ModelSpec

CHUNK_ROWS = 4096


def names_as_stored(names: TensorNames, spec: ModelSpec, entries: Collection[str]) -> TensorNames:
    """Names of a tied model; where the head alone is stored, it is the embedding, too."""
    alone = spec.tied_head and names.head in entries and names.embed not in entries
    return replace(names, embed=names.head) if alone else names


def as_stored(spec: ModelSpec, names: TensorNames, entries: Mapping[str, Entry], notes: list[str]) -> ModelSpec:
    """The spec with a head of its own where the files have one that differs from the embedding, which is said."""
    head = entries.get(names.head)
    if not spec.tied_head or head is None or are_equal(head, entries[names.embed]):
        return spec
    notes.append(
        "config.json says that the head is the embedding (tie_word_embeddings), and the file has another one: that is "
        "used, as by transformers"
    )
    return replace(spec, tied_head=False)


def are_equal(one: Entry, other: Entry) -> bool:
    """Whether two tensors hold the same values, read by a few thousand rows. A quantised one holds others."""
    if one is other or one.shape != other.shape or one.packed or other.packed:
        return one is other
    rows = one.shape[0]
    for start in range(0, rows, CHUNK_ROWS):
        count = min(CHUNK_ROWS, rows - start)
        pair = [safetensors.read_rows(entry, start, count) for entry in (one, other)]
        if not torch.equal(*(part.float() for part in pair)):
            return False
    return True
