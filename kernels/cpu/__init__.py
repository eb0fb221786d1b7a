"""The C++ kernels behind the op list: checks, output tensors, addresses. Every op's twin is in `reference.py`.

A wrong shape, dtype or stride is our own mistake, hence `assert`, with the names of `reference.py`. Tensors go over
as addresses: the extension does not know torch. One instruction set serves the process, the best of the CPU or the
one that HEADRACE_ISA names; one thread team serves all ops (`set_threads`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .. import _cpu
from ..decoder_layer import AttentionBlock, Choice, Layer, Places, Scoring, Stack
from ..formats import FORMATS, Format
from ..isa import available_isas, cpu_features, isa, threads, use_isa
from ..packed import FORMAT_OF_DTYPE, ExpertBank, Matrix

__all__ = ["available_isas", "cpu_features", "isa", "threads", "use_isa"]  # beside what is defined here

Activations = Literal["int8", "bf16"]
PEAKS = ("int8 dot products", "bf16 tiles", "int8 tiles")  # of `peak_rate`, in the order of ops.h

F32, I32, I64, U8 = torch.float32, torch.int32, torch.int64, torch.uint8
CACHE_CODES = {torch.float32: FORMATS["f32"].code, torch.bfloat16: FORMATS["bf16"].code}


_activations: Activations = "int8"


def set_activations(kind: Activations) -> None:
    """How activations meet the weights of block formats: rounded to int8, or to nothing coarser than bf16.

    "int8": per 32, with few tokens and on an ISA without tiles; per 256 in tiles, which round the weights to int8 with
    one scale for 256 columns too. "bf16": as they are with few tokens, to bf16 in tiles, and so are the weights.
    """
    global _activations
    assert kind in ("int8", "bf16"), kind
    _activations = kind
    _cpu.set_exact(kind == "bf16")


def activations() -> Activations:
    """What `set_activations` set; "int8" at first."""
    return _activations


def tile_tokens() -> dict[str, int]:
    """From how many tokens of a matrix or an expert on tiles are used; formats without tiles are left out."""
    counts = {name: int(_cpu.tile_tokens(form.code)) for name, form in FORMATS.items()}
    return {name: count for name, count in counts.items() if count}


def set_tile_tokens(counts: dict[str, int]) -> None:
    """Uses tiles from so many tokens on, by format name, in the whole process; a format left out as the ISA's table
    says, which was measured on one machine."""
    for name, form in FORMATS.items():
        assert counts.get(name, 1) > 0, f"tiles from {counts[name]} tokens on"
        _cpu.set_tile_tokens(form.code, counts.get(name, 0))


def set_threads(n: int) -> None:
    """Restarts the team with n threads, the caller included."""
    assert n >= 1, f"threads: {n}"
    _cpu.set_threads(n)


def advise_huge(tensor: Tensor) -> bool:
    """Asks for huge pages under a tensor, best before its first write; False where the kernel will not give any."""
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not mode.exists() or "[never]" in mode.read_text():
        return False
    return bool(_cpu.advise_huge(tensor.data_ptr(), tensor.nbytes))


def numa_nodes(root: str = "/sys/devices/system/node") -> list[int]:
    """The nodes of memory beside the CPUs that this process may use; none where the system does not tell."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    return [node for node, cpus in enumerate(_cpu.node_cpus(root)) if mine & set(cpus)]


def interleave(tensor: Tensor, nodes: list[int]) -> bool:
    """Asks for the pages of a tensor, not yet written, in turns from these nodes; False where the system will not."""
    return bool(_cpu.interleave(tensor.data_ptr(), tensor.nbytes, nodes))


def stream_read(data: Tensor) -> float:
    """Seconds in which the team reads a uint8 tensor once: the ceiling that a kernel's bandwidth is held against."""
    return float(_cpu.stream_read(_at(data, U8, *data.shape), data.numel()))


