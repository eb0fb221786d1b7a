"""The two cores that every product with packed weights uses, whatever the format: few tokens, and many.

    row_dots   y[r] = w[r] . x             one token: float32 arithmetic, each weight read once, in 16-byte loads
    multiply   y[m, r] = w[r] . x[m]       a tile of tokens on tensor cores

Rows come as offsets or pointers, so that a caller may mix the rows of several matrices (gate and up).

One token is a matter of bytes, and of how fast instructions are issued: a thread has one granule (`unpack.py`) of
several rows, and multiplies it with activations that it loads as the four values that its words need. So no activation
moves between threads, every product is one fused multiply-add, and a scale costs one multiplication for 16 or 32
weights. For that GRANULES is 32 for each warp. Block formats come as int32 words, their offsets are in bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .unpack import column, decode, decode_word, scale_of


@triton.jit
def four(t, ROWS: tl.constexpr, GRANULES: tl.constexpr):
    """t [ROWS, GRANULES, 4] as four tensors [ROWS, GRANULES]; a thread that has all four moves nothing."""
    even, odd = tl.split(tl.reshape(t, [ROWS, GRANULES, 2, 2]))
    t0, t2 = tl.split(even)
    t1, t3 = tl.split(odd)
    return t0, t1, t2, t3


@triton.jit
def repeat(t, ROWS: tl.constexpr, GRANULES: tl.constexpr, WIDTH: tl.constexpr):
    """t [ROWS or 1, GRANULES or 1] as [ROWS, GRANULES * WIDTH], every value WIDTH times."""
    return tl.reshape(tl.broadcast_to(t[:, :, None], [ROWS, GRANULES, WIDTH]), [ROWS, GRANULES * WIDTH])


@triton.jit
def load_granules(
    w_ptr, places, here, left,
    ROWS: tl.constexpr, GRANULES: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """WIDTH elements from each of the places [ROWS, GRANULES] that are `here`: [ROWS, GRANULES, WIDTH].

    WHOLE says that places are multiples of WIDTH and that no row ends within a granule; the hints then make a granule
    one load of 16 bytes, which the compiler cannot see through a reshape. Else a row ends after `left` [GRANULES].
    In two dimensions, since Triton 3.6 gives threads parts of several granules where there are three, and sends every
    weight through shared memory to mend it.
    """
    j = tl.arange(0, GRANULES * WIDTH)[None, :] % WIDTH
    at = repeat(places, ROWS, GRANULES, WIDTH) + j
    mask = repeat(here.to(tl.int32), ROWS, GRANULES, WIDTH) != 0
    if WHOLE:
        at = tl.max_contiguous(tl.multiple_of(at, [1, WIDTH]), [1, WIDTH])
        mask = tl.max_constancy(mask, [1, WIDTH])
    else:
        mask = mask & (j < repeat(left[None, :], 1, GRANULES, WIDTH))
    w = tl.load(w_ptr + at, mask=mask, other=0, eviction_policy="evict_first")
    return tl.reshape(w, [ROWS, GRANULES, WIDTH])


@triton.jit
def load_scales(s_ptr, at, here, ROWS: tl.constexpr, GRANULES: tl.constexpr):
    """A scale for each place [ROWS, GRANULES] in the thread that has the granule: in one dimension, where neighbours
    in memory are not gathered into one thread, to be dealt out again through shared memory."""
    at, here = tl.reshape(at, [ROWS * GRANULES]), tl.reshape(here, [ROWS * GRANULES])
    return tl.reshape(tl.load(s_ptr + at, mask=here, other=0), [ROWS, GRANULES]).to(tl.float32)


@triton.jit
def four_of_x(x_ptr, x_at, ok, left, GRANULES: tl.constexpr):
    """Four neighbouring activations for each granule, where fewer than `left` are left: four tensors [1, GRANULES]."""
    j = tl.arange(0, 4)[None, None, :]
    x = tl.load(x_ptr + x_at[None, :, None] + j, mask=ok[None, :, None] & (j < left[None, :, None]), other=0.0)
    return four(x, 1, GRANULES)


@triton.jit
def add_word(sums, word, x_ptr, x_at, ok, PLANE: tl.constexpr, FORMAT: tl.constexpr, GRANULES: tl.constexpr):
    """sums + one plane of a word's four bytes times four activations."""
    x0, x1, x2, x3 = four_of_x(x_ptr, x_at, ok, tl.full([GRANULES], 4, tl.int32), GRANULES)
    sums += decode_word(word, 0, PLANE, FORMAT) * x0
    sums += decode_word(word, 1, PLANE, FORMAT) * x1
    sums += decode_word(word, 2, PLANE, FORMAT) * x2
    sums += decode_word(word, 3, PLANE, FORMAT) * x3
    return sums


@triton.jit
def add_plain(sums, w, x_ptr, x_at, ok, left, ROWS: tl.constexpr, GRANULES: tl.constexpr):
    """sums + four plain weights w [ROWS, GRANULES, 4] times four activations."""
    x0, x1, x2, x3 = four_of_x(x_ptr, x_at, ok, left, GRANULES)
    w0, w1, w2, w3 = four(w, ROWS, GRANULES)
    return sums + w0.to(tl.float32) * x0 + w1.to(tl.float32) * x1 + w2.to(tl.float32) * x2 + w3.to(tl.float32) * x3


