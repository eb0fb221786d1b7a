"""The machine as numbers: what CPU this is, and how fast each kernel reads memory on it.

`measure` runs the real kernels over more memory than any cache holds and keeps the median; a profile of it is saved for
this hardware and this number of threads, and every prediction divides by it. A plain copy or read loop would not do:
the kernel is what runs, and it reads slower or faster than a loop does.
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType

import psutil
import torch
from torch import Tensor

from .. import kernels
from ..errors import MemoryNeeded
from ..kernels import FORMATS, ExpertBank, ExpertLayout, Matrix
from ..loaders.memory import GB, free_memory
from ..loaders.weights import ModelWeights
from .kvcache import PAGE
from .profile import Profile, cpu_name, hardware_key, load_profile, profile_path, save_profile

__all__ = [
    "HUGE_FROM",
    "Profile",
    "advise_huge",
    "cpu_kernels",
    "cpu_name",
    "default_threads",
    "hardware_key",
    "load_profile",
    "measure",
    "profile_path",
    "save_profile",
    "set_threads",
    "spread_over_nodes",
]

ARENA = 2 << 30  # bytes read per round: caches of shared hosts reach hundreds of megabytes
SMALLEST_ARENA = 256 << 20
HUGE_FROM = 8 << 20  # smaller tensors are not worth a huge page
HIDDEN, WIDTH, TOP_K = 2048, 1024, 8  # shape of the experts that are measured
BATCHES = (4, 16)  # tokens that a matrix is multiplied by at once, besides one
GROUPS = (1, 8)  # query heads to a key/value head
KV_HEADS, HEAD_DIM, CONTEXT = 8, 128, 2048  # shape of the caches that are measured


def cpu_kernels() -> ModuleType:
    """The C++ backend as a module, for what is not an op: threads, ISA, raw reads."""
    from ..kernels import cpu

    return cpu


def set_threads(threads: int | None) -> None:
    """Sets the threads of the CPU kernels; None is one per core, whatever an earlier model asked for."""
    cpu_kernels().set_threads(threads or default_threads())


@cache
def default_threads() -> int:
    """Threads that the kernels start with: one per core that this process may use."""
    return int(cpu_kernels().threads())


def advise_huge(weights: ModelWeights) -> dict[str, bool]:
    """Asks for huge pages under every large tensor; whether the system agreed, by name."""
    advise: Callable[[Tensor], bool] = cpu_kernels().advise_huge
    return {name: advise(t) for name, t in weights.named().items() if t.nbytes >= HUGE_FROM}


def spread_over_nodes(weights: ModelWeights) -> int:
    """Deals out the pages of every large tensor over the nodes of memory; over how many: 1 where there is one node, 0
    where there are more and the system refused."""
    cpu = cpu_kernels()
    nodes: list[int] = cpu.numa_nodes()
    if len(nodes) < 2:
        return 1
    large = [t for t in weights.named().values() if t.nbytes >= HUGE_FROM]
    granted = [cpu.interleave(t, nodes) for t in large]  # all are asked for, also after a refusal
    return len(nodes) if all(granted) else 0


def measure(rounds: int = 3, arena_bytes: int | None = None) -> Profile:
    """Measures this machine with the kernels as they are set up now; takes a few seconds and up to 2 GB of memory."""
    cpu = cpu_kernels()
    arena = _arena(arena_bytes)
    timings = dict(_timings(arena))
    found: dict[str, list[float]] = {name: [] for name in timings}
    for _ in range(rounds):  # round after round, so that a slow moment does not hit one kernel alone
        for name, run in timings.items():
            found[name].append(run())
    rate = {name: statistics.median(values) for name, values in found.items()}
    return Profile(
        key=hardware_key(),
        cpu=cpu_name(),
        isa=cpu.isa(),
        threads=cpu.threads(),
        memory_bytes=psutil.virtual_memory().total,
        date=datetime.date.today().isoformat(),
        stream=rate["stream"],
        linear={name: rate[f"linear {name}"] for name in FORMATS},
        experts={name: rate[f"experts {name}"] for name in FORMATS},
        batch={str(n): {name: rate[f"linear {name} {n}"] for name in FORMATS} for n in BATCHES},
        attention={str(group): rate[f"attention {group}"] for group in GROUPS},
        stream_by_threads=_by_threads(arena, rate["stream"]),
    )


def _by_threads(arena: Tensor, all_read: float) -> dict[str, float]:
    """Plain reads, bytes per second, by one thread, by half of them and by all."""
    cpu = cpu_kernels()
    count = cpu.threads()
    found = {str(count): all_read}
    for threads in {1, count // 2} - {0, count}:
        cpu.set_threads(threads)
        found[str(threads)] = max(arena.numel() / cpu.stream_read(arena) for _ in range(2))
    if len(found) > 1:
        cpu.set_threads(count)
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def _arena(size: int | None) -> Tensor:
    """Memory to read: written once, so that it is really there, with bytes that are harmless numbers in every
    format."""
    free = free_memory()
    asked, size = size, min(ARENA, free // 4) if size is None else size
    if asked is None and size < SMALLEST_ARENA:
        raise MemoryNeeded(
            f"measuring needs {4 * SMALLEST_ARENA / GB:.1f} GB of free memory, {free / GB:.1f} GB is free: "
            "close something"
        )
    arena = torch.empty(size // 4096 * 4096, dtype=torch.uint8)
    cpu_kernels().advise_huge(arena)
    return arena.fill_(0x11)


def _timings(arena: Tensor) -> Iterator[tuple[str, Callable[[], float]]]:
    """By name a function that reads about the whole arena and returns bytes per second."""
    cpu = cpu_kernels()
    yield "stream", lambda: arena.numel() / cpu.stream_read(arena)
    ops = kernels.load("cpu")
    for format in FORMATS.values():
        row = format.row_bytes(HIDDEN)
        matrix = Matrix(format, arena.numel() // row, HIDDEN, arena[: arena.numel() // row * row].view(-1, row))
        part = matrix.slice_rows(0, matrix.rows // 4)  # with more tokens it takes longer, and a cache still lacks it
        for tokens in BATCHES:
            yield f"linear {format.name} {tokens}", lambda m=part, n=tokens: _time_linear(ops, m, n)  # type: ignore[misc]
        layout = ExpertLayout(format=format, hidden=HIDDEN, width=WIDTH)
        count = arena.numel() // layout.bytes
        bank = ExpertBank(layout, arena[: count * layout.bytes].view(count, -1))
        yield f"linear {format.name}", lambda m=matrix: _time_linear(ops, m)  # type: ignore[misc]
        yield f"experts {format.name}", lambda b=bank: _time_experts(ops, b)  # type: ignore[misc]
    for group in GROUPS:
        yield f"attention {group}", lambda g=group: _time_attention(ops, arena, g)  # type: ignore[misc]


def _time_linear(ops: kernels.Ops, matrix: Matrix, tokens: int = 1) -> float:
    x = torch.randn(tokens, matrix.cols, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    ops.linear(x, matrix)
    return matrix.nbytes / (time.perf_counter() - start)


def _time_experts(ops: kernels.Ops, bank: ExpertBank) -> float:
    """Every expert once, top-k of them at a time in random order, as a decode step meets them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, HIDDEN, generator=generator)
    top_k = min(TOP_K, bank.experts)
    order = torch.randperm(bank.experts, generator=generator).to(torch.int32)
    calls = [ids.view(1, -1) for ids in order[: bank.experts // top_k * top_k].split(top_k)]
    weights = torch.full((1, top_k), 1.0 / top_k)
    start = time.perf_counter()
    for ids in calls:
        ops.experts(x, ids, weights, bank)
    return len(calls) * top_k * bank.layout.bytes / (time.perf_counter() - start)


def _time_attention(ops: kernels.Ops, arena: Tensor, group: int) -> float:
    """One token's attention to bf16 caches of `CONTEXT` tokens, layer after layer through the arena."""
    pages = CONTEXT // PAGE
    half = pages * KV_HEADS * PAGE * HEAD_DIM * 2
    layers = arena[: arena.numel() // (2 * half) * 2 * half].view(-1, 2, half).view(torch.bfloat16)
    q_TNd = torch.randn(1, group * KV_HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    table, starts, contexts = (
        torch.arange(pages, dtype=torch.int32).view(1, -1),
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([CONTEXT], dtype=torch.int32),
    )
    caches = layers.view(-1, 2, pages, KV_HEADS, PAGE, HEAD_DIM)
    start = time.perf_counter()
    for k_PGBd, v_PGBd in caches:
        ops.attention(q_TNd, k_PGBd, v_PGBd, table, starts, contexts, HEAD_DIM**-0.5)
    return caches.nbytes / (time.perf_counter() - start)