def peak_rate(kind: str) -> float:
    """Operations a second of the team on registers alone, of one of PEAKS. 0: the ISA has none."""
    return float(_cpu.peak_rate(PEAKS.index(kind)))


def region_ns(rounds: int = 10000) -> float:
    """Nanoseconds from the start of an empty parallel region to its end, workers awake."""
    return float(_cpu.region_ns(rounds))


def barrier_ns(rounds: int = 10000) -> float:
    """Nanoseconds of one barrier inside a parallel region."""
    return float(_cpu.barrier_ns(rounds))


def take_part_seconds() -> dict[str, float]:
    """Seconds that each part of `layers` took since this was last asked: norms, qkv, attention, experts and so on;
    `experts` called by itself counts too."""
    return dict(_cpu.take_part_seconds())


def _at(x: Tensor, dtype: torch.dtype, *shape: int) -> int:
    """The address of a contiguous tensor of this dtype and shape."""
    assert x.dtype == dtype, f"{x.dtype}, not {dtype}"
    assert x.shape == shape, f"{list(x.shape)}, not {list(shape)}"
    assert x.is_contiguous(), f"strides {x.stride()} of {list(shape)}"
    return x.data_ptr()


def _heads(x_TNd: Tensor) -> tuple[int, int]:
    """Address and stride of float32 [T, N, d]: heads side by side, any stride from token to token."""
    _T, N, d = x_TNd.shape
    step = x_TNd.stride()
    assert x_TNd.dtype == F32, f"{x_TNd.dtype}"
    assert d == 1 or step[2] == 1, f"strides {step} of {list(x_TNd.shape)}"
    assert N == 1 or step[1] == d, f"strides {step} of {list(x_TNd.shape)}"
    return x_TNd.data_ptr(), step[0]


def _caches(k_PGBd: Tensor, v_PGBd: Tensor) -> tuple[int, int, int, int, int, int]:
    """Format, groups, keys of a page, head size and both addresses."""
    _P, G, B, d = k_PGBd.shape
    keys, values = (_at(c, k_PGBd.dtype, *k_PGBd.shape) for c in (k_PGBd, v_PGBd))
    return CACHE_CODES[k_PGBd.dtype], G, B, d, keys, values


def quantize(values_RC: Tensor, format: Format) -> Tensor:
    R, C = values_RC.shape
    assert format.fits(C), f"{C} columns in {format.name}"
    source = FORMATS[FORMAT_OF_DTYPE[values_RC.dtype]].code
    out = torch.empty(R, format.row_bytes(C), dtype=U8)
    _cpu.quantize(_at(values_RC, values_RC.dtype, R, C), source, R, C, format.code, out.data_ptr())
    return out


def dequantize(matrix: Matrix) -> Tensor:
    out = torch.empty(matrix.rows, matrix.cols)
    _cpu.dequantize(*matrix.packed, out.data_ptr())
    return out


def embed(table: Matrix, ids_T: Tensor, scale: float = 1.0) -> Tensor:
    (T,) = ids_T.shape
    out = torch.empty(T, table.cols)
    _cpu.embed(*table.packed, _at(ids_T, I64, T), T, scale, out.data_ptr())
    return out


