"""What memory gives the real kernels: bytes a second by format and by tokens, and of attention by queries on a key.

A plain copy or read loop would not do: the kernel is what runs, and it reads slower or faster than a loop does. Memory
is read at rates that change within a second by a tenth and more where other guests use it too. So every kernel is timed
in many short samples, turn by turn, and the median of those counts that were taken at the machine's full pace
(`quiet_samples.py`): few long ones were off by a fifth. Each sample reads on where the one before ended, through more
memory than caches hold.
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from ... import kernels
from ...errors import MemoryNeeded
from ...kernels import FORMATS, ExpertLayout, Format
from ...kernels.context import Context
from ...kernels.isa import kernels_digest
from ...kernels.packed import ExpertBank, Matrix
from ...loaders.memory import GB, free_memory
from ..bandwidth_model.profile import FormatRates, Profile, cpu_name, hardware_key
from ..devices.host import cpu_kernels
from ..model.kv_cache import PAGE
from .other_load import Strangers, alone
from .quiet_samples import Pace, Sample, best, share, steady

ARENA = 2 << 30  # bytes that samples walk through: caches of shared hosts reach hundreds of megabytes
SMALLEST_ARENA = 256 << 20
ROUNDS = 25
ADDED_ROUNDS = 12
BY_THREADS_ROUNDS = 12
# Formats that every profile has; those of a model besides when it is run, of the others rates are estimated.
USUAL = ("f32", "f16", "bf16", "q8_0", "q4_0")
HIDDEN, WIDTH = 2048, 1024  # shape of the experts that are measured
PIECE, HALF = 192 << 20, 96 << 20  # bytes of a sample with one token, and with few; 192 MB are 7 ms at 30 GB/s
LINEAR_TOKENS = {4: 96 << 20, 16: 32 << 20, 64: 16 << 20, 256: 16 << 20}  # tokens of a matrix -> bytes of a sample
FEWEST, MOST = 4, 32  # experts of a call
EXPERT_TOKENS = (2, 4, 16, 64)  # tokens of an expert
KV_HEADS, HEAD_DIM, CONTEXT = 8, 128, 2048  # shape of the caches that are measured
CACHE_PIECE = 64 << 20
# Query heads on a key/value head x queries at once: one token without and with grouped queries, and a prompt.
QUERIES = ((1, 1), (8, 1), (8, 64))


class Kernel(NamedTuple):
    """A kernel over parts of the arena: `read` runs it from a byte on and returns how many bytes it read."""

    name: str
    read: Callable[[int], int]


def measure(
    context: Context, rounds: int = ROUNDS, arena_bytes: int | None = None, more: Collection[str] = ()
) -> Profile:
    """Measures this machine with the kernels in this context; about 0.4 s a round and up to 2 GB of memory. more:
    formats besides the usual ones, some 0.07 s a round each."""
    pace, formats = Pace(context), tuple(dict.fromkeys((*USUAL, *more)))
    arena = reserve(arena_bytes)
    all_kernels = [stream(context, arena), *_of_formats(context, arena, formats), *_of_attention(context, arena)]
    samples = sample(all_kernels, arena.numel(), rounds, pace)
    paces = [one.pace_s for many in samples.values() for one in many]
    rate = typical(samples, best(paces))
    rates = _by_format(rate, formats)
    return Profile(
        key=hardware_key(context),
        cpu=cpu_name(),
        isa=context.isa,
        threads=context.threads,
        memory_bytes=psutil.virtual_memory().total,
        date=datetime.date.today().isoformat(),
        stream=rate["stream"],
        linear=rates.linear,
        experts=rates.experts,
        batch=rates.batch,
        crowd=rates.crowd,
        attention={str(g * q): rate[f"attention {g} {q}"] for g, q in QUERIES},
        stream_by_threads=_by_threads(context, arena, rate["stream"]),
        pace_s=statistics.median(steady([Sample(s, s) for s in paces], best(paces))),
        undisturbed=share(paces, best(paces)),
        kernels=kernels_digest(),
    )


def measure_formats(context: Context, formats: Collection[str]) -> FormatRates:
    """The rates of these formats alone, to be added to a profile; a second each and up to 2 GB of memory."""
    others, pace, arena = Strangers(), Pace(context), reserve(None)
    samples = sample(list(_of_formats(context, arena, formats)), arena.numel(), ADDED_ROUNDS, pace)
    rate = typical(samples, best([one.pace_s for many in samples.values() for one in many]))
    return replace(_by_format(rate, formats), busy=others.cores())


def _by_format(rate: Mapping[str, float], formats: Collection[str]) -> FormatRates:
    return FormatRates(
        linear={name: rate[f"linear {name} 1"] for name in formats},
        experts={name: rate[f"experts {name} 1"] for name in formats},
        batch={str(n): {name: rate[f"linear {name} {n}"] for name in formats} for n in LINEAR_TOKENS},
        crowd={str(n): {name: rate[f"experts {name} {n}"] for name in formats} for n in EXPERT_TOKENS},
    )


def sample(many: list[Kernel], room: int, rounds: int, pace: Pace) -> dict[str, list[Sample]]:
    """Bytes a second of each kernel, round after round; a first round is not counted."""
    found: dict[str, list[Sample]] = {kernel.name: [] for kernel in many}
    at = 0

    def one_round() -> None:
        nonlocal at
        pace()
        for kernel in many:
            start = time.perf_counter()
            read = kernel.read(at)
            rate = read / (time.perf_counter() - start)
            found[kernel.name].append(Sample(rate, pace.since_before()))
            at = (at + read) % room

    def forget() -> None:
        for values in found.values():
            values.pop()

    one_round()
    forget()
    alone(rounds, one_round, forget)
    return found


def typical(samples: dict[str, list[Sample]], best_s: float) -> dict[str, float]:
    """The median of what was sampled undisturbed, by kernel."""
    return {name: statistics.median(steady(many, best_s)) for name, many in samples.items()}


def reserve(size: int | None = None) -> Tensor:
    """Memory to read: written once, so that it is really there, with bytes that are harmless numbers in every
    format. Raises MemoryNeeded."""
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


def _by_threads(context: Context, arena: Tensor, all_read: float) -> dict[str, float]:
    """Plain reads, bytes per second, by one thread, by half of them and by all."""
    count = context.threads
    found = {str(count): all_read}
    for threads in {1, count // 2} - {0, count}:
        few = replace(context, threads=threads)
        samples = sample([stream(few, arena)], arena.numel(), BY_THREADS_ROUNDS, Pace(few))
        found[str(threads)] = typical(samples, best([one.pace_s for one in samples["stream"]]))["stream"]
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def _of_formats(context: Context, arena: Tensor, formats: Collection[str]) -> Iterator[Kernel]:
    """Matrices and experts in these formats, with one token and with several."""
    ops = kernels.load("cpu", context)
    for format in (FORMATS[name] for name in formats):
        row = format.row_bytes(HIDDEN)
        matrix = Matrix(format, arena.numel() // row, HIDDEN, arena[: arena.numel() // row * row].view(-1, row))
        for tokens, piece in {1: PIECE, **LINEAR_TOKENS}.items():
            x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(0))
            yield Kernel(f"linear {format.name} {tokens}", partial(_read_rows, ops, matrix, x, piece))
        bank = bank_of(arena, format)
        for tokens in (1, *EXPERT_TOKENS):
            yield Kernel(f"experts {format.name} {tokens}", experts_reader(ops, bank, tokens))


def _of_attention(context: Context, arena: Tensor) -> Iterator[Kernel]:
    ops = kernels.load("cpu", context)
    for group, queries in QUERIES:
        piece = CACHE_PIECE if queries == 1 else 0
        yield Kernel(f"attention {group} {queries}", _caches_reader(ops, _caches(arena), group, queries, piece))


def stream(context: Context, arena: Tensor) -> Kernel:
    """A plain read by all threads."""
    cpu = cpu_kernels()

    def read(at: int) -> int:
        first = at if at + PIECE <= arena.numel() else 0
        part = arena[first : first + PIECE]
        cpu.stream_read(context, part)
        return part.numel()

    return Kernel("stream", read)


def _read_rows(ops: kernels.Ops, matrix: Matrix, x_TC: Tensor, piece: int, at: int) -> int:
    """A matrix of `piece` bytes times some tokens."""
    row = matrix.nbytes // matrix.rows
    count = min(matrix.rows, max(1, piece // row))
    first = min(at // row, matrix.rows - count)
    part = matrix.slice_rows(first, first + count)
    ops.linear(x_TC, part)
    return part.nbytes


def bank_of(arena: Tensor, format: Format) -> ExpertBank:
    layout = ExpertLayout(format=format, hidden=HIDDEN, width=WIDTH)
    count = arena.numel() // layout.bytes
    assert count > 1, f"{arena.numel()} bytes hold less than two experts"
    return ExpertBank(layout, arena[: count * layout.bytes].view(count, -1))


def experts_reader(ops: kernels.Ops, bank: ExpertBank, tokens: int) -> Callable[[int], int]:
    """A reader by calls of up to MOST experts, each for so many tokens; with one, until a piece is read. Calls are
    large, since what a call costs besides is counted with the layers (`bench/overhead.py`); experts lie far apart, as
    those of a router do."""
    size, piece = bank.layout.bytes, PIECE if tokens == 1 else 0
    count = min(bank.experts, max(FEWEST, min(MOST, (piece or HALF) // size)))
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(0))
    weights = torch.full((tokens, count), 1.0 / count)
    order = torch.arange(count) * max(1, bank.experts // count)
    calls = [((order + i) % bank.experts).int().expand(tokens, -1).contiguous() for i in range(bank.experts)]

    def read(at: int) -> int:
        first, done = at // size, 0
        while done == 0 or done < piece:
            ops.experts(x, calls[first % bank.experts], weights, bank)
            first, done = first + 1, done + count * size
        return done

    return read


def _caches(arena: Tensor) -> Tensor:
    """bf16 keys and values of many layers: [layers, 2, pages, heads, PAGE, head_dim]."""
    pages = CONTEXT // PAGE
    size = 2 * pages * KV_HEADS * PAGE * HEAD_DIM * 2
    layers = arena[: arena.numel() // size * size].view(torch.bfloat16)
    return layers.view(-1, 2, pages, KV_HEADS, PAGE, HEAD_DIM)


def _caches_reader(ops: kernels.Ops, caches: Tensor, group: int, queries: int, piece: int) -> Callable[[int], int]:
    """A reader by attention of the last tokens to caches of `CONTEXT` tokens, layer after layer."""
    q_TNd = torch.randn(queries, group * KV_HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    table = torch.arange(CONTEXT // PAGE, dtype=torch.int32).view(1, -1)
    starts = torch.tensor([0, queries], dtype=torch.int32)
    contexts = torch.tensor([CONTEXT], dtype=torch.int32)
    size = caches[0].nbytes

    def read(at: int) -> int:
        first, done = at // size, 0
        while done == 0 or done < min(piece, caches.nbytes):
            k_PGBd, v_PGBd = caches[first % len(caches)]
            ops.attention(q_TNd, k_PGBd, v_PGBd, table, starts, contexts, HEAD_DIM**-0.5)
            first, done = first + 1, done + size
        return done

    return read
