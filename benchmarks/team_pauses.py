"""What a pause costs the team of threads: an op after the caller was busy with something else, as a layer's experts are
after a GPU's part of the layer.

    python benchmarks/team_pauses.py [--samples 400] [--json [FILE]]

Two sides in turns, op by op: `in a step` the workers wait as in a step of a mailbox (`expect_work`), `asleep` as
between steps, where they go to sleep after about 50 us. Each sample is an op that wakes the team, a pause in which the
caller spins, as the coordinator does, and the op that is timed. The op is one token's experts, of which each thread
reads about as much as with 16 threads in a layer of Qwen3-30B-A3B. Medians and lower quartiles of the samples of a
pause in which no worker gave way to another program; in how many one did is said beside them.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from contextlib import nullcontext
from typing import Any, NamedTuple

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


class Sample(NamedTuple):
    """Seconds of an op, and how often workers slept and gave way in the wait before it."""

    seconds: float
    slept: int
    gave_way: int


Took = dict[tuple[str, int], list[Sample]]  # by side and pause


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


def measure(context: Context, samples: int) -> Took:
    call, cells = layer(context), [(side, pause) for side in SIDES for pause in PAUSES_US]
    took: Took = {cell: [] for cell in cells}
    for _ in range(samples):
        for side, pause in random.sample(cells, len(cells)):
            with SIDES[side]():
                before = cpu.team_sleeps(context)
                seconds = sample(call, pause)
                now = cpu.team_sleeps(context)
            took[side, pause].append(Sample(seconds, now.slept - before.slept, now.gave_way - before.gave_way))
    return took


def table(took: Took) -> dict[str, Any]:
    """By side and pause: microseconds of the samples that nobody disturbed, the ratio to no pause, by medians and lower
    quartiles; the shares of samples in which a worker slept, or gave way."""
    sides: dict[str, Any] = {}
    for side in SIDES:
        rows = {}
        for pause in PAUSES_US:
            every = took[side, pause]
            quiet = [1e6 * one.seconds for one in every if not one.gave_way]
            low, middle, _ = statistics.quantiles(quiet, n=4) if len(quiet) > 1 else [float("nan")] * 3
            rows[pause] = {"median_us": round(middle, 1), "quartile_us": round(low, 1),
                           "slept": round(sum(one.slept > 0 for one in every) / len(every), 3),
                           "gave_way": round(1 - len(quiet) / len(every), 3)}  # fmt: skip
        for row in rows.values():
            for name in ("median", "quartile"):
                row[name] = round(row[f"{name}_us"] / rows[0][f"{name}_us"], 3)
        sides[side] = rows
    return {"sides": sides}


def main() -> None:
    parser = argparse.ArgumentParser(description="what a pause costs the team of threads")
    parser.add_argument("--samples", type=int, default=400, help="of each pause and side")
    parser.add_argument("--threads", type=int, help="of the team; left out: one a core")
    result_file.add_option(parser, "team-pauses")
    args = parser.parse_args()
    torch.set_num_threads(1)
    context = Context() if args.threads is None else Context(threads=args.threads)
    result = {"samples": args.samples, "threads": context.threads, **table(measure(context, args.samples)),
              "load": os.getloadavg()[0], "passport": passport(context)}  # fmt: skip
    for side, rows in result["sides"].items():
        for pause, row in rows.items():
            times = ", ".join(
                f"{name} {row[f'{name}_us']:7.1f} us ({row[name]:.2f})" for name in ("median", "quartile")
            )
            print(
                f"{side:10} after {pause:3} us: {times}; slept in {row['slept']:.0%}, gave way in {row['gave_way']:.0%}"
            )
    result_file.write(args.json, "team-pauses", result)


if __name__ == "__main__":
    main()
