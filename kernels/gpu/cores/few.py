"""The core of products with one token where `skinny` is not for it (float32, f16, codes in two planes or of 2 bits):
y[r] = w[r] . x, float32 arithmetic, each weight read once, in 16-byte loads.

Rows come as offsets, so that a caller may mix the rows of several matrices (gate and up).

One token is a matter of bytes, and of how fast instructions are issued: a thread has one granule of several rows, 16
bytes of plain weights or of the plane with the lower bits of codes, and multiplies it with activations that it loads as
the four values that its words need. So no activation moves between threads, every product is one fused multiply-add,
and scales cost one multiplication for each run of weights that share them. A minimum is multiplied by the sum of its
activations, which all rows share. For that GRANULES is 32 for each warp. Block formats come as int32 words.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .codes import joined, not_numbers, value
from .constants import about, block_of_run, runs_of
from .places import planes
from .scales import fetch, scales


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
def four_of_x(x_ptr, x_at, ok, left, GRANULES: tl.constexpr):
    """Four neighbouring activations for each granule, where fewer than `left` are left: four tensors [1, GRANULES].
    x_ptr may be a residual stream as well (`normed/`): x and its norm's weights, and an update with its factor."""
    j = tl.arange(0, 4)[None, None, :]
    at, mask = x_at[None, :, None] + j, ok[None, :, None] & (j < left[None, :, None])
    if isinstance(x_ptr, tl.tensor):
        x = tl.load(x_ptr + at, mask=mask, other=0.0)
    else:
        x = tl.load(x_ptr[0] + at, mask=mask, other=0.0)
        if len(x_ptr) > 2:
            x += tl.load(x_ptr[2] + at, mask=mask, other=0.0) * x_ptr[3]
        x *= tl.load(x_ptr[1] + at, mask=mask, other=0.0)
    return four(x, 1, GRANULES)


@triton.jit
def add_plain(sums, w, x_ptr, x_at, ok, left, ROWS: tl.constexpr, GRANULES: tl.constexpr):
    """sums + four plain weights w [ROWS, GRANULES, 4] times four activations."""
    x0, x1, x2, x3 = four_of_x(x_ptr, x_at, ok, left, GRANULES)
    w0, w1, w2, w3 = four(w, ROWS, GRANULES)
    return sums + w0.to(tl.float32) * x0 + w1.to(tl.float32) * x1 + w2.to(tl.float32) * x2 + w3.to(tl.float32) * x3


@triton.jit
def plain_dots(
    x_ptr, x_at, w_ptr, places, granule, ok, here, cols,
    WIDTH: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, GRANULES: tl.constexpr,
):  # fmt: skip
    """`granule_dots` of plain weights."""
    sums = tl.zeros([ROWS, GRANULES], tl.float32)
    left = cols - granule * WIDTH
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
def load_words(
    w_ptr, places, here, ROWS: tl.constexpr, GRANULES: tl.constexpr, COUNT: tl.constexpr, WHOLE: tl.constexpr
):  # fmt: skip
    """COUNT words (4, 2 or 1) from each of the places [ROWS, GRANULES]: so many tensors [ROWS, GRANULES]."""
    if COUNT == 1:
        return (fetch(w_ptr, places, here, True),)
    else:
        words = load_granules(w_ptr, places, here, tl.full([GRANULES], COUNT, tl.int32), ROWS, GRANULES, COUNT, WHOLE)
        if COUNT == 2:
            return tl.split(words)
        else:
            return four(words, ROWS, GRANULES)


