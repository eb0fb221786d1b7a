"""Times the C++ kernels on the large cases of `kernels/cases`, against the memory bandwidth measured in between.

    python benchmarks/bench_kernels.py [--filter experts] [--threads N] [--isa NAME] [--quick] [--json [FILE]]

Weights are windows at random places of a slab of more than 2 GB, larger than any cache, so every call reads DRAM.
Before and after every call a plain read of 96 MB gives the bandwidth of that moment; "of read" is the call's bandwidth
over it. The time of `experts` is what the op takes inside: in a model all layers are one call, and the 20 us of Python
around a call of its own, with all caches cold, are there once a pass, not once a layer. A cache holds the inputs of the
small ops: for those only the time counts. Figures are medians, the spread is p25 - p75. For arithmetic the ceilings are
loops on registers alone, on all threads, measured at the start: products of tiles where the CPU has them, else dot
products ("of peak": of int8 for block formats, of bf16 for f16, bf16 and fp8, multiply-adds for f32). Values of the
weights do not matter here (one constant byte); `tests/kernels/test_kernels.py` checks results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import result_file
import torch
from torch import Generator, Tensor

from headrace.engine.bench.passport import passport
from headrace.kernels import FORMATS, _cpu, cpu
from headrace.kernels.cases.all import CASES
from headrace.kernels.cases.case import Case, SlabSource
from headrace.kernels.cases.families import FAMILY_CASES
from headrace.kernels.cases.recurrent import RECURRENT_CASES
from headrace.kernels.context import ISA, THREADS, Context
from headrace.kernels.cpu.mailbox import round_trip_us
from headrace.kernels.isa import available_isas

READ_BYTES = 96_000_000
READS_WEIGHTS = ("linear", "linear_by_head", "experts")
FILL = 0x3C  # as f16, bf16 or f32 a harmless number


class Bench:
    """The slab, its random places, and what a plain read gives right now."""

    def __init__(self, context: Context, slab_bytes: int) -> None:
        self.ops = cpu.CpuOps(context)
        self.slab = torch.empty(slab_bytes, dtype=torch.uint8)
        self.huge = cpu.advise_huge(self.slab)
        self.slab.fill_(FILL)
        self.generator = Generator().manual_seed(3)
        self.source = SlabSource(self.slab, self.generator)

    def read_rate(self) -> float:
        """Bytes per second of a plain read of a random part of the slab."""
        place = int(torch.randint((self.slab.numel() - READ_BYTES) // 4096, (1,), generator=self.generator)) * 4096
        return READ_BYTES / cpu.stream_read(self.ops.context, self.slab[place : place + READ_BYTES])

    def time_case(self, case: Case, seconds: float) -> dict[str, Any]:
        micros, rates, shares = [], [], []
        stop, seed = time.perf_counter() + seconds, 0
        while len(micros) < 5 or (time.perf_counter() < stop and len(micros) < 2000):
            seed += 1
            if seed == 1 or case.op in READS_WEIGHTS:
                inputs = {**case.inputs(self.source, seed), "in_place": True}
            read_bytes = bytes_read(case, inputs)
            before = self.read_rate() if case.op in READS_WEIGHTS else 0.0
            took = seconds_of(self.ops, case, inputs)
            micros.append(took * 1e6)
            rates.append(read_bytes / took)
            if before:
                shares.append(read_bytes / took / ((before + self.read_rate()) / 2))
        return summary(case, micros, rates, shares)


def seconds_of(ops: cpu.CpuOps, case: Case, inputs: dict[str, Any]) -> float:
    """One call of the case; of `experts` what its op takes inside."""
    cpu.take_part_seconds()
    start = time.perf_counter()
    case.call(ops, inputs)
    took = time.perf_counter() - start
    return cpu.take_part_seconds()["experts"] or took


def bytes_read(case: Case, inputs: dict[str, Any]) -> int:
    """Bytes of weights: for experts, those that these ids choose."""
    if case.op == "experts":
        return int(inputs["ids"].unique().numel()) * int(inputs["bank"].layout.bytes)
    return case.bytes


def peak_of(peaks: dict[str, float], format: str) -> float:
    """What a format's products are held against: tiles, else dot products, else float32 arithmetic; 0: none."""
    kind = {"f32": "f32", "f16": "bf16", "bf16": "bf16", "fp8": "bf16"}.get(format, "int8" if format in FORMATS else "")
    names = (f"{kind} tiles", f"{kind} dot products", "float multiply-adds")
    return next((peaks[name] for name in names if peaks.get(name)), 0.0) if kind else 0.0


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def summary(case: Case, micros: list[float], rates: list[float], shares: list[float]) -> dict[str, Any]:
    us = quartiles(micros)
    row = {"op": case.op, "case": case.name, "calls": len(micros), "us": us[1], "us_p25": us[0], "us_p75": us[2]}
    row["gb_per_s"] = statistics.median(rates) / 1e9
    row["gflop_per_s"] = case.flops / us[1] / 1e3
    if shares:
        row["of_read"], row["of_read_p25"], row["of_read_p75"] = (quartiles(shares)[i] for i in (1, 0, 2))
    return row


