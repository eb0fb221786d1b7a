"""Decode attention over caches that lie in pages of 4 KB and in huge ones, in turns: what huge pages give.

    python benchmarks/cache_pages.py [--rounds 9] [--depths 8192,32768] [--shape NAME]

One thread, its processor time: others that compute beside it count as far as they take caches and memory. Every ratio
is the median, and the quartiles, over rounds of pages of 4 KB / huge ones in the same round. The caches are the same,
of several sequences where one would fit into a CPU's caches.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.context import Context
from headrace.kernels.cpu import CpuOps

PAGE, KEYS = 32, 32768  # tokens of a page, tokens of all sequences at least
HUGE, MADV_NOHUGEPAGE = 2 << 20, 15  # Python's mmap has no name for the latter everywhere
QUARTILES = (0.25, 0.75)


@dataclass(frozen=True)
class Shape:
    heads: int
    groups: int
    key: int
    latent: int = 0  # numbers of a key that serve as its value; 0: values lie apart


SHAPES = {
    "Qwen3-30B-A3B": Shape(32, 4, 128),
    "a key for each head": Shape(16, 16, 128),
    "DeepSeek-V2-Lite": Shape(16, 1, 576, 512),
}


def cache(pages: int, shape: Shape, *, is_huge: bool) -> Tensor:
    """Keys or values, bfloat16 [pages, groups, PAGE, key], all written."""
    size = pages * shape.groups * PAGE * shape.key * 2
    memory = torch.empty(size + HUGE, dtype=torch.uint8)
    start = -memory.data_ptr() % HUGE
    advice = mmap.MADV_HUGEPAGE if is_huge else MADV_NOHUGEPAGE
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.madvise(ctypes.c_void_p(memory.data_ptr() + start), ctypes.c_size_t(size // HUGE * HUGE), advice):
        raise OSError(ctypes.get_errno(), "madvise")
    rows = memory[start : start + size].view(torch.bfloat16).view(pages, shape.groups, PAGE, shape.key)
    return rows.copy_(torch.randn(1, shape.groups, PAGE, shape.key))


def measure(shape: Shape, depth: int, *, is_scattered: bool, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each round with pages of 4 KB, and with huge ones."""
    sequences, each = max(1, KEYS // depth), depth // PAGE
    pages, ops = sequences * each * 3 // 2, CpuOps(Context(threads=1))
    order = torch.randperm(pages, generator=torch.Generator().manual_seed(0)) if is_scattered else torch.arange(pages)
    table = order[: sequences * each].view(sequences, each).to(torch.int32)
    starts = torch.arange(sequences + 1, dtype=torch.int32)
    contexts = torch.full((sequences,), depth, dtype=torch.int32)
    q, found = torch.randn(sequences, shape.heads, shape.key), ([], [])
    sides = []
    for is_huge in (False, True):
        keys = cache(pages, shape, is_huge=is_huge)
        sides.append((keys, keys[..., : shape.latent] if shape.latent else cache(pages, shape, is_huge=is_huge)))
    for turn in range(rounds):
        for side in ((0, 1), (1, 0))[turn % 2]:
            start = time.process_time()
            ops.attention(q, *sides[side], table, starts, contexts, shape.key**-0.5)
            found[side].append(time.process_time() - start)
    return found


def said(shape: Shape, depth: int, small: list[float], huge: list[float]) -> str:
    ratios = sorted(a / b for a, b in zip(small, huge, strict=True))
    low, high = (ratios[int(part * len(ratios))] for part in QUARTILES)
    size = max(1, KEYS // depth) * depth * shape.groups * shape.key * 2 * (1 if shape.latent else 2)
    rates = " and ".join(f"{size / statistics.median(one) / 1e9:.2f}" for one in (small, huge))
    return f"{rates} GB/s, huge pages {statistics.median(ratios):.3f} x ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--depths", default="8192,32768", help="tokens, with commas between")
    parser.add_argument("--shape", choices=SHAPES, help="all if none is given")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, shape in SHAPES.items():
        if args.shape in (None, name):
            for depth in map(int, args.depths.split(",")):
                for is_scattered in (False, True):
                    both = measure(shape, depth, is_scattered=is_scattered, rounds=args.rounds)
                    where = "anywhere" if is_scattered else "in order"
                    print(f"{name}, {depth} tokens, pages {where}: {said(shape, depth, *both)}", flush=True)


if __name__ == "__main__":
    main()
