"""Expert-layer parts of `vs_peers.py`: our `ops.experts` against kt-kernel's, and against the read bandwidth.

Both sides pack the same bfloat16 values, each into its own format, and compute the same tokens; the similarity of what
comes out is part of the result. Several layers of more than 2 GB together are gone through in turn, so that few weights
are found in a cache. Knows one layer at a time, no model.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import bench_kernels
import torch
from interleave import Rates, quiet, significant, take_turns
from torch import Tensor

from headrace.kernels import FORMATS, ExpertLayout, cpu, load
from headrace.kernels.cases.all import CASES
from headrace.kernels.context import Context
from headrace.kernels.cpu import CpuOps
from headrace.kernels.packed import ExpertBank

EXPERTS, TOP_K, HIDDEN, WIDTH = 128, 8, 2048, 768  # of Qwen3-30B-A3B
TOTAL_BYTES = 2_000_000_000
CALLS = {1: 140, 512: 6}  # tokens -> calls of one side in one round
PAIRS = {"int4": "q4_0", "int8": "q8_0"}  # kt-kernel's format -> ours
OURS, OURS_ALONE = "headrace", "headrace_1_threads"
THEIRS, THEIRS_ALONE = "kt_kernel", "kt_kernel_1_threads"
WARM = 2
SHARE_S = 0.6  # of one format in one round

Inputs = tuple[Tensor, Tensor, Tensor]
Layers = Callable[[int, Inputs], Tensor]  # (which layer, inputs as ours takes them)


def inputs(tokens: int, generator: torch.Generator) -> Inputs:
    """x bfloat16 values as float32, distinct random experts for each token, weights that sum to 1."""
    x = torch.randn(tokens, HIDDEN, generator=generator).bfloat16().float()
    ids = torch.rand(tokens, EXPERTS, generator=generator).topk(TOP_K).indices.int()
    weights = torch.rand(tokens, TOP_K, generator=generator)
    return x, ids, weights / weights.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Source:
    """One layer's weights in bfloat16: gate and up [E, width, hidden], down [E, hidden, width]."""

    gate: Tensor
    up: Tensor
    down: Tensor

    @classmethod
    def random(cls) -> Source:
        """Normal values cut from one pool at a random place for each expert."""
        generator = torch.Generator().manual_seed(5)
        size = WIDTH * HIDDEN
        pool = torch.randn(8 * size, generator=generator).mul_(0.02).bfloat16()
        many = [torch.empty(EXPERTS, size, dtype=torch.bfloat16) for _ in range(3)]
        for matrices in many:
            for expert in matrices:
                start = int(torch.randint(7 * size, (1,), generator=generator))
                expert.copy_(pool[start : start + size])
        up_shape, down_shape = (EXPERTS, WIDTH, HIDDEN), (EXPERTS, HIDDEN, WIDTH)
        return cls(many[0].view(up_shape), many[1].view(up_shape), many[2].view(down_shape))

    def bank(self, name: str) -> ExpertBank:
        """Packed into one of our formats."""
        bank = ExpertBank.empty(ExpertLayout(format=FORMATS[name], hidden=HIDDEN, width=WIDTH), EXPERTS)
        for expert in range(EXPERTS):
            for part in ("gate", "up", "down"):
                into = bank.matrix(expert, part)
                into.data.copy_(load("cpu").quantize(getattr(self, part)[expert], into.format))
        return bank


