"""One step of attention over a block of keys, with the softmax kept as a running maximum and a running sum.

    m' = max(m, max s);  l' = l exp2(m - m') + sum exp2(s - m');  acc' = acc exp2(m - m') + exp2(s - m') v

Scores come in units of log2(e), so that exp2 serves. Source: online softmax, arXiv 1805.02867; tiles of it, arXiv
2205.14135. Keys lie in pages; a position's page number is read from the sequence's table.

Queries and probabilities are float32. Products on tensor cores take them as bf16: one rounding where there are many
queries, and the sum of two bf16 values, good to 2^-17, where there are few and the cache's bytes are what counts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..cores.many import product


@triton.jit
def halves(a, b, sums, PRODUCT: tl.constexpr, EXACT: tl.constexpr):
    """sums + a @ b; with EXACT bf16 products take `a` in two parts."""
    sums = product(a, b, sums, PRODUCT)
    if EXACT and PRODUCT == "bf16":
        sums = product(a - a.to(tl.bfloat16).to(tl.float32), b, sums, PRODUCT)
    return sums


@triton.jit
def attend(
    q, best, total, acc, k_ptr, v_ptr, table_ptr, positions, visible, key_ok, group, groups, size, dims,
    PAGE: tl.constexpr, PRODUCT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The state after the keys at `positions` [n]; `key_ok` [n] are in the cache, `visible` [m or 1, n] may be seen."""
    page = tl.load(table_ptr + positions // PAGE, mask=key_ok, other=0).to(tl.int64)
    rows = ((page * groups + group) * PAGE + positions % PAGE) * size
    mask = key_ok[:, None] & (dims < size)[None, :]
    k = tl.load(k_ptr + rows[:, None] + dims[None, :], mask=mask, other=0.0)
    scores = halves(q, tl.trans(k), tl.zeros([q.shape[0], positions.shape[0]], tl.float32), PRODUCT, EXACT)
    scores = tl.where(visible, scores, float("-inf"))
    new = tl.maximum(best, tl.max(scores, axis=1))
    old = tl.exp2(best - new)
    p = tl.exp2(scores - new[:, None])
    v = tl.load(v_ptr + rows[:, None] + dims[None, :], mask=mask, other=0.0)
    acc = halves(p, v, acc * old[:, None], PRODUCT, EXACT)
    return new, total * old + tl.sum(p, axis=1), acc
