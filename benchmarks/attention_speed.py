"""Attention over long contexts on the CPU, against what memory and arithmetic allow in the same run.

    python benchmarks/attention_speed.py [--other PYTHON] [--filter decode] [--most 75] [--rounds 7] [--seconds 0.02]
                                         [--threads N] [--isa NAME] [--clock wall] [--scattered] [--arena 1.5]
                                         [--kv-format q8_0] [--attention float32] [--json [FILE]]

Decode is one new token of 1, 4 or 16 sequences on contexts of 512, 8192 and 32768 tokens; prefill is 512 new tokens of
one sequence behind 0, 8192 and 32768 of them. Heads are those of real models, caches bf16 or q8_0. `made` is what a
prompt of DeepSeek-V2-Lite attends to: keys and values that are made of latents. Every call has pages of its own in an
arena that no cache holds, those of a sequence one after the other as in a cache that is new, or anywhere with
--scattered. On a cache of bf16 products are those of bf16, where the CPU has them, unless --attention says float32;
the peak is that of float32 all the same.

A round reads memory, times the case, reads memory again; "of read" is the case's bytes a second over the mean of both
reads, "of peak" its operations a second over the highest rate of multiply-adds on registers alone. Which of the two
shares is the larger names the bound: below it no order of the same work can be. Medians over rounds. A call's 25
us in Python count too. --other: the interpreter of a second build, whose process takes turns with this one; "gain" is
the median of the ratios. --clock cpu,
with --threads 1: processor time, where the machine has other work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

PAGE = 32
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
READ_BYTES = 64_000_000
PEAK, BF16_PEAK = "float multiply-adds", "bf16 dot products"
CONTEXTS, SEQUENCES, CHUNK, DEPTHS = (512, 8192, 32768), (1, 4, 16), 512, (0, 8192, 32768)


@dataclass(frozen=True)
class Shape:
    """Heads on a cache. latent: one key head, whose first v_dim numbers are its values."""

    name: str
    heads: int
    groups: int
    dim: int
    v_dim: int
    latent: bool = False
    form: str = "bf16"

    @property
    def token_bytes(self) -> int:
        from headrace.kernels.formats import KV_FORMATS

        return KV_FORMATS[self.form].bytes(self.groups * (self.dim + (0 if self.latent else self.v_dim)))


SHAPES = (
    Shape("Qwen3-30B-A3B 32/4x128", 32, 4, 128, 128),
    Shape("gpt-oss 64/8x64", 64, 8, 64, 64),
    Shape("Qwen3.6-35B-A3B 16/2x256", 16, 2, 256, 256),
    Shape("one key a head 16/16x128", 16, 16, 128, 128),
    Shape("DeepSeek-V2-Lite latent 16x576", 16, 1, 576, 512, latent=True),
    Shape("DeepSeek-V3 latent 128x576", 128, 1, 576, 512, latent=True),
)
MADE = Shape("DeepSeek-V2-Lite made 16x192+128", 16, 16, 192, 128)


@dataclass(frozen=True)
class Case:
    """So many sequences of `context` tokens, the last `new` of which are queries."""

    shape: Shape
    sequences: int
    new: int
    context: int

    @property
    def name(self) -> str:
        if self.new == 1:
            return f"decode {self.shape.name}, {self.sequences} x {self.context}"
        return f"prefill {self.shape.name}, {self.new} behind {self.context - self.new}"

    @property
    def bytes(self) -> int:
        return self.sequences * self.context * self.shape.token_bytes

    @property
    def flops(self) -> int:
        pairs = self.new * self.context - self.new * (self.new - 1) // 2
        return 2 * self.sequences * pairs * self.shape.heads * (self.shape.dim + self.shape.v_dim)


def all_cases(form: str) -> Iterator[Case]:
    for shape in (replace(shape, form=form) for shape in SHAPES):
        for context in CONTEXTS:
            for sequences in SEQUENCES:
                yield Case(shape, sequences, 1, context)
    made = [MADE] if form == "bf16" else []  # made keys are bf16, whatever the cache is
    for shape in [*(replace(shape, form=form) for shape in SHAPES[:4]), *made]:
        for depth in DEPTHS:
            yield Case(shape, 1, CHUNK, depth + CHUNK)


# The side that computes


def context_of(options: argparse.Namespace) -> Any:
    """How this build's kernels compute; a build from before bf16 products has none."""
    from headrace.kernels.context import ISA, THREADS, Context

    context = Context(isa=options.isa or ISA, threads=options.threads or THREADS)
    if options.attention == "bf16" and getattr(context, "has_bf16_attention", False):
        context = replace(context, attention="bf16")
    return context


