"""What a trace says of a model's routing, in numbers: which experts are hot, how soon they come again, how many
different ones some tokens need, how well one layer tells the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .reader import Trace

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # tokens of a batch, or of a window
AGAIN = (*SIZES, 512, 1024)  # tokens within which an expert is chosen again
DRAWS = 64  # batches, or windows, that a mean is taken of
MOST_TOKENS = 8192  # that the next layer is predicted of
HOT = 0.1  # the share of a layer's experts that "the hottest" are

Ids = NDArray[np.int16]


@dataclass(frozen=True, kw_only=True)
class LayerStats:
    """Of a layer: the choices that were made in it; the share that its hottest tenth of experts took; the hottest one,
    and the share of tokens that chose it; experts that nobody chose; as many equally hot experts would be as mixed
    (`effective`); the share of a token's experts that the token before it in its sequence chose too; the tokens until
    an expert is chosen again (median)."""

    layer: int
    choices: int
    hot_share: float
    hottest: int
    hottest_share: float
    unused: int
    effective: float
    overlap: float | None
    reuse: float | None


@dataclass(frozen=True, kw_only=True)
class NextLayer:
    """How well the experts of a layer tell those of the next one, all layers together: share of them that are among as
    many guesses, by which experts came together before, and by the next layer's hottest alone."""

    by_experts: float
    by_heat: float


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Of a trace. batches: mean different experts of a layer that so many tokens of anywhere chose; windows: that so
    many tokens after each other did. again: by tokens, the share of choices whose expert was chosen at most so many
    tokens of the trace before, by layer."""

    tokens: int
    generated: int
    sequences: int
    layers: tuple[LayerStats, ...]
    batches: dict[int, float]
    windows: dict[int, float]
    again: dict[int, tuple[float, ...]]
    next_layer: NextLayer | None


def stats(trace: Trace) -> Stats:
    """Sums up a trace. Draws with a fixed seed: the same trace gives the same numbers."""
    ids, numbers = trace.ids, trace.header.layers
    whole = [layer for layer in ids if len(layer) and (layer[:, 0] >= 0).all()]
    order = np.lexsort((trace.positions, trace.sequences))
    after = _neighbours(trace, order)
    return Stats(
        tokens=len(trace),
        generated=int(trace.generated.sum()),
        sequences=len(np.unique(trace.sequences)),
        layers=tuple(_layer(number, layer, trace, after) for number, layer in zip(numbers, ids, strict=True)),
        batches=_different(whole, trace.header.experts, np.random.default_rng(0).permutation(len(trace))),
        windows=_different(whole, trace.header.experts, order),
        again=_again(list(ids)),
        next_layer=_next_layer(whole, trace.header.experts),
    )


def _neighbours(trace: Trace, order: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Tokens that stand side by side in a sequence: the first ones, and the second ones."""
    first, second = order[:-1], order[1:]
    is_next = trace.sequences[first] == trace.sequences[second]
    is_next &= trace.positions[first] + 1 == trace.positions[second]
    return first[is_next], second[is_next]


def _layer(number: int, ids: Ids, trace: Trace, after: tuple[NDArray[np.intp], NDArray[np.intp]]) -> LayerStats:
    experts, top_k = trace.header.experts, trace.header.top_k
    there = ids[:, 0] >= 0
    counts = np.bincount(ids[there].ravel(), minlength=experts)
    total = int(counts.sum())
    shares = counts[counts > 0] / max(1, total)
    hot = np.sort(counts)[::-1][: max(1, round(HOT * experts))].sum()
    first, second = after
    both = there[first] & there[second]
    same = (ids[first[both]][:, :, None] == ids[second[both]][:, None, :]).sum(axis=(1, 2)) / top_k
    gaps = _gaps(ids[there])
    return LayerStats(
        layer=number,
        choices=total,
        hot_share=float(hot / total) if total else 0.0,
        hottest=int(counts.argmax()),
        hottest_share=float(counts.max() * top_k / total) if total else 0.0,
        unused=int((counts == 0).sum()),
        effective=float(np.exp(-(shares * np.log(shares)).sum())),
        overlap=float(same.mean()) if len(same) else None,
        reuse=float(np.median(gaps)) if len(gaps) else None,
    )


def _gaps(ids: Ids) -> NDArray[np.intp]:
    """Of each choice but an expert's first, how many tokens ago it was chosen before."""
    experts, tokens = ids.ravel(), np.repeat(np.arange(len(ids)), ids.shape[1])
    order = np.lexsort((tokens, experts))
    experts, tokens = experts[order], tokens[order]
    gaps: NDArray[np.intp] = np.diff(tokens)[np.diff(experts) == 0]
    return gaps


def _again(layers: Sequence[Ids]) -> dict[int, tuple[float, ...]]:
    """By number of tokens, as far as layers have them; layers without a choice are left out."""
    there = [found for ids in layers if len(found := ids[ids[:, 0] >= 0])]
    each = [(_gaps(ids), ids.size) for ids in there]
    longest = max(map(len, there), default=0)
    return {n: tuple(float((gaps <= n).sum() / total) for gaps, total in each) for n in AGAIN if n < longest}


def _different(layers: Sequence[Ids], experts: int, order: NDArray[np.intp]) -> dict[int, float]:
    """By number of tokens, taken side by side in an order, how many different experts of a layer they chose."""
    found, draws = {}, np.random.default_rng(1)
    for size in SIZES:
        if not layers or size > len(order):
            break
        starts = draws.integers(0, len(order) - size + 1, DRAWS)
        tokens = order[starts[:, None] + np.arange(size)]  # [draws, size]
        means = []
        for ids in layers:
            seen = np.zeros((DRAWS, experts), np.bool_)
            seen[np.arange(DRAWS)[:, None, None], ids[tokens]] = True
            means.append(seen.sum(axis=1).mean())
        found[size] = float(np.mean(means))
    return found


def _next_layer(layers: Sequence[Ids], experts: int) -> NextLayer | None:
    """Learned from the first half of the tokens, tried on the second."""
    half = min(len(layers[0]) // 2, MOST_TOKENS) if layers else 0
    if len(layers) < 2 or not half:
        return None
    by_experts, by_heat = [], []
    for ids, following in pairwise(layers):
        top_k = ids.shape[1]
        together = _one_hot(ids[:half], experts).T @ _one_hot(following[:half], experts)
        wanted = following[half : 2 * half]
        scores = _one_hot(ids[half : 2 * half], experts) @ together
        guesses = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        hottest = np.argsort(-together.sum(axis=0), kind="stable")[:top_k]
        by_experts.append((guesses[:, :, None] == wanted[:, None, :]).sum() / wanted.size)
        by_heat.append(np.isin(wanted, hottest).mean())
    return NextLayer(by_experts=float(np.mean(by_experts)), by_heat=float(np.mean(by_heat)))


def _one_hot(ids: Ids, experts: int) -> NDArray[np.float32]:
    """1 where a token chose an expert: [tokens, experts]."""
    found = np.zeros((len(ids), experts), np.float32)
    np.put_along_axis(found, ids.astype(np.int64), 1.0, axis=1)
    return found