@triton.jit
def granule_dots(
    x_ptr, x_at, w_ptr, s_ptr, places, granule, ok, rows_ok, elements,
    WIDTH: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, ROWS: tl.constexpr, GRANULES: tl.constexpr,
):  # fmt: skip
    """Dot products of one granule of ROWS rows with activations: float32 [ROWS, GRANULES].

    places [ROWS or 1, GRANULES or 1] are the offsets of the rows, granule [GRANULES] which one of its row each is,
    x_at [GRANULES] where its row's activations begin; ok [GRANULES] and rows_ok [ROWS] which of them exist. A granule
    has WIDTH elements; WHOLE: every row is a whole number of them, and begins at one.
    """
    SCALED: tl.constexpr = FORMAT == "q4_0" or FORMAT == "q8_0"
    sums = tl.zeros([ROWS, GRANULES], tl.float32)
    here = rows_ok[:, None] & ok[None, :]
    left = elements - granule * WIDTH
    if SCALED:
        words = load_granules(w_ptr, places // 16 * 4 + granule[None, :] * 4, here, left, ROWS, GRANULES, 4, WHOLE)
        scale = load_scales(s_ptr, places // 16 * 8 + scale_of(granule, FORMAT)[None, :], here, ROWS, GRANULES)
        w0, w1, w2, w3 = four(words, ROWS, GRANULES)
        at = x_at + column(granule * 16, 0, FORMAT)
        for plane in tl.static_range(2 if FORMAT == "q4_0" else 1):
            sums = add_word(sums, w0, x_ptr, at + 16 * plane, ok, plane, FORMAT, GRANULES)
            sums = add_word(sums, w1, x_ptr, at + 16 * plane + 4, ok, plane, FORMAT, GRANULES)
            sums = add_word(sums, w2, x_ptr, at + 16 * plane + 8, ok, plane, FORMAT, GRANULES)
            sums = add_word(sums, w3, x_ptr, at + 16 * plane + 12, ok, plane, FORMAT, GRANULES)
        sums *= scale
    else:
        w = load_granules(w_ptr, places + (granule * WIDTH)[None, :], here, left, ROWS, GRANULES, WIDTH, WHOLE)
        at = x_at + granule * WIDTH
        if WIDTH == 4:
            sums = add_plain(sums, w, x_ptr, at, ok, left, ROWS, GRANULES)
        else:
            low, high = tl.split(tl.permute(tl.reshape(w, [ROWS, GRANULES, 2, 4]), (0, 1, 3, 2)))
            sums = add_plain(sums, low, x_ptr, at, ok, left, ROWS, GRANULES)
            sums = add_plain(sums, high, x_ptr, at + 4, ok, left - 4, ROWS, GRANULES)
    return sums


@triton.jit
def row_dots(
    x_ptr, w_ptr, s_ptr, rows, rows_ok, elements,
    WIDTH: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, ROWS: tl.constexpr, GRANULES: tl.constexpr,
):  # fmt: skip
    """Dot products of packed rows, at offsets `rows` [ROWS], with one float32 vector: float32 [ROWS]."""
    sums = tl.zeros([ROWS, GRANULES], tl.float32)
    for first in range(0, elements, GRANULES * WIDTH):
        granule = first // WIDTH + tl.arange(0, GRANULES)
        sums += granule_dots(
            x_ptr, granule * 0, w_ptr, s_ptr, rows[:, None], granule, granule * WIDTH < elements, rows_ok, elements,
            WIDTH, WHOLE, FORMAT, ROWS, GRANULES,
        )  # fmt: skip
    return tl.sum(sums, axis=1)


@triton.jit
def product(a, b, sums, PRODUCT: tl.constexpr):
    """sums + a @ b, of bf16 or float32 operands."""
    if PRODUCT == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), sums)
    return tl.dot(a.to(tl.float32), b.to(tl.float32), sums, input_precision="tf32x3")


@triton.jit
def multiply(
    x_rows, x_ok, w_rows, s_rows, rows_ok, elements,
    EVEN: tl.constexpr, FORMAT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
    PRODUCT: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of activations times BLOCK_N packed rows: float32 [BLOCK_M, BLOCK_N]; BLOCK_E elements at a time.

    EVEN: a row is a whole number of such steps. Masks then say nothing about columns, and scales, whose loads are
    short, are fetched ahead as the rest is.
    """
    SCALED: tl.constexpr = FORMAT == "q4_0" or FORMAT == "q8_0"
    PLANES: tl.constexpr = 2 if FORMAT == "q4_0" else 1
    SIZE: tl.constexpr = 32 // PLANES  # bytes that share a scale
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, elements, BLOCK_E):
        e = first + tl.arange(0, BLOCK_E)
        ok = (e < elements) | EVEN
        x_mask = x_ok[:, None] & ok[None, :]
        if SCALED:
            block = first // SIZE + tl.arange(0, BLOCK_E // SIZE)
            bytes_ = block[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
            here = rows_ok[:, None] & ((block * SIZE < elements) | EVEN)[None, :]
            raw = tl.load(w_rows[:, None, None] + bytes_[None, :, :], mask=here[:, :, None], other=0)
            scale = tl.load(s_rows[:, None] + block[None, :], mask=here, other=0).to(tl.float32)
            for plane in tl.static_range(PLANES):
                w = tl.reshape(decode(raw, plane, FORMAT) * scale[:, :, None], [BLOCK_N, BLOCK_E])
                x = tl.load(x_rows[:, None] + column(e, plane, FORMAT)[None, :], mask=x_mask, other=0.0)
                sums = product(x, tl.trans(w), sums, PRODUCT)
        else:
            w = tl.load(w_rows[:, None] + e[None, :], mask=rows_ok[:, None] & ok[None, :], other=0.0)
            x = tl.load(x_rows[:, None] + e[None, :], mask=x_mask, other=0.0)
            sums = product(x, tl.trans(w), sums, PRODUCT)
    return sums
