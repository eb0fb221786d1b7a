"""What a layer for multi-token prediction takes of memory beside its pages: weights, and hidden states that wait."""

from __future__ import annotations

from collections.abc import Sequence

from ...loaders.spec import ModelSpec
from ...loaders.weights.model_weights import Formats, allocate
from ..planning.own_layer import waiting_rows


def weight_bytes(spec: ModelSpec, formats: Formats) -> int:
    """0 without such a layer."""
    found = None if spec.mtp is None else allocate(spec, formats, "meta").mtp
    return 0 if found is None else found.nbytes


def nbytes(spec: ModelSpec, sequences: int, graph_sizes: Sequence[int] = ()) -> int:
    """Hidden states that wait until they are taken in, of so many sequences, and those that a captured decode step of
    each size hands out; 0 without such a layer."""
    if spec.mtp is None:
        return 0
    return waiting_rows.nbytes(spec.hidden, sequences) + 4 * sum(graph_sizes) * spec.hidden