def show(row: dict[str, Any]) -> str:
    text = f"{row['op']:12} {row['case']:52} {row['us']:10.1f} us {row['gb_per_s']:7.2f} GB/s"
    if row["gflop_per_s"]:
        text += f" {row['gflop_per_s']:6.0f} GFLOP/s"
    if "of_read" in row:
        text += f"  of read {row['of_read']:.2f} [{row['of_read_p25']:.2f}-{row['of_read_p75']:.2f}]"
    if row.get("of_peak", 0.0) >= 0.01:
        text += f"  of peak {row['of_peak']:.2f}"
    return text


def per_call(call: Any, number: int = 5000) -> float:
    """Microseconds of one call, best of five rounds."""
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(number):
            call()
        rounds.append((time.perf_counter() - start) / number * 1e6)
    return min(rounds)


def overheads(ops: cpu.CpuOps) -> dict[str, float]:
    """What a call costs besides its work: 16 values through the wrapper, through the binding alone, and the team; and a
    mailbox job without experts, from its post to its answer, with a thread as the GPU."""
    x, w = torch.ones(1, 16), torch.ones(16)
    y: Tensor = torch.empty_like(x)
    context = ops.context
    raw = context.native, x.data_ptr(), w.data_ptr(), y.data_ptr(), 1, 16, 1e-6
    return {
        "wrapper_us": per_call(lambda: ops.rmsnorm(x, w, 1e-6)),
        "binding_us": per_call(lambda: _cpu.rmsnorm(*raw)),
        "torch_empty_us": per_call(lambda: torch.empty(1, 16)),
        "region_ns": min(cpu.region_ns(context, 5000) for _ in range(5)),
        "barrier_ns": min(cpu.barrier_ns(context, 5000) for _ in range(5)),
        "mailbox_us": min(round_trip_us(context) for _ in range(5)),
    }


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filter", default="", help="only cases whose 'op: name' contains this")
    parser.add_argument("--threads", type=int, help="threads of the team (default: physical cores)")
    parser.add_argument("--isa", choices=available_isas(), help="instruction set (default: the best)")
    parser.add_argument("--quick", action="store_true", help="half a second a case instead of three")
    result_file.add_option(parser, "kernels")
    return parser.parse_args()


def main() -> None:
    args = options()
    context = Context(isa=args.isa or ISA, threads=args.threads or THREADS)
    torch.set_num_threads(1)
    bench = Bench(context, 2_200_000_000)
    result: dict[str, Any] = {
        "passport": {**passport(context), "huge_pages": bench.huge},
        "overheads": overheads(bench.ops),
        "rows": [],
    }
    peaks = {name: statistics.median(cpu.peak_rate(context, name) for _ in range(9)) / 1e9 for name in cpu.PEAKS}
    result["peak_gop_per_s"] = peaks
    reads = quartiles([bench.read_rate() / 1e9 for _ in range(20)])
    result["read_gb_per_s"] = {"p25": reads[0], "median": reads[1], "p75": reads[2]}
    print(json.dumps(result["passport"]))
    print("  ".join(f"{name} {value:.2f}" for name, value in result["overheads"].items()))
    print(f"plain read {reads[1]:.1f} GB/s [{reads[0]:.1f}-{reads[2]:.1f}]")
    print("peaks: " + ", ".join(f"{name} {peak:.0f} GOP/s" for name, peak in peaks.items()), flush=True)
    for case in (*CASES, *FAMILY_CASES, *RECURRENT_CASES):
        if case.bench and args.filter in f"{case.op}: {case.name}":
            row = bench.time_case(case, 0.5 if args.quick else 3.0)
            peak = peak_of(peaks, case.name.split()[0])
            if case.op in READS_WEIGHTS and peak and row["gflop_per_s"] > 0:
                row["of_peak"] = row["gflop_per_s"] / peak
            result["rows"].append(row)
            print(show(row), flush=True)
    result_file.write(args.json, "kernels", result)


if __name__ == "__main__":
    main()
