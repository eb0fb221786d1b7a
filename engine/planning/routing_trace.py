"""Distinct experts of a batch from recorded routing instead of from uniform odds.

A trace is a file that `headrace trace record` wrote, or a JSON file {"ids": [layer][token][top_k]}: for each layer with
experts the ids that every token chose.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import OptionError
from ...loaders.architecture.architecture import Architecture
from .articles import distinct_in_trace
from .speed import Distinct

RECORDED = b"HRTRACE1"


def load(path: Path, model: Architecture) -> Distinct:
    """How many distinct experts so many tokens choose in a layer; raises OptionError for a trace of another model."""
    ids = _read(path)
    layers = model.moe_layers
    if len(ids) != len(layers):
        raise OptionError(f"{path} has routing for {len(ids)} layers, {model.family} has {len(layers)} with experts")
    for number, tokens in zip(layers, ids, strict=True):
        experts = model.layers[number].experts
        assert experts is not None
        wrong = [e for token in tokens for e in token if not 0 <= e < experts.count]
        if wrong or any(len(token) != experts.top_k for token in tokens):
            raise OptionError(
                f"{path}: layer {number} has {experts.count} experts, {experts.top_k} a token; the trace has others "
                f"({wrong[0] if wrong else len(tokens[0])})"
            )
    by_layer = dict(zip(layers, ids, strict=True))

    @cache
    def distinct(layer: int, tokens: int) -> float:
        recorded = by_layer[layer]
        return distinct_in_trace(recorded, min(tokens, len(recorded)))

    return distinct


def _read(path: Path) -> list[list[list[int]]]:
    if _is_recorded(path):
        from ..traces import reader  # numpy takes a while, and no other plan needs it

        return [[token for token in layer if token[0] >= 0] for layer in reader.read(path).ids.tolist()]
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        ids = values["ids"]
        whole = all(isinstance(e, int) for layer in ids for token in layer for e in token)
    except OSError as error:
        raise OptionError(f"cannot read the trace {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise OptionError(f'{path} is no routing trace ({error}): give {{"ids": [layer][token][expert]}}') from error
    if not whole or not ids or not all(ids):
        raise OptionError(f"{path} is no routing trace: ids must be lists of whole numbers, with at least one token")
    return list(ids)


def _is_recorded(path: Path) -> bool:
    """Whether a file begins as those of `headrace trace record` do."""
    try:
        with path.open("rb") as file:
            return file.read(len(RECORDED)) == RECORDED
    except OSError:  # said by whoever reads it
        return False