def our_layers(ops: CpuOps, source: Source, name: str) -> tuple[Layers, int]:
    """Copies of one packed layer, more than TOTAL_BYTES of them; and how many."""
    first = source.bank(name)
    count = -(-TOTAL_BYTES // first.nbytes)
    slab = torch.empty(count, *first.data.shape, dtype=torch.uint8)
    cpu.advise_huge(slab)
    slab.copy_(first.data.expand_as(slab))
    banks = [ExpertBank(first.layout, data) for data in slab]
    return lambda layer, i: ops.experts(*i, banks[layer]), count


def kt_layers(source: Source, kind: str, threads: int, count: int) -> Layers:
    """As many layers of kt-kernel's, each quantised by itself from the same values."""
    from peer_kt import KtLayer, KtPool

    pool = KtPool(threads)
    layers = [KtLayer(pool, kind, source.gate, source.up, source.down, TOP_K) for _ in range(count)]
    return lambda layer, i: layers[layer].forward(*i)


def as_kt_takes_them(i: Inputs) -> Inputs:
    return i[0].bfloat16(), i[1].long(), i[2]


def rate(layers: Layers, count: int, tokens: int, convert: Callable[[Inputs], Inputs]) -> Callable[[int], float]:
    """Calls a second: the median call of a round that goes through the layers in turn. Two calls go before, untimed: a
    side that has just changed its threads or the number of tokens takes its buffers anew, which a model does once."""

    def measure(turn: int) -> float:
        generator = torch.Generator().manual_seed(turn)
        work = [convert(inputs(tokens, generator)) for _ in range(CALLS[tokens])]
        quiet()
        times = []
        for n, one in enumerate(work[:WARM]):
            layers((turn * len(work) - 1 - n) % count, one)
        for n, one in enumerate(work):
            start = time.perf_counter()
            layers((turn * len(work) + n) % count, one)
            times.append(time.perf_counter() - start)
        return 1 / statistics.median(times)

    return measure


def on_one_thread(ops: CpuOps, measure: Callable[[int], float]) -> Callable[[int], float]:
    """The same with a team of one, since kt-kernel's threads that wait take a core of their own on a small machine."""

    def alone(turn: int) -> float:
        before = ops.context
        ops.context = replace(before, threads=1)
        try:
            return measure(turn)
        finally:
            ops.context = before

    return alone


def similarity(ours: Tensor, theirs: Tensor) -> float:
    """Cosine between two results; raises if the other one is no result."""
    theirs = theirs.float()
    if not torch.isfinite(theirs).all() or not theirs.any():
        raise RuntimeError("kt-kernel's output is zero or not finite: it did not compute this layer")
    return significant(float(torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)))


def against_kt(kind: str, rounds: int) -> tuple[dict[int, Rates], dict[str, Any]]:
    """Rates by tokens a call (1, 512), both sides with 1 thread and with all; and the facts of the comparison."""
    source = Source.random()
    ops = CpuOps(Context())
    ours, count = our_layers(ops, source, PAIRS[kind])
    threads = sorted({1, ops.context.threads})
    theirs = {f"{THEIRS}_{n}_threads": kt_layers(source, kind, n, count) for n in threads}
    sample = inputs(16, torch.Generator().manual_seed(1))
    expected = ours(0, sample)
    same = {name: similarity(expected, layers(0, as_kt_takes_them(sample))) for name, layers in theirs.items()}
    print(f"expert layer, {PAIRS[kind]} and kt-kernel {kind}, calls a second; similarity {same}", flush=True)
    rates = {}
    for tokens in CALLS:
        measure = rate(ours, count, tokens, lambda i: i)
        sides = {OURS: measure, OURS_ALONE: on_one_thread(ops, measure)}
        sides.update({n: rate(layers, count, tokens, as_kt_takes_them) for n, layers in theirs.items()})
        rates[tokens] = best_peer(take_turns(sides, rounds))
    return rates, {"layers": count, "cosine_of_outputs": same}


def best_peer(rates: Rates) -> Rates:
    """With a side THEIRS: whichever of its thread settings has the better median."""
    theirs = [name for name in rates if name.startswith(THEIRS)]
    return {**rates, THEIRS: rates[max(theirs, key=lambda name: statistics.median(rates[name]))]}


def shares_of_read(rounds: int, names: tuple[str, ...] = ("q4_0", "q8_0", "bf16")) -> dict[str, list[float]]:
    """Share of the read bandwidth that one token's experts reach, per format, one value a round."""
    bench = bench_kernels.Bench(2_200_000_000)
    shape = f"{EXPERTS}x{HIDDEN}x{WIDTH} 1 tokens top {TOP_K}"
    cases = {name: next(c for c in CASES if c.bench and c.name == f"{name} {shape}") for name in names}
    shares: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name, case in cases.items():
            quiet()
            shares[name].append(float(bench.time_case(case, SHARE_S)["of_read"]))
        print(f"  round {turn + 1}: " + ", ".join(f"{n} {s[-1]:.2f}" for n, s in shares.items()), flush=True)
    return shares
