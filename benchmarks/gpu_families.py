"""What newer families ask of the Triton kernels, on the shapes of real models, for `gpu_compile.py`: gpt-oss-120b,
DeepSeek-V3, Qwen3-Next-80B-A3B, MiMo-V2-Flash, Step-3.5-Flash and Gemma 4. Tensors have no memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from headrace.kernels import FORMATS, ExpertLayout, gpu
from headrace.kernels.blocks import cache_rows
from headrace.kernels.blocks.cache_rows import Q8Rows, Rows
from headrace.kernels.decoder_layer import Router
from headrace.kernels.packed import ExpertBank, Matrix
from headrace.kernels.recipes import GEGLU, Activation

CORE = ("glu clamped", "decode window sinks bf16", "prefill window sinks bf16", "experts biased mxfp4 1",
        "experts biased mxfp4 9", "route groups", "decode latents bf16", "decode latents q8_0", "store_rows_ q8_0",
        "rotate_", "by head q8_0 9", "by head q8_0 512", "short_conv 2", "short_conv 512", "delta_rule", "glu late",
        "place_qkv_ narrow", "decode narrow bf16", "prefill narrow bf16", "place_qkv_ shared", "decode wide bf16",
        "prefill bf16 wide", "route factors", "experts geglu q8_0 1")  # fmt: skip
EACH = ("glu clamped", "route groups", "decode latents bf16", "store_rows_ q8_0", "rotate_", "by head q8_0 9",
        "by head q8_0 512", "short_conv 512", "delta_rule", "place_qkv_ shared", "decode wide bf16",
        "prefill bf16 wide", "experts geglu q8_0 1")  # fmt: skip
GPT_OSS = Activation(alpha=1.702, offset=1.0, limit=7.0)
BF16 = torch.bfloat16
HIDDEN, EXPERTS, TOP_K = 2880, 128, 4  # gpt-oss
HEADS, RANK, ROTATED, OWN, V = 128, 512, 64, 128, 128  # DeepSeek
CHANNELS, K_HEADS, V_HEADS, SIZE = 8192, 16, 32, 128  # Qwen3-Next
LATE = Activation(limit=7.0, late=True)  # Step-3.5


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


ints = partial(meta, dtype=torch.int32)


def calls() -> dict[str, Any]:
    """Ops by a label that says on which shapes: tokens at the end, where they make a difference."""
    return gpt_oss() | latents() | deltas() | narrow() | gemma4()


def gpt_oss() -> dict[str, Any]:
    cache = (meta(64, 8, 32, 64, dtype=BF16),) * 2
    layout = ExpertLayout(format=FORMATS["mxfp4"], hidden=HIDDEN, width=HIDDEN, biased=True, activation=GPT_OSS)
    bank = ExpertBank.empty(layout, EXPERTS, "meta")

    def attend(T: int) -> torch.Tensor:
        where = ints(2, 1024), ints(3), ints(2)
        return gpu.attention(meta(T, 64, 64), *cache, *where, 0.1, window=128, sinks_N=meta(64))

    def mix(T: int) -> torch.Tensor:
        return gpu.experts(meta(T, HIDDEN), ints(T, TOP_K), meta(T, TOP_K), bank)

    return {
        "glu clamped": lambda: gpu.glu(meta(3, 2 * HIDDEN), GPT_OSS),
        "decode window sinks bf16": partial(attend, 2),
        "prefill window sinks bf16": partial(attend, 512),
        **{f"experts biased mxfp4 {T}": partial(mix, T) for T in (1, 9, 4096)},
    }


def latents() -> dict[str, Any]:
    rows = meta(64, 1, 32, RANK + ROTATED, dtype=BF16)
    q8_rows = Q8Rows.empty(64, 1, 32, RANK + ROTATED, torch.device("meta"))
    router = Router(
        matrix=Matrix.empty(FORMATS["f32"], 256, 7168, "meta"), top_k=8, scoring="sigmoid", renormalise=True,
        choice_bias_E=meta(256), groups=8, top_groups=4, scale=2.5,
    )  # fmt: skip
    turns = meta(99, ROTATED // 2), meta(99, ROTATED // 2), ints(2)
    up = Matrix.empty(FORMATS["q8_0"], HEADS * RANK, OWN, "meta")

    def attend(T: int, cache: Rows) -> torch.Tensor:
        q_TNl, where = meta(T, HEADS, RANK + ROTATED), (ints(2, 1024), ints(3), ints(2))
        return gpu.attention(q_TNl, cache, cache_rows.first(cache, RANK), *where, 0.1)

    def by_head(T: int) -> torch.Tensor:
        return gpu.linear_by_head(meta(T, HEADS, OWN + ROTATED)[..., :OWN], up)

    return {
        "route groups": lambda: gpu.route(meta(1, 7168), router),
        "decode latents bf16": partial(attend, 2, rows),
        "decode latents q8_0": partial(attend, 2, q8_rows),
        "store_rows_ q8_0": lambda: gpu.store_rows_(q8_rows, meta(2, dtype=torch.int64), meta(2, 1, RANK + ROTATED)),
        "decode latents f32": partial(attend, 2, rows.float()),
        "prefill latents bf16": partial(attend, 512, rows),
        "rotate_": lambda: gpu.rotate_(meta(2, HEADS, OWN + ROTATED)[..., OWN:], *turns),
        **{f"by head q8_0 {T}": partial(by_head, T) for T in (1, 9, 512)},
    }


def deltas() -> dict[str, Any]:
    inputs, state = meta(5, CHANNELS, 3), meta(5, V_HEADS, SIZE, SIZE)

    def convolve(T: int) -> torch.Tensor:
        return gpu.short_conv(meta(T, CHANNELS), meta(CHANNELS, 4), inputs, ints(2), ints(3), ints(2))

    def change(T: int) -> torch.Tensor:
        q, k, v = meta(T, CHANNELS).split([K_HEADS * SIZE, K_HEADS * SIZE, V_HEADS * SIZE], dim=1)
        heads = q.view(T, K_HEADS, SIZE), k.view(T, K_HEADS, SIZE), v.view(T, V_HEADS, SIZE)
        return gpu.delta_rule(*heads, meta(T, V_HEADS), meta(T, V_HEADS), state, ints(2), ints(3), ints(2))

    made = {f"short_conv {T}": partial(convolve, T) for T in (2, 512)}
    return made | {"delta_rule": partial(change, 2)}


def narrow() -> dict[str, Any]:
    """Keys of 192 and values of 128, over a window with sinks."""
    heads, groups, turns = 64, 8, (meta(99, 32), meta(99, 32), ints(3))
    cache = meta(64, groups, 32, 192, dtype=BF16), meta(64, groups, 32, 128, dtype=BF16)

    def place() -> None:
        qkv = meta(3, (heads + groups) * 192 + groups * 128)
        gpu.place_qkv_(qkv, *cache, meta(3, dtype=torch.int64), *turns, None, None, 1e-5, None, v_scale=0.707)

    def attend(T: int) -> torch.Tensor:
        where = ints(2, 1024), ints(3), ints(2)
        return gpu.attention(meta(T, heads, 192), *cache, *where, 0.1, window=128, sinks_N=meta(heads))

    return {
        "glu late": lambda: gpu.glu(meta(3, 2 * 1280), LATE),
        "place_qkv_ narrow": place,
        "decode narrow bf16": partial(attend, 2),
        "prefill narrow bf16": partial(attend, 512),
    }


def gemma4() -> dict[str, Any]:
    """Layers that see everything: heads of 512, whose keys serve as values; experts with GeGLU, and a factor each."""
    heads, groups, hidden, experts = 16, 2, 2816, 128
    cache, turns = (meta(64, groups, 32, 512, dtype=BF16),) * 2, (meta(99, 256), meta(99, 256), ints(3))
    router = Router(
        matrix=Matrix.empty(FORMATS["f32"], experts, hidden, "meta"), top_k=8, scoring="softmax", renormalise=True,
        factors_E=meta(experts),
    )  # fmt: skip
    bank = ExpertBank.empty(
        ExpertLayout(format=FORMATS["q8_0"], hidden=hidden, width=704, activation=GEGLU), experts, "meta"
    )
    norm = meta(512)

    def place() -> None:
        qkv, slots = meta(3, (heads + groups) * 512), meta(3, dtype=torch.int64)
        gpu.place_qkv_(qkv, *cache, slots, *turns, norm, norm, 1e-6, None, v_norm=norm, shared=True)

    def attend(T: int) -> torch.Tensor:
        return gpu.attention(meta(T, heads, 512), *cache, ints(2, 1024), ints(3), ints(2), 1.0)

    def mix() -> torch.Tensor:
        return gpu.experts(meta(1, hidden), ints(1, 8), meta(1, 8), bank)

    return {
        "place_qkv_ shared": place,
        "decode wide bf16": partial(attend, 2),
        "prefill bf16 wide": partial(attend, 512),
        "route factors": lambda: gpu.route(meta(1, hidden), router),
        "experts geglu q8_0 1": mix,
    }
