"""The roofline picture of a `bench_kernels.py` result: what each kernel reaches under what memory and arithmetic allow.

    python benchmarks/roofline.py benchmarks/results/kernels-NAME.json docs/roofline.svg

A point is a case that reads weights: operations a byte of weights against operations a second. The slope is the plain
read bandwidth, the ceilings are the loops on registers alone (tiles and dot products), all of the same run.
Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

COLORS = {"bf16": "tab:blue", "q8_0": "tab:orange", "q4_0": "tab:green", "f32": "tab:gray", "f16": "tab:purple"}
MARKERS = {"linear": "s", "experts": "o"}

Point = tuple[str, str, float, float]  # op, format, operations a byte, GFLOP/s


def points(result: dict[str, Any]) -> list[Point]:
    """The cases whose weights come from memory."""
    return [
        (row["op"], row["case"].split()[0], row["gflop_per_s"] / row["gb_per_s"], row["gflop_per_s"])
        for row in result["rows"]
        if row["op"] in MARKERS and row["gb_per_s"] > 0
    ]


def draw(result: dict[str, Any], path: Path) -> None:
    """Writes the picture; the file's ending says which kind."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "headrace"  # the same picture, the same file
    from matplotlib import pyplot as plt

    found = points(result)
    figure, axes = plt.subplots(figsize=(8, 5))
    low, high = min(p[2] for p in found) / 1.5, max(p[2] for p in found) * 1.5
    _roofs(axes, result, low, high)
    for op, format, intensity, rate in found:
        axes.plot(intensity, rate, MARKERS[op], color=COLORS[format], markersize=5, alpha=0.8)
    for op, marker in MARKERS.items():
        axes.plot([], [], marker, color="black", label=op)
    for format in sorted({p[1] for p in found}):
        axes.plot([], [], "o", color=COLORS[format], label=format)
    axes.set(xscale="log", yscale="log", xlim=(low, high), xlabel="operations a byte of weights", ylabel="GFLOP/s")
    passport = result["passport"]
    axes.set_title(f"{passport['threads']} threads, {passport['isa']}, {passport['date']}", fontsize=10)
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(which="both", alpha=0.2)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _roofs(axes: Any, result: dict[str, Any], low: float, high: float) -> None:
    """Memory's slope up to the highest ceiling, and the ceilings."""
    read, ceilings = result["read_gb_per_s"]["median"], result["peak_gop_per_s"]
    top = max([*ceilings.values(), read * low])
    end = min(high, top / read) if top else high
    axes.plot([low, end], [read * low, read * end], color="black", lw=1)
    axes.annotate(f"plain read {read:.0f} GB/s", (low * 20, read * low * 40), fontsize=8, ha="center")
    for name, peak in ceilings.items():
        if peak:
            axes.plot([peak / read, high], [peak, peak], color="black", lw=1, ls="--")
            axes.annotate(f"{name} {peak:.0f} GFLOP/s", (peak / read, peak), fontsize=8, ha="right", va="bottom")


def main() -> None:
    parser = argparse.ArgumentParser(description="the roofline picture of a bench_kernels.py result")
    parser.add_argument("result", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    draw(json.loads(args.result.read_text()), args.picture)


if __name__ == "__main__":
    main()