@triton.jit
def four_values(low, high, QUAD: tl.constexpr, FORMAT: tl.constexpr):
    """The values of the four weights that are number QUAD of a granule, of which these are the words."""
    LOW: tl.constexpr = about(FORMAT, "low")
    HIGH: tl.constexpr = about(FORMAT, "high")
    BLOCK: tl.constexpr = 0 if LOW == 8 else QUAD // 8
    IN_BLOCK: tl.constexpr = QUAD if LOW == 8 else QUAD % 8
    FIELD: tl.constexpr = IN_BLOCK // LOW
    word = low[BLOCK * LOW + IN_BLOCK % LOW]
    BIT: tl.constexpr = 0 if HIGH > 0 else LOW * FIELD
    if HIGH > 0:
        word = joined(word, high[BLOCK * HIGH + IN_BLOCK % HIGH], FIELD, IN_BLOCK // HIGH, FORMAT)
    return (
        value(word, BIT, FORMAT), value(word, 8 + BIT, FORMAT), value(word, 16 + BIT, FORMAT),
        value(word, 24 + BIT, FORMAT),
    )  # fmt: skip


@triton.jit
def run_dots(
    x_ptr, x_at, low, high, ok, RUN: tl.constexpr, QUADS: tl.constexpr, FORMAT: tl.constexpr,
    ROWS: tl.constexpr, GRANULES: tl.constexpr,
):  # fmt: skip
    """Of weights that share a factor, number RUN of a granule: the products' sum [ROWS, GRANULES], and the sum of the
    activations [1, GRANULES]."""
    sums, all_x = tl.zeros([ROWS, GRANULES], tl.float32), tl.zeros([1, GRANULES], tl.float32)
    full = tl.full([GRANULES], 4, tl.int32)
    for quad in tl.static_range(RUN * QUADS, RUN * QUADS + QUADS):
        x0, x1, x2, x3 = four_of_x(x_ptr, x_at + 4 * quad, ok, full, GRANULES)
        w0, w1, w2, w3 = four_values(low, high, quad, FORMAT)
        sums += w0 * x0
        sums += w1 * x1
        sums += w2 * x2
        sums += w3 * x3
        all_x += (x0 + x1) + (x2 + x3)
    return sums, all_x


@triton.jit
def block_dots(
    x_ptr, x_at, w_ptr, s_ptr, places, granule, ok, here, cols,
    WIDTH: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, ROWS: tl.constexpr, GRANULES: tl.constexpr,
):  # fmt: skip
    """`granule_dots` of a block format; places are in bytes."""
    RUNS: tl.constexpr = runs_of(FORMAT)
    HIGH_WORDS: tl.constexpr = about(FORMAT, "high") * WIDTH // 32
    first, blocks = granule * WIDTH // 32, cols // 32
    words = places // 16 * 4 if WHOLE else places // 4
    at_low, at_high = planes(first, blocks, FORMAT)
    if WIDTH == 16:
        at_low = granule * 4
    low = load_words(w_ptr, words + at_low[None, :], here, ROWS, GRANULES, 4, WHOLE)
    high = low
    if HIGH_WORDS > 0:
        high = load_words(w_ptr, words + at_high[None, :], here, ROWS, GRANULES, HIGH_WORDS, WHOLE)
    total = tl.zeros([ROWS, GRANULES], tl.float32)
    for run in tl.static_range(RUNS):
        block = (first + block_of_run(FORMAT, run)[0])[None, :]
        half = block_of_run(FORMAT, run)[1]
        factor, least = scales(s_ptr, places, block, blocks, half, block, here, here, FORMAT, WHOLE, True)
        sums, all_x = run_dots(
            x_ptr, x_at + granule * WIDTH, low, high, ok, run, WIDTH // 4 // RUNS, FORMAT, ROWS, GRANULES
        )
        total += sums * factor
        if about(FORMAT, "minimums"):
            total += least * all_x
    if about(FORMAT, "values") == "e4m3":
        bad = not_numbers(low[0]) | not_numbers(low[1]) | not_numbers(low[2]) | not_numbers(low[3])
        total = tl.where(bad == 0, total, float("nan"))
    return total


@triton.jit
def granule_dots(
    x_ptr, x_at, w_ptr, s_ptr, places, granule, ok, rows_ok, cols,
    WIDTH: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, ROWS: tl.constexpr, GRANULES: tl.constexpr,
):  # fmt: skip
    """Dot products of one granule of ROWS rows with activations: float32 [ROWS, GRANULES].

    places [ROWS or 1, GRANULES or 1] are the offsets of the rows, granule [GRANULES] which one of its row each is,
    x_at [GRANULES] where its row's activations begin; ok [GRANULES] and rows_ok [ROWS] which of them exist. A granule
    has WIDTH weights; WHOLE: every row is a whole number of them, and begins at one.
    """
    here = rows_ok[:, None] & ok[None, :]
    if about(FORMAT, "block"):
        return block_dots(
            x_ptr, x_at, w_ptr, s_ptr, places, granule, ok, here, cols, WIDTH, WHOLE, FORMAT, ROWS, GRANULES
        )
    else:
        return plain_dots(x_ptr, x_at, w_ptr, places, granule, ok, here, cols, WIDTH, WHOLE, ROWS, GRANULES)


@triton.jit
def row_dots(
    x_ptr, w_ptr, s_ptr, rows, rows_ok, cols,
    WIDTH: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, ROWS: tl.constexpr, GRANULES: tl.constexpr,
):  # fmt: skip
    """Dot products of packed rows, at offsets `rows` [ROWS], with one float32 vector: float32 [ROWS]."""
    sums = tl.zeros([ROWS, GRANULES], tl.float32)
    for first in range(0, cols, GRANULES * WIDTH):
        granule = first // WIDTH + tl.arange(0, GRANULES)
        sums += granule_dots(
            x_ptr, granule * 0, w_ptr, s_ptr, rows[:, None], granule, granule * WIDTH < cols, rows_ok, cols,
            WIDTH, WHOLE, FORMAT, ROWS, GRANULES,
        )  # fmt: skip
    return tl.sum(sums, axis=1)
