"""What a pause costs the team of threads: an op after the caller was busy with something else, as a layer's experts are
after a GPU's part of the layer.

    python benchmarks/team_pauses.py [--samples 400] [--json [FILE]]

Two sides in turns, op by op: `in a step` the workers wait as in a step of a mailbox (`expect_work`), `asleep` as
between steps, where they go to sleep after about 50 us. Each sample is an op that wakes the team, a pause in which the
caller spins, as the coordinator does, and the op that is timed. The op is one token's experts, of which each thread
reads about as much as with 16 threads in a layer of Qwen3-30B-A3B. Medians and lower quartiles of all samples of a
pause; whoever else uses the cores makes samples later, never earlier, and `gave_way` says how often workers met them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from contextlib import nullcontext
from typing import Any

import result_file
import torch

from headrace.engine.bench.passport import passport
from headrace.kernels import FORMATS, ExpertLayout, cpu
from headrace.kernels.context import Context
from headrace.kernels.cpu import mailbox
from headrace.kernels.packed import ExpertBank

PAUSES_US = (0, 60, 100, 200, 400)
HIDDEN, TOP_K, EXPERTS = 2048, 8, 256
WIDTH_A_THREAD = 48  # 768 of a layer over 16 threads
SIDES = {"in a step": lambda: cpu.expect_work(mailbox.SPIN), "asleep": nullcontext}

Took = dict[tuple[str, int], list[float]]  # seconds, by side and pause


def layer(context: Context) -> Any:
    """An op over other experts at every call."""
    layout = ExpertLayout(format=FORMATS["q4_0"], hidden=HIDDEN, width=WIDTH_A_THREAD * context.threads)
    bank = ExpertBank(layout, torch.zeros(EXPERTS, layout.bytes, dtype=torch.uint8))
    bank.data.random_(0, 100)
    x, weights = torch.ones(1, HIDDEN), torch.full((1, TOP_K), 1 / TOP_K)
    ids = [((torch.arange(TOP_K) + n) % EXPERTS).to(torch.int32).view(1, -1) for n in range(0, EXPERTS, TOP_K)]
    ops, turn = cpu.CpuOps(context), 0

    def call() -> None:
        nonlocal turn
        turn += 1
        ops.experts(x, ids[turn % len(ids)], weights, bank)

    return call


def sample(call: Any, pause_us: int) -> float:
    """Seconds of an op after a pause."""
    call()
    until = time.perf_counter() + pause_us * 1e-6
    while time.perf_counter() < until:
        pass
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(context: Context, samples: int) -> tuple[Took, dict[str, dict[str, float]]]:
    """Times, and by side how often a worker slept and gave way, in shares of all waits that were timed."""
    call, cells = layer(context), [(side, pause) for side in SIDES for pause in PAUSES_US]
    took: Took = {cell: [] for cell in cells}
    share = 1 / (samples * len(PAUSES_US) * max(1, context.threads - 1))
    shares = {side: {"slept": 0.0, "gave_way": 0.0} for side in SIDES}
    for _ in range(samples):
        for side, pause in random.sample(cells, len(cells)):
            with SIDES[side]():
                before = cpu.team_sleeps(context)
                took[side, pause].append(sample(call, pause))
                now = cpu.team_sleeps(context)
            for name, sum_ in shares[side].items():
                shares[side][name] = sum_ + share * (getattr(now, name) - getattr(before, name))
    return took, shares


def table(took: Took) -> dict[str, Any]:
    """By side and pause: microseconds, and the ratio to no pause, by medians and lower quartiles."""
    found: dict[str, Any] = {}
    for side in SIDES:
        rows = {}
        for pause in PAUSES_US:
            low, middle, _ = (1e6 * value for value in statistics.quantiles(took[side, pause], n=4))
            rows[pause] = {"median_us": round(middle, 1), "quartile_us": round(low, 1)}
        for row in rows.values():
            for name in ("median", "quartile"):
                row[name] = round(row[f"{name}_us"] / rows[0][f"{name}_us"], 3)
        found[side] = rows
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="what a pause costs the team of threads")
    parser.add_argument("--samples", type=int, default=400, help="of each pause and side")
    parser.add_argument("--threads", type=int, help="of the team; left out: one a core")
    result_file.add_option(parser, "team-pauses")
    args = parser.parse_args()
    torch.set_num_threads(1)
    context = Context() if args.threads is None else Context(threads=args.threads)
    took, shares = measure(context, args.samples)
    result = {"samples": args.samples, "threads": context.threads, "sides": table(took), "shares_of_waits": shares,
              "load": os.getloadavg()[0],
              "passport": passport(context)}  # fmt: skip
    for side, rows in result["sides"].items():
        for pause, row in rows.items():
            print(f"{side:10} after {pause:3} us: {row['median_us']:7.1f} us, {row['median']:.2f} of no pause; "
                  f"lower quartile {row['quartile_us']:7.1f} us, {row['quartile']:.2f}")  # fmt: skip
    print(json.dumps({"shares_of_waits": shares}))
    result_file.write(args.json, "team-pauses", result)


if __name__ == "__main__":
    main()
