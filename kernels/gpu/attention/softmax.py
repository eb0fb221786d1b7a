"""One step of attention over a block of keys, with the softmax kept as a running maximum and a running sum.

    m' = max(m, max s);  l' = l exp2(m - m') + sum exp2(s - m');  acc' = acc exp2(m - m') + exp2(s - m') v

Scores come in units of log2(e), so that exp2 serves. Source: online softmax, arXiv 1805.02867; tiles of it, arXiv
2205.14135. Keys lie in pages; a position's page number is read from the sequence's table.

Queries and probabilities are float32. Products on tensor cores take them as bf16: one rounding where there are many
queries, and the sum of two bf16 values, good to 2^-17, where there are few and the cache's bytes are what counts.

A key that a query does not see has the weight 0, by which its value is multiplied: one that is none or infinite, as of
a damaged model, spoils all queries of its tile, other tokens of its sequence (never those of another one). On the CPU
it does not (`kernels/cpu/cores/attend/attend.h`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..cores.many import product
from .cache_rows import load_rows


@triton.jit
def halves(a, b, sums, PRODUCT: tl.constexpr, EXACT: tl.constexpr):
    """sums + a @ b; with EXACT bf16 products take `a` in two parts."""
    sums = product(a, b, sums, PRODUCT)
    if EXACT and PRODUCT == "bf16":
        sums = product(a - a.to(tl.bfloat16).to(tl.float32), b, sums, PRODUCT)
    return sums


@triton.jit
def row_of(table_ptr, positions, key_ok, group, groups, PAGE: tl.constexpr):
    """Which row of the cache has the key at each position of a sequence, of one group's: int64."""
    page = tl.load(table_ptr + positions // PAGE, mask=key_ok, other=0).to(tl.int64)
    return (page * groups + group) * PAGE + positions % PAGE


@triton.jit
def weigh(best, scores, SOME_SEE_NONE: tl.constexpr):
    """The maximum with these scores, what the sums so far are worth beside it, and the weights of the scores."""
    new = tl.maximum(best, tl.max(scores, axis=1))
    least = new
    if SOME_SEE_NONE:  # -inf less -inf is no number
        least = tl.where(new == float("-inf"), 0.0, new)
    return new, tl.exp2(best - least), tl.exp2(scores - least[:, None])


@triton.jit
def with_sink(best, total, sink):
    """The sum of weights with a sink's, which has no value; and what the sums of values are worth beside it."""
    sink *= 1.4426950408889634
    new = tl.maximum(best, sink)
    kept = tl.exp2(best - new)
    return total * kept + tl.exp2(sink - new), kept


@triton.jit
def attend(
    q, best, total, acc, k_ptr, k_scales_ptr, v_ptr, v_scales_ptr, table_ptr, positions, visible, key_ok, group, groups,
    size, v_size, PAGE: tl.constexpr, PRODUCT: tl.constexpr, EXACT: tl.constexpr, SOME_SEE_NONE: tl.constexpr,
    SIZE: tl.constexpr, V_SIZE: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """The state after the keys at `positions` [n]; `key_ok` [n] are in the cache, `visible` [m or 1, n] may be seen.
    SOME_SEE_NONE: there may be rows that have seen no key yet. SHARED: as in `load_rows`."""
    place = row_of(table_ptr, positions, key_ok, group, groups, PAGE)
    k = load_rows(k_ptr, k_scales_ptr, place, key_ok, 0, size, size, PAGE, SIZE, SHARED, PRODUCT)
    scores = halves(q, tl.trans(k), tl.zeros([q.shape[0], positions.shape[0]], tl.float32), PRODUCT, EXACT)
    new, old, p = weigh(best, tl.where(visible, scores, float("-inf")), SOME_SEE_NONE)
    v = load_rows(v_ptr, v_scales_ptr, place, key_ok, 0, v_size, v_size, PAGE, V_SIZE, SHARED, PRODUCT)
    acc = halves(p, v, acc * old[:, None], PRODUCT, EXACT)
    return new, total * old + tl.sum(p, axis=1), acc
