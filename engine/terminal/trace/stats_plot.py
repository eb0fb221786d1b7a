"""`headrace trace stats --plot`: heat of experts by layer, how many different ones a batch needs and tokens in a row
do, and how soon one is chosen again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import OptionError
from ...planning.articles import distinct_experts
from ...traces.reader import Trace
from ...traces.stats import Stats
from ...units import GB, MB
from .. import plots

EVEN = "if all were equally hot"
MOST_TICKS = 16  # numbers of layers beside the heat


def save(trace: Trace, found: Stats, path: Path) -> None:
    """Writes the figure; raises OptionError where there is nothing to draw, or the file cannot be written."""
    plots.check(path)
    if not found.tokens:
        raise OptionError("--plot needs tokens, and the trace has none: record more")
    draws = plots.pyplot()
    figure, axes = draws.subplots(2, 2, figsize=(13, 9))
    _heat(figure, axes[0][0], trace)
    _batch(axes[0][1], trace, found)
    _working_set(axes[1][0], trace, found)
    _again(axes[1][1], trace, found)
    figure.suptitle(f"{trace.header.model}: routing of {found.tokens} tokens")
    plots.write(draws, figure, path)


def heat(trace: Trace) -> np.ndarray[Any, np.dtype[np.float64]]:
    """How often each expert was chosen, as a multiple of an even share; the hottest of each layer first: [layers,
    experts]."""
    header = trace.header
    counts = np.stack([np.bincount(layer[layer >= 0], minlength=header.experts) for layer in trace.ids])
    shares = counts * header.experts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    return -np.sort(-shares, axis=1)


def _heat(figure: Any, axis: Any, trace: Trace) -> None:
    image = axis.imshow(heat(trace), aspect="auto", interpolation="nearest", cmap="cividis")
    layers = trace.header.layers
    shown = range(0, len(layers), -(-len(layers) // MOST_TICKS))
    axis.set_yticks(shown, [layers[i] for i in shown])
    axis.set(xlabel="experts, the hottest of each layer first", ylabel="layer", title="heat: times an even share")
    figure.colorbar(image, ax=axis)


def even(trace: Trace, size: int) -> float:
    """Different experts of a layer that so many tokens would choose if all were equally hot."""
    return distinct_experts(trace.header.experts, trace.header.top_k, size)


def _batch(axis: Any, trace: Trace, found: Stats) -> None:
    sizes = list(found.batches)
    axis.plot(sizes, list(found.batches.values()), marker="o", label="tokens of anywhere")
    axis.plot(sizes, [even(trace, size) for size in sizes], linestyle="--", color="grey", label=EVEN)
    axis.axhline(trace.header.experts, color="black", linewidth=0.8, label="all experts")
    _sizes(axis, sizes)
    axis.set(xlabel="tokens of a batch", ylabel="different experts of a layer", title="what a batch reads")


def _working_set(axis: Any, trace: Trace, found: Stats) -> None:
    """Of all layers, in bytes, if each needs as many as the mean."""
    each, sizes = sum(trace.header.expert_bytes), list(found.windows)
    unit, name = (GB, "GB") if each * trace.header.experts >= GB else (MB, "MB")
    for label, counts, look in (
        ("tokens in a row", found.windows, {"marker": "s", "color": "C1"}),
        ("tokens of anywhere", found.batches, {"marker": "o", "color": "C0", "alpha": 0.5}),
    ):
        axis.plot(sizes, [counts[size] * each / unit for size in sizes], label=label, **look)
    axis.axhline(each * trace.header.experts / unit, color="black", linewidth=0.8, label="all experts")
    _sizes(axis, sizes)
    axis.set(xlabel="tokens", ylabel=f"experts of all layers, {name}", title="working set: what tokens choose together")


def _again(axis: Any, trace: Trace, found: Stats) -> None:
    """The mean of layers, with a band from the least to the most."""
    shares = {size: [100 * one for one in each] for size, each in found.again.items()}
    sizes, (experts, top_k) = list(shares), (trace.header.experts, trace.header.top_k)
    axis.plot(sizes, [sum(each) / len(each) for each in shares.values()], marker="o", label="mean of layers")
    lows, highs = [min(each) for each in shares.values()], [max(each) for each in shares.values()]
    axis.fill_between(sizes, lows, highs, alpha=0.2, linewidth=0, label="least to most of them")
    alike = [100 * (1 - (1 - top_k / experts) ** size) for size in sizes]
    axis.plot(sizes, alike, linestyle="--", color="grey", label=EVEN)
    _sizes(axis, sizes)
    axis.set(xlabel="tokens before", ylabel="% of choices", title="reuse: chosen before, at most so long ago")


def _sizes(axis: Any, sizes: Sequence[int]) -> None:
    """Numbers of tokens, doubling from one to the next."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.set_xticks([], minor=True)
    axis.set_ylim(0, None)
    axis.grid(alpha=0.2)
    axis.legend(fontsize=8)
