"""A token's heads made ready as they are read: norm, clip, rotation; and its key and value as rows of the cache, which
the program that writes them goes on with, so that nobody waits until they are there.

`qkv.py` does the same in place, for passes whose queries others read.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cache_rows import plane_bytes, quantise
from .qkv import clamp


@triton.jit
def ready(
    rows, ok, weight_ptr, cos_ptr, sin_ptr, position, size, pairs, eps, limit,
    NORM: tl.constexpr, CLIP: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Heads of `size` numbers at `rows` [n, 1], normed, clipped and rotated: float32 [n, SIZE]. Each number comes with
    the one that it is rotated with, so that none moves between threads."""
    at = tl.arange(0, SIZE)[None, :]
    other = tl.where(at < pairs, at + pairs, tl.where(at < 2 * pairs, at - pairs, at))
    here = ok & (at < size)
    x, y = tl.load(rows + at, mask=here, other=0.0), tl.load(rows + other, mask=here, other=0.0)
    if NORM:
        scale = tl.rsqrt(tl.sum(x * x, axis=1) / size + eps)[:, None]
        x *= scale * tl.load(weight_ptr + at, mask=at < size, other=0.0)
        y *= scale * tl.load(weight_ptr + other, mask=at < size, other=0.0)
    x, y = clamp(x, limit, CLIP), clamp(y, limit, CLIP)
    angle, turns = position.to(tl.int64) * pairs + tl.where(at < pairs, at, at - pairs), at < 2 * pairs
    cos = tl.load(cos_ptr + angle, mask=turns, other=1.0)
    sin = tl.load(sin_ptr + angle, mask=turns, other=0.0)
    return x * cos + y * tl.where(at < pairs, -sin, sin)


@triton.jit
def put(
    x, codes_ptr, scales_ptr, plane, row, size,
    PAGE: tl.constexpr, SIZE: tl.constexpr, SHARED: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Writes one row [1, SIZE] to place `row` of a plane, as floats or q8_0 (SHARED), and gives it as products see it
    there: float32 [1, SIZE]."""
    if SHARED > 0:
        codes, scale = quantise(tl.reshape(x, [1, SIZE // 32, 32]))
        run, inside = tl.arange(0, SIZE // 32)[None, :], tl.arange(0, 32)[None, None, :]
        first, here = plane * plane_bytes(size, PAGE), run < size // 32
        tl.store((codes_ptr + first + row * size) + (run * 32)[:, :, None] + inside, codes, mask=here[:, :, None])
        tl.store(scales_ptr + first // 2 + row * (size // 32) + run, scale, mask=here)
        kept = tl.reshape(codes.to(tl.float32) * scale.to(tl.float32)[:, :, None], [1, SIZE])
        if PRODUCT == "bf16":
            kept = kept.to(tl.bfloat16).to(tl.float32)
        return kept
    else:
        at = tl.arange(0, SIZE)[None, :]
        kept = x.to(codes_ptr.dtype.element_ty)
        tl.store(codes_ptr + (plane * PAGE + row) * size + at, kept, mask=at < size)
        return kept.to(tl.float32)