class Bench:
    """An arena of random bf16 numbers, and attention on it."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        from headrace.kernels.cpu import CpuOps, advise_huge

        torch.set_num_threads(1)
        self.options, self.clock = options, CLOCKS[options.clock]
        self.ops = CpuOps(context_of(options))
        self.generator = torch.Generator().manual_seed(3)
        numbers = int(options.arena * 1e9) // 2
        piece = torch.randn(1 << 22, generator=self.generator).bfloat16()
        self.arena = torch.empty(numbers, dtype=torch.bfloat16)
        advise_huge(self.arena)  # as a cache lies
        for at in range(0, numbers, len(piece)):
            part = self.arena[at : at + len(piece)]
            part.copy_(piece[: len(part)])

    def read(self) -> float:
        """Bytes a second of a plain read of some part of the arena."""
        import torch

        from headrace.kernels import cpu

        data = self.arena.view(torch.uint8)
        last = (data.numel() - READ_BYTES) // 4096
        place = int(torch.randint(max(1, last), (1,), generator=self.generator)) * 4096
        part = data[place : place + READ_BYTES]
        start = self.clock()
        cpu.stream_read(self.ops.context, part)
        return part.numel() / (self.clock() - start)

    def peak(self, kind: str) -> float:
        """Multiply-adds on registers: operations a second."""
        from headrace.kernels import cpu

        return cpu.peak_rate(self.ops.context, kind)

    def seconds(self, case: Case) -> float:
        """Of one call, each with the next pages."""
        import torch

        shape, T = case.shape, case.sequences * case.new
        q_TNd = torch.randn(T, shape.heads, shape.dim, generator=self.generator)
        call = partial(self.ops.attention, q_TNd, *self.cache(shape))
        starts = torch.arange(0, T + 1, case.new, dtype=torch.int32)
        contexts = torch.full((case.sequences,), case.context, dtype=torch.int32)
        tables = self._tables(case)
        calls, spent, place = 0, 0.0, int(torch.randint(len(tables), (1,), generator=self.generator))
        while spent < self.options.seconds:
            start = self.clock()
            call(tables[(place + calls) % len(tables)], starts, contexts, shape.dim**-0.5)
            spent += self.clock() - start
            calls += 1
        return spent / calls

    def pages(self, shape: Shape) -> int:
        return self.arena.nbytes // (shape.token_bytes * PAGE)

    def fits(self, case: Case) -> bool:
        return case.sequences * -(-case.context // PAGE) <= self.pages(case.shape)

    @lru_cache(maxsize=1)  # noqa: B019 - shapes share the arena
    def cache(self, shape: Shape) -> tuple[Any, Any]:
        from headrace.kernels.blocks import cache_rows

        keys, size = self._rows(shape, 0, shape.dim)
        return keys, cache_rows.first(keys, shape.v_dim) if shape.latent else self._rows(shape, size, shape.v_dim)[0]

    def _rows(self, shape: Shape, start: int, dim: int) -> tuple[Any, int]:
        """Rows of `dim` numbers of all pages from byte `start` of the arena on, and the byte behind them."""
        import torch

        from headrace.kernels.blocks import cache_rows
        from headrace.kernels.formats import KV_FORMATS

        form, pages = KV_FORMATS[shape.form], self.pages(shape)
        end = start + pages * form.bytes(shape.groups * PAGE * dim)
        rows = cache_rows.over(form, self.arena.view(torch.uint8)[start:end].view(pages, -1), shape.groups, PAGE, dim)
        if isinstance(rows, cache_rows.Q8Rows):
            rows.scales.fill_(0.01)
        return rows, end

    def _tables(self, case: Case) -> list[Any]:
        """Pages of one call after the other, until the arena ends."""
        import torch

        pages, each = self.pages(case.shape), -(-case.context // PAGE)
        order = torch.randperm(pages, generator=self.generator) if self.options.scattered else torch.arange(pages)
        calls = pages // (each * case.sequences)
        return list(order[: calls * each * case.sequences].int().view(calls, case.sequences, each))


def serve(options: argparse.Namespace) -> None:
    """Answers in a process of its own: what is asked by lines of JSON."""
    bench, cases = Bench(options), list(all_cases(options.kv_format))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, int):
            print(json.dumps(bench.seconds(cases[asked]) if bench.fits(cases[asked]) else 0.0), flush=True)
        else:
            print(json.dumps(bench.read() if asked == "read" else bench.peak(asked)), flush=True)


# The side that asks


class Side:
    """The process of one build."""

    def __init__(self, python: str) -> None:
        arguments = [python, __file__, *sys.argv[1:], "--child"]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def ask(self, what: str | int) -> float:
        assert self.process.stdin is not None
        print(json.dumps(what), file=self.process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended with status {self.process.wait()}")
        return json.loads(line)


def measure(number: int, sides: dict[str, Side], rounds: int) -> dict[str, Any] | None:
    """Reads, and seconds of every side, by round; None: the case does not fit the arena."""
    here = sides["here"]
    found: dict[str, Any] = {"reads": [], **{name: [] for name in sides}}
    for turn in range(rounds + 1):
        times = {}
        before = here.ask("read")
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            times[name] = sides[name].ask(number)
            if not times[name]:
                return None
        read = (before + here.ask("read")) / 2
        if turn:
            found["reads"].append(read)
            for name, seconds in times.items():
                found[name].append(seconds)
    return found


def summary(case: Case, found: dict[str, Any], peak: float, arithmetic: float | None = None) -> dict[str, Any]:
    """Medians of a case. Shares are taken round by round; arithmetic: operations a second of the products, which
    bound it where reading does not (None: the peak)."""
    row: dict[str, Any] = {"case": case.name, "bytes": case.bytes, "flops": case.flops}
    read = statistics.median(found["reads"])
    row["bound"] = "read" if case.bytes / read > case.flops / (arithmetic or peak) else "peak"
    for name in ("here", "other"):
        if name not in found:
            continue
        pairs = list(zip(found[name], found["reads"], strict=True))
        of_read, of_peak = (
            statistics.median(shares)
            for shares in ([case.bytes / s / r for s, r in pairs], [case.flops / s / peak for s, _r in pairs])
        )
        row[name] = {"us": round(statistics.median(found[name]) * 1e6, 1), "of_read": round(of_read, 3),
                     "of_peak": round(of_peak, 3)}  # fmt: skip
    if "other" in found:
        gains = sorted(a / b for a, b in zip(found["other"], found["here"], strict=True))
        row["gain"] = {"median": round(statistics.median(gains), 3), "least": round(gains[0], 3),
                       "most": round(gains[-1], 3)}  # fmt: skip
    return row


def show(row: dict[str, Any]) -> str:
    text = f"{row['case']:58}"
    for name in ("other", "here"):
        if name in row:
            of = row[name]
            text += f"  {name} {of['us']:10.1f} us, of read {of['of_read']:.2f}, of peak {of['of_peak']:.2f};"
    if "gain" in row:
        text += f"  gain {row['gain']['median']:.2f} ({row['gain']['least']:.2f} to {row['gain']['most']:.2f})"
    return f"{text}  bound: {row['bound']}"


def run(options: argparse.Namespace) -> None:
    import result_file

    from headrace.engine.bench.passport import passport

    sides = {"here": Side(sys.executable)}
    if options.other:
        sides["other"] = Side(options.other)
    context = context_of(options)
    peak = max(sides["here"].ask(PEAK) for _ in range(25))
    is_bf16 = options.kv_format == "bf16" and getattr(context, "attention", "float32") == "bf16"
    arithmetic = max(sides["here"].ask(BF16_PEAK) for _ in range(25)) if is_bf16 else None
    result: dict[str, Any] = {
        "passport": passport(context), "clock": options.clock, "kv_format": options.kv_format,
        "attention": getattr(context, "attention", "float32"),
        "pages": "scattered" if options.scattered else "in order",
        "load_average": os.getloadavg()[0], "peak_gflop_per_s": round(peak / 1e9, 1), "reads_gb_per_s": [], "rows": [],
    }  # fmt: skip
    print(f"peak {peak / 1e9:.1f} GFLOP/s, load average {os.getloadavg()[0]:.1f}", flush=True)
    reads = []
    for number, case in enumerate(all_cases(options.kv_format)):
        asked = options.filter in case.name and case.flops <= options.most * 1e9
        found = measure(number, sides, options.rounds) if asked else None
        if found:
            reads += found["reads"]
            result["rows"].append(summary(case, found, peak, arithmetic))
            print(show(result["rows"][-1]), flush=True)
    if len(reads) > 1:
        result["reads_gb_per_s"] = [round(value / 1e9, 1) for value in statistics.quantiles(reads, n=4)]
    result["load_average_at_end"] = os.getloadavg()[0]
    print(f"plain read, quartiles: {result['reads_gb_per_s']} GB/s")
    result_file.write(options.json, "attention", result)


def main() -> None:
    import result_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", help="the interpreter of another build")
    parser.add_argument("--filter", default="", help="only cases whose name contains this")
    parser.add_argument("--most", type=float, default=1e6, help="only cases of so many GFLOP a call at most")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.02, help="of one case in one round, at least")
    parser.add_argument("--threads", type=int, help="threads of the team (default: physical cores)")
    parser.add_argument("--isa", help="instruction set (default: the best)")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--scattered", action="store_true", help="pages of a sequence lie anywhere")
    parser.add_argument("--kv-format", choices=["bf16", "q8_0"], default="bf16", help="what caches are stored as")
    parser.add_argument("--attention", choices=["bf16", "float32"], default="bf16", help="what is multiplied")
    parser.add_argument("--arena", type=float, default=1.5, help="GB of cache, in each process")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    result_file.add_option(parser, "attention")
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu counts the caller's time alone: say --threads 1")
    serve(options) if options.child else run(options)


if __name__ == "__main__":
    main()
