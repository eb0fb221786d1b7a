"""`headrace trace stats --plot`: heat of experts by layer, and how many different ones some tokens need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ....errors import OptionError
from ...traces.reader import Trace
from ...traces.stats import Stats
from .. import plots


def save(trace: Trace, found: Stats, path: Path) -> None:
    """Writes the figure; raises OptionError where there is nothing to draw, or the file cannot be written."""
    plots.check(path)
    if not found.tokens:
        raise OptionError("--plot needs tokens, and the trace has none: record more")
    draws = plots.pyplot()
    figure, axes = draws.subplots(1, 2, figsize=(14, 5))
    _heat(figure, axes[0], trace)
    _different(axes[1], trace, found)
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
    axis.set_yticks(range(len(trace.header.layers)), trace.header.layers, fontsize=6)
    axis.set(xlabel="experts, the hottest of each layer first", ylabel="layer", title="times an even share")
    figure.colorbar(image, ax=axis)


def _different(axis: Any, trace: Trace, found: Stats) -> None:
    experts, top_k = trace.header.experts, trace.header.top_k
    sizes = list(found.batches)
    axis.plot(sizes, list(found.batches.values()), marker="o", label="tokens of anywhere: a batch")
    axis.plot(sizes, list(found.windows.values()), marker="s", label="tokens in a row: a cache")
    even = [experts * (1 - (1 - top_k / experts) ** size) for size in sizes]
    axis.plot(sizes, even, linestyle="--", color="grey", label="if all were equally hot")
    axis.set_xscale("log", base=2)
    axis.set(xlabel="tokens", ylabel="different experts of a layer", title="what some tokens need", ylim=(0, None))
    axis.legend()
