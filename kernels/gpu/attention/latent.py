"""Attention over latents: all heads read the same keys, and a value is the first part of its key, read once for both.

A key is long (512 numbers, and 64 that are rotated), so a tile is of HEADS heads of one token, and products are of its
two parts. A program has a part of what the token sees, as in decode; where there are more tokens than sequences each
has one program for all of it, and finds its sequence from the starts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import launch
from ..cores.sequences import sequence_of
from ..kernel import kernel
from .asked import Asked
from .cache_rows import load_rows
from .merge import LEAST, Parts, part_length, parts_of, seen_of
from .softmax import halves, row_of, weigh

HEADS = 16  # of a program
KEYS = {"bf16": 32, "f32": 16}  # of one step
CHUNK = 64  # of a product with a float32 cache: whole, its operands would take all registers; so it is read repeatedly


@triton.jit
def keys_of(
    token, sequence, starts_ptr, contexts_ptr,
    SEQUENCES: tl.constexpr, WINDOW: tl.constexpr, KEYS: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """The keys [first, last) of a program: a part of what its token sees, or all of it."""
    context = tl.load(contexts_ptr + sequence)
    if SEQUENCES > 0:
        context += token + 1 - tl.load(starts_ptr + sequence + 1)  # up to this token
    seen = seen_of(context, WINDOW, 0)
    length = seen
    if SEQUENCES == 0:
        length = part_length(seen, tl.num_programs(1), LEAST, KEYS)
    first = context - seen + tl.program_id(1) * length
    return first, tl.minimum(first + length, context)


@triton.jit
def tile(rows, at, rows_ok, ok):
    """Numbers `at` of rows [n, 1], where both are there."""
    return tl.load(rows + at[None, :], mask=rows_ok[:, None] & ok[None, :], other=0.0)


@triton.jit
def in_chunks(
    q_rows, k_ptr, k_scales_ptr, place, there, ok, scores, scale, size,
    PAGE: tl.constexpr, VALUE: tl.constexpr, CHUNK: tl.constexpr, SHARED: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """scores + the products of the first VALUE numbers of queries and keys, CHUNK at a time."""
    for number in tl.static_range((VALUE + CHUNK - 1) // CHUNK):
        first = number * CHUNK
        piece = first + tl.arange(0, CHUNK)
        q = tile(q_rows, piece, there, piece < VALUE) * scale
        k = load_rows(k_ptr, k_scales_ptr, place, ok, first, VALUE, size, PAGE, CHUNK, SHARED, PRODUCT)
        scores = halves(q, tl.trans(k), scores, PRODUCT, True)
    return scores


@kernel("table_stride", "sequences")
def _latent(
    q_ptr, k_ptr, k_scales_ptr, tables_ptr, starts_ptr, contexts_ptr, acc_ptr, best_ptr, total_ptr, q_stride,
    table_stride, sequences, n_heads, size, scale,
    PAGE: tl.constexpr, HEADS: tl.constexpr, VALUE: tl.constexpr, V_SIZE: tl.constexpr, REST: tl.constexpr,
    WINDOW: tl.constexpr, KEYS: tl.constexpr, LEAST: tl.constexpr, SEQUENCES: tl.constexpr, CHUNK: tl.constexpr,
    SHARED: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """VALUE numbers of a key are a value, REST places hold the others. SEQUENCES 0: a token of each sequence, in parts;
    else acc is what comes out. CHUNK 0: V_SIZE places hold a value; else a program has CHUNK numbers of each value, and
    queries and keys are multiplied so many at a time."""
    blocks = tl.cdiv(n_heads, HEADS)
    token = tl.program_id(0) // blocks
    sequence = sequence_of(token, starts_ptr, sequences, SEQUENCES)
    first, last = keys_of(token, sequence, starts_ptr, contexts_ptr, SEQUENCES, WINDOW, KEYS, LEAST)
    head = tl.program_id(0) % blocks * HEADS + tl.arange(0, HEADS)
    there = head < n_heads
    dims, rest = tl.program_id(2) * V_SIZE + tl.arange(0, V_SIZE), tl.arange(0, REST)
    own_ok, rest_ok = dims < VALUE, rest < size - VALUE
    if first < last:
        q_rows = q_ptr + token.to(tl.int64) * q_stride + head[:, None] * size
        if CHUNK == 0:
            q = tile(q_rows, dims, there, own_ok) * scale
        q_rest = tile(q_rows + VALUE, rest, there, rest_ok) * scale
        best = tl.full([HEADS], float("-inf"), tl.float32)
        total = tl.zeros([HEADS], tl.float32)
        acc = tl.zeros([HEADS, V_SIZE], tl.float32)
        table = tables_ptr + sequence * table_stride
        for start in range(first, last, KEYS):
            positions, ok = start + tl.arange(0, KEYS), start + tl.arange(0, KEYS) < last
            place, own = row_of(table, positions, ok, 0, 1, PAGE), tl.program_id(2) * V_SIZE
            k = load_rows(k_ptr, k_scales_ptr, place, ok, own, VALUE, size, PAGE, V_SIZE, SHARED, PRODUCT)
            k_rest = load_rows(k_ptr, k_scales_ptr, place, ok, VALUE, size, size, PAGE, REST, SHARED, PRODUCT)
            scores = halves(q_rest, tl.trans(k_rest), tl.zeros([HEADS, KEYS], tl.float32), PRODUCT, True)
            if CHUNK == 0:
                scores = halves(q, tl.trans(k), scores, PRODUCT, True)
            else:
                scores = in_chunks(
                    q_rows, k_ptr, k_scales_ptr, place, there, ok, scores, scale, size, PAGE, VALUE, CHUNK, SHARED,
                    PRODUCT,
                )  # fmt: skip
            best, old, p = weigh(best, tl.where(ok[None, :], scores, float("-inf")), False)
            acc = halves(p, k, acc * old[:, None], PRODUCT, True)
            total = total * old + tl.sum(p, axis=1)
        out = ((token * n_heads + head) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
        if SEQUENCES > 0:
            acc /= total[:, None]
        else:
            tl.store(best_ptr + out, best, mask=there)
            tl.store(total_ptr + out, total, mask=there)
        tl.store(acc_ptr + out[:, None] * VALUE + dims[None, :], acc, mask=there[:, None] & own_ok[None, :])


def latent(it: Asked) -> None:
    """Writes the attention of tokens over latents."""
    assert it.G == 1, f"latents of {it.G} groups"
    assert it.sinks is None, "sinks beside latents"
    blocks, keys, is_decode = launch.cdiv(it.N, HEADS), KEYS[it.kind], it.T == it.S
    parts = parts_of(it.S, blocks, it.most_seen, it.q.device) if is_decode else 1
    chunk = CHUNK if it.k.codes.dtype == torch.float32 else 0  # also where all products are of float32
    found = Parts(it.q, it.v, parts) if is_decode else None
    into = (it.out, it.out, it.out) if found is None else found.tensors
    warps = 8 if it.shared else 4  # codes are widened on the way, which takes registers
    _latent[(it.T * blocks, parts, launch.cdiv(it.v, chunk) if chunk else 1)](
        it.q, *it.k, it.tables, it.starts, it.contexts, *into, it.q_stride, it.M, it.S, it.N, it.d, it.scale,
        PAGE=it.page, HEADS=HEADS, VALUE=it.v, V_SIZE=chunk or launch.pow2(it.v, 16), REST=launch.pow2(it.d - it.v, 16),
        WINDOW=it.window, KEYS=keys, LEAST=LEAST, SEQUENCES=0 if is_decode else launch.places(it.S), CHUNK=chunk,
        SHARED=it.shared, PRODUCT=it.kind, num_warps=warps, num_stages=2 if chunk == 0 else 1,
    )  # fmt: skip
    if found is not None:
        found.merge(it, keys)
