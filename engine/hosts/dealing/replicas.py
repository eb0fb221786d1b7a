"""Experts that more than one machine has: which copy takes a layer's choices, and which experts are worth one.

A copy saves waiting where hot experts of a layer lie on one host. All choices of an expert in a request go to one
machine, which reads it once. On the loss of a host its experts that have a copy need nothing from a disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ....errors import OptionError
from ....loaders.spec import ModelSpec
from ...traces import reader
from ..sharing import Owners

Copies = list[dict[int, tuple[int, ...]]]  # by layer (of those with experts): of an expert the machines beside its own


class Counted(NamedTuple):
    """An expert of a layer, and how often it was chosen."""

    layer: int
    expert: int
    times: int


def choose(
    row: Sequence[int], copies: Mapping[int, tuple[int, ...]], counts: Mapping[int, int], weights: Sequence[float]
) -> list[int]:
    """By expert who computes it in this request. row: the owners as they are; copies: of an expert all machines that
    have it now; counts: its choices; weights: of machines, as ratios. Those with most choices are dealt first, each to
    the machine that has the least to do then."""
    found, load = list(row), [0.0] * len(weights)
    for expert, count in counts.items():
        if expert not in copies:
            load[row[expert]] += count / weights[row[expert]]
    for expert in sorted(copies.keys() & counts.keys(), key=lambda one: (-counts[one], one)):
        more = {node: load[node] + counts[expert] / weights[node] for node in copies[expert]}
        node = min(copies[expert], key=lambda one: more[one])
        found[expert], load[node] = node, more[node]
    return found


def hottest(path: Path, spec: ModelSpec, counts: Sequence[int], share: float) -> list[Counted]:
    """The experts that a trace chose most, the share of all that was asked for. counts: experts by layer (of those with
    experts). Raises OptionError for a trace of another model."""
    ids = reader.read(path).ids
    if ids.shape[0] != len(counts) or ids.shape[2] != spec.moe.top_k or (ids.size and int(ids.max()) >= max(counts)):
        raise OptionError(
            f"replicate: {path} has {ids.shape[0]} layers of {ids.shape[2]} choices, this model {len(counts)} of "
            f"{spec.moe.top_k}: record a trace of this model (headrace trace record)"
        )
    found = []
    for layer, (chosen, count) in enumerate(zip(ids, counts, strict=True)):
        times = np.bincount(chosen[chosen >= 0].ravel(), minlength=count)
        found += [Counted(layer, expert, int(times[expert])) for expert in range(count)]
    found.sort(key=lambda one: (-one.times, one.layer, one.expert))
    return [one for one in found[: round(share * sum(counts))] if one.times]


def place(hot: Sequence[Counted], home: Owners, sizes: Sequence[int], rooms: Sequence[int]) -> tuple[Copies, int]:
    """A copy of each where there is room, on the host that has the fewest copied choices so far and not the expert; and
    how many found no room. sizes: bytes of an expert by layer; rooms: bytes that are left by machine, 0: the
    coordinator, which takes none."""
    copies: Copies = [{} for _ in home]
    left, load, without = list(rooms), [0] * len(rooms), 0
    for layer, expert, count in hot:
        fitting = [n for n in range(1, len(rooms)) if n != home[layer][expert] and left[n] >= sizes[layer]]
        if not fitting:
            without += 1
            continue
        node = min(fitting, key=lambda n: (load[n], n))
        copies[layer][expert] = (node,)
        left[node] -= sizes[layer]
        load[node] += count
    return copies, without
