"""The kernel table of `gpu_suite.py`: how near kernels come to what the memory and the cores give.

Each row's calls are captured in one CUDA graph (which proves that they can be) and replayed. Every round also copies
2 GiB and multiplies two 8192 x 8192 bf16 matrices; a row's share is its rate over that round's copy (bytes read and
written) or product, and the median over rounds is kept. What is timed stands in `gpu_rows.py`.
"""

from __future__ import annotations

import statistics
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import torch
from gpu_child import LAST_LINES, Keep, nobody
from gpu_rows import Group, Row

COPY_BYTES = 2 << 30
PRODUCT = 8192


def captured(calls: list[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    """The calls as one graph; each ran before in its stream, so that nothing is compiled or made while capturing."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        for call in calls:
            call()
    return graph


def seconds(run: Callable[[], object], least: float = 0.02) -> float:
    """Seconds of one run by events on the device, over as many as take `least` seconds."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    count = 1
    while True:
        start.record()
        for _ in range(count):
            run()
        stop.record()
        stop.synchronize()
        took = start.elapsed_time(stop) / 1e3
        if took >= least:
            return took / count
        count = max(count + 1, int(count * 1.3 * least / max(took, 1e-6)))


class Ceilings:
    """What the GPU gives at this moment: bytes a second of a copy, flops a second of a large bf16 product."""

    def __init__(self, device: torch.device) -> None:
        self.a = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device).random_()
        self.b = torch.empty_like(self.a)
        self.x, self.y = (torch.randn(PRODUCT, PRODUCT, device=device).bfloat16() for _ in range(2))

    def rates(self) -> dict[str, float]:
        return {
            "bytes": 2 * COPY_BYTES / seconds(lambda: self.b.copy_(self.a)),
            "flops": 2.0 * PRODUCT**3 / seconds(lambda: self.x @ self.y),
        }


def timed(row: Row, ceilings: Ceilings, rounds: int) -> dict[str, Any]:
    """Medians over rounds, each of which measures the ceilings too."""
    graph = captured(row.calls)
    micros, shares, rates = [], [], []
    seconds(graph.replay)
    for _ in range(rounds):
        limits = ceilings.rates() if row.bound else {}
        took = seconds(graph.replay) / len(row.calls)
        micros.append(took * 1e6)
        rates.append(limits)
        if row.bound:
            work = row.bytes if row.bound == "bytes" else row.flops
            shares.append(work / took / limits[row.bound])
    result: dict[str, Any] = {"row": row.name, "us": statistics.median(micros), "us_worst": max(micros)}
    if row.bound:
        result |= {"bytes": row.bytes, "flops": row.flops, "bound": row.bound, "share": statistics.median(shares)}
        result |= {f"{name}_ceiling": statistics.median(r[name] for r in rates) for name in ("bytes", "flops")}
    if row.wanted is not None:
        result["wanted"] = row.wanted
    return result


def line(row: dict[str, Any]) -> str:
    """A row as a line for the screen."""
    text = f"{row['row']:52} {row['us']:10.1f} us"
    if "share" in row:
        text += f"  {row['share']:6.1%} of {'copy' if row['bound'] == 'bytes' else 'product'}"
    if "wanted" in row:
        text += f"  wanted {row['wanted']:.0%}{'' if row['share'] >= row['wanted'] else ': NOT REACHED'}"
    return text


def table(groups: Iterable[Group], device: torch.device, rounds: int, name: str, keep: Keep = nobody) -> dict[str, Any]:
    """All rows whose name contains `name`; a row that fails is kept with its error, and so is a group whose weights
    cannot be made."""
    ceilings = Ceilings(device)
    found: list[dict[str, Any]] = []
    for group in groups:
        if not group.may_have(name):
            continue
        try:
            for row in group.rows():
                if name in row.name:
                    found.append(_tried(row, ceilings, rounds))
                    keep({"rows": found})
        except Exception as error:
            found.append(_failed(group.name, error))
            keep({"rows": found})
    return {"rows": found}


def _tried(row: Row, ceilings: Ceilings, rounds: int) -> dict[str, Any]:
    try:
        found = timed(row, ceilings, rounds)
    except Exception as error:
        return _failed(row.name, error)
    print("  " + line(found), flush=True)
    return found


def _failed(name: str, error: Exception) -> dict[str, Any]:
    problem = f"{type(error).__name__}: {str(error)[:300]}"
    print(f"  FAILED {name}: {problem}", flush=True)
    return {"row": name, "error": problem, "traceback": traceback.format_exc().splitlines()[-LAST_LINES:]}


def failures(found: dict[str, Any]) -> list[str]:
    """Rows that could not be timed."""
    return [f"{row['row']}: {row['error']}" for row in found.get("rows", []) if "error" in row]


def show(found: dict[str, Any]) -> list[str]:
    """Lines for the screen, behind those of the rows."""
    missed = [row["row"] for row in found["rows"] if "wanted" in row and row["share"] < row["wanted"]]
    return [f"{len(found['rows'])} rows, {len(missed)} below what is wanted"]
