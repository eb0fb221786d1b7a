"""Shapes of GGUF tensors where they are stored with fewer dims than what they fill has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..files.entry import Entry

SHARED_GATE = "ffn_gate_inp_shexp.weight"  # stored as a vector


def as_matrices(found: Mapping[str, Entry]) -> dict[str, Entry]:
    """The shared expert's gate is a row."""
    return {
        name: replace(entry, shape=(1, *entry.shape)) if name.endswith(SHARED_GATE) and len(entry.shape) == 1 else entry
        for name, entry in found.items()
    }