def rmsnorm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    D = x_TD.shape[-1]
    out = torch.empty_like(x_TD)
    x, weight = _at(x_TD, F32, *x_TD.shape), _at(weight_D, F32, D)
    _cpu.rmsnorm(x, weight, out.data_ptr(), x_TD.numel() // D, D, eps)
    return out


def add_rmsnorm_(x_TD: Tensor, y_TD: Tensor, weight_D: Tensor, eps: float, scale: float = 1.0) -> Tensor:
    T, D = x_TD.shape
    out = torch.empty_like(x_TD)
    rows = _at(x_TD, F32, T, D), _at(y_TD, F32, T, D), _at(weight_D, F32, D)
    _cpu.add_rmsnorm(*rows, out.data_ptr(), T, D, eps, scale)
    return out


def linear(x_TC: Tensor, weight: Matrix, bias_R: Tensor | None = None) -> Tensor:
    T, C = x_TC.shape
    assert x_TC.dtype == F32, f"{x_TC.dtype}"
    assert weight.cols == C, f"{C} values, {weight.cols} columns"
    assert C == 1 or x_TC.stride(1) == 1, f"strides {x_TC.stride()}"
    bias = 0 if bias_R is None else _at(bias_R, F32, weight.rows)
    out = torch.empty(T, weight.rows)
    _cpu.linear(x_TC.data_ptr(), x_TC.stride(0), T, *weight.packed, bias, out.data_ptr())
    return out


def place_qkv_(
    qkv_THd: Tensor,
    k_PGBd: Tensor,
    v_PGBd: Tensor,
    slots_T: Tensor,
    cos_Pr: Tensor,
    sin_Pr: Tensor,
    positions_T: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    clip: float | None,
) -> None:
    (T, H, d), (P, r), G = qkv_THd.shape, cos_Pr.shape, k_PGBd.shape[1]
    assert 2 * r <= d == k_PGBd.shape[3], f"{r} pairs in {d} values, cache of {k_PGBd.shape[3]}"
    assert H > 2 * G, f"{H} heads with {G} of keys and of values"
    assert (q_norm is None) == (k_norm is None), "a norm for queries or keys alone"
    tables = _at(cos_Pr, F32, P, r), _at(sin_Pr, F32, P, r), _at(positions_T, I32, T), _at(slots_T, I64, T)
    norms = (*_norm(q_norm, d, H - 2 * G), *_norm(k_norm, d, G), eps)
    limit = float("inf") if clip is None else clip
    _cpu.place_qkv(_at(qkv_THd, F32, T, H, d), T, H, r, *_caches(k_PGBd, v_PGBd), *tables, *norms, limit)


def _norm(weight: Tensor | None, d: int, heads: int) -> tuple[int, int]:
    """Address and length of a norm's weight: a head, or all heads; 0, 0 without one."""
    if weight is None:
        return 0, 0
    assert len(weight) in (d, heads * d), f"a norm of {len(weight)} for {heads} heads of {d}"
    return _at(weight, F32, len(weight)), len(weight)


def attention(
    q_TNd: Tensor,
    k_PGBd: Tensor,
    v_PGBd: Tensor,
    tables_SM: Tensor,
    starts_S1: Tensor,
    contexts_S: Tensor,
    scale: float,
) -> Tensor:
    T, N, d = q_TNd.shape
    S, M = tables_SM.shape
    assert k_PGBd.shape[3] == d, f"heads of {d} on a cache of {k_PGBd.shape[3]}"
    assert N % k_PGBd.shape[1] == 0, f"{N} heads on {k_PGBd.shape[1]}"
    out = torch.empty(T, N, d)
    batch = _at(tables_SM, I32, S, M), _at(starts_S1, I32, S + 1), _at(contexts_S, I32, S)
    _cpu.attention(*_heads(q_TNd), *_caches(k_PGBd, v_PGBd), *batch, S, M, N, scale, out.data_ptr())
    return out


def attention_block(
    x_TD: Tensor, update_TD: Tensor | None, block: AttentionBlock, places: Places, rows_R: Tensor | None = None
) -> tuple[Tensor, Tensor, Choice | None]:
    T, D = x_TD.shape
    here = block.native.get("cpu") or _ready(block)
    there = places.native.get("cpu") or _where(places)
    assert there.tokens == T, f"{T} tokens, {there.tokens} positions"
    x, update = _at(x_TD, F32, T, D), 0 if update_TD is None else _at(update_TD, F32, T, D)
    x_RD, rows = _going_on(x_TD, rows_R)
    R = x_RD.shape[0]
    h_RD = torch.empty(R, D)
    if block.router is None or R == 0:
        _cpu.attention_block(here, there, x, update, T, rows, R, x_RD.data_ptr(), h_RD.data_ptr(), 0, 0)
        return x_RD, h_RD, None
    ids, weights = torch.empty(R, block.router.top_k, dtype=I32), torch.empty(R, block.router.top_k)
    out = x_RD.data_ptr(), h_RD.data_ptr(), ids.data_ptr(), weights.data_ptr()
    _cpu.attention_block(here, there, x, update, T, rows, R, *out)
    return x_RD, h_RD, (ids, weights)


def _going_on(x_TD: Tensor, rows_R: Tensor | None) -> tuple[Tensor, int]:
    """Where x of the tokens goes that go on after attention, and the address of their rows; x itself and 0: all."""
    if rows_R is None:
        return x_TD, 0
    address = _at(rows_R, I64, *rows_R.shape) or x_TD.data_ptr()  # an empty tensor has no address, and 0 means all
    return torch.empty(rows_R.shape[0], x_TD.shape[1]), address


def _ready(block: AttentionBlock) -> Any:
    """A layer's addresses, checked once."""
    format, G, B, d, k, v = _caches(block.k_PGBd, block.v_PGBd)
    (P, r), D, N = block.cos_Pr.shape, block.o.rows, block.heads
    assert (block.qkv.rows, block.qkv.cols, block.o.cols) == ((N + 2 * G) * d, D, N * d), "qkv and o do not fit"
    assert 2 * r <= d, f"{r} pairs in {d} values"
    biased = (block.qkv_bias, block.qkv), (block.o_bias, block.o)
    biases = (0 if bias is None else _at(bias, F32, matrix.rows) for bias, matrix in biased)
    router: tuple[Any, ...] = (0, 0, 0, 0), 0, False, False
    if (to := block.router) is not None:
        assert to.matrix.cols == D, f"a router of {to.matrix.cols} columns for {D} values"
        assert 0 < to.top_k <= to.matrix.rows, f"{to.top_k} of {to.matrix.rows} experts"
        router = to.matrix.packed, to.top_k, to.scoring == "softmax", to.renormalise
    block.native["cpu"] = _cpu.AttentionBlock(
        N,
        r,
        _at(block.pre_norm, F32, D),
        _at(block.post_norm, F32, D),
        block.qkv.packed,
        block.o.packed,
        *biases,
        *_norm(block.q_norm, d, N),
        *_norm(block.k_norm, d, G),
        *(format, G, B, d, k, v),
        _at(block.cos_Pr, F32, P, r),
        _at(block.sin_Pr, F32, P, r),
        block.eps,
        float("inf") if block.clip is None else block.clip,
        block.scale,
        block.residual_scale,
        *router,
    )
    return block.native["cpu"]


def _where(places: Places) -> Any:
    """A pass's addresses, checked once."""
    (T,), (S, M) = places.positions_T.shape, places.tables_SM.shape
    tokens = _at(places.positions_T, I32, T), _at(places.slots_T, I64, T)
    batch = _at(places.tables_SM, I32, S, M), _at(places.starts_S1, I32, S + 1), _at(places.contexts_S, I32, S)
    places.native["cpu"] = _cpu.Places(T, *tokens, *batch, S, M)
    return places.native["cpu"]


def layers(x_TD: Tensor, stack: Stack, places: Places, rows_R: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    T, D = x_TD.shape
    here = stack.native.get("cpu") or _native_stack(stack)
    there = places.native.get("cpu") or _where(places)
    assert there.tokens == T, f"{T} tokens, {there.tokens} positions"
    x = _at(x_TD, F32, T, D)
    x_RD, rows = _going_on(x_TD, rows_R)
    update_TD, distinct_L = torch.empty(T, D), torch.empty(len(stack.layers), dtype=I32)
    out = x_RD.data_ptr(), update_TD.data_ptr(), distinct_L.data_ptr()
    _cpu.layers(here, there, x, T, rows, x_RD.shape[0], *out)
    return x_RD, update_TD[: x_RD.shape[0]], distinct_L


def _native_stack(stack: Stack) -> Any:
    """All layers' addresses, checked once."""
    stack.native["cpu"] = _cpu.Stack([_native_layer(layer) for layer in stack.layers])
    return stack.native["cpu"]


def _native_layer(layer: Layer) -> Any:
    none, D = (0, 0, 0, 0), layer.block.o.rows
    assert (layer.bank is None) == (layer.block.router is None), "experts without a router, or a router without experts"
    assert layer.bank is not None or layer.mlp is not None, "a layer with neither experts nor an MLP"
    bank, gate_up, down, gate = (0, 0, 0, 0, 0, 0), none, none, none
    if layer.bank is not None and layer.block.router is not None:
        assert layer.bank.layout.hidden == D, f"experts of {layer.bank.layout.hidden} values, not {D}"
        assert layer.bank.experts == layer.block.router.matrix.rows, "another number of experts than the router's"
        bank = layer.bank.packed
    if (mlp := layer.mlp) is not None:
        shapes = mlp.gate_up.rows, mlp.gate_up.cols, mlp.down.rows
        assert shapes == (2 * mlp.down.cols, D, D), f"an MLP of {shapes} on {D} values, {mlp.down.cols} wide"
        gate_up, down = mlp.gate_up.packed, mlp.down.packed
        if layer.shared_gate is not None:
            assert (layer.shared_gate.rows, layer.shared_gate.cols) == (1, D), "a shared gate of another shape"
            gate = layer.shared_gate.packed
    here = layer.block.native.get("cpu") or _ready(layer.block)
    return _cpu.DecoderLayer(here, bank, gate_up, down, gate)


def route(x_TD: Tensor, router: Matrix, top_k: int, scoring: Scoring, renormalise: bool) -> Choice:
    (T, D), E = x_TD.shape, router.rows
    assert router.cols == D, f"{D} values, {router.cols} columns"
    assert 0 < top_k <= E, f"{top_k} of {E} experts"
    ids, weights = torch.empty(T, top_k, dtype=I32), torch.empty(T, top_k)
    how = top_k, scoring == "softmax", renormalise
    _cpu.route(_at(x_TD, F32, T, D), T, *router.packed, *how, ids.data_ptr(), weights.data_ptr())
    return ids, weights


def argmax(logits_SV: Tensor) -> tuple[Tensor, Tensor]:
    S, V = logits_SV.shape
    values, ids = torch.empty(S), torch.empty(S, dtype=I64)
    _cpu.argmax(_at(logits_SV, F32, S, V), S, V, values.data_ptr(), ids.data_ptr())
    return values, ids


def silu_mul(gate_up_T2F: Tensor) -> Tensor:
    T, F = gate_up_T2F.shape[0], gate_up_T2F.shape[1] // 2
    out = torch.empty(T, F)
    _cpu.silu_mul(_at(gate_up_T2F, F32, T, 2 * F), out.data_ptr(), T, F)
    return out


def gated_add_(y_TD: Tensor, z_TD: Tensor, gate_T1: Tensor | None = None) -> None:
    T, D = y_TD.shape
    gate = 0 if gate_T1 is None else _at(gate_T1, F32, T, 1)
    _cpu.gated_add(_at(y_TD, F32, T, D), _at(z_TD, F32, T, D), gate, T, D)


def experts(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, bank: ExpertBank) -> Tensor:
    T, K = ids_TK.shape
    out = torch.empty_like(x_TD)
    chosen = _at(x_TD, F32, T, bank.layout.hidden), T, _at(ids_TK, I32, T, K), _at(weights_TK, F32, T, K), K
    _cpu.experts(*chosen, *bank.packed, out.data_ptr())
    return out
