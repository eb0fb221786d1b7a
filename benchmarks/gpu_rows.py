"""What the kernel table (`gpu_table.py`) times: calls on cold data, with the bytes they read and the flops they do.

A row is a list of calls that read different weights (or caches), together more than the GPU's second cache holds, so
that each call finds its own in memory. Bytes are the weights and the cache that must be read; activations are not
counted. Knows shapes and ops; how calls are timed stands in `gpu_table.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from headrace.kernels import FORMATS, ExpertLayout, Format, Ops, reference
from headrace.kernels.decoder_layer import Router
from headrace.kernels.packed import ExpertBank, Matrix

Call = Callable[[], object]
PAGE = 32
KINDS = ("experts", "linear", "attention")  # first words of rows


@dataclass(frozen=True, kw_only=True)
class Row:
    """Calls to be timed in turn. `wanted` is the share of the ceiling that the project asks for, if it names one."""

    name: str
    calls: list[Call]
    bytes: float = 0.0  # a call
    flops: float = 0.0  # a call
    bound: str = ""  # "bytes", "flops" or neither: then only the time counts
    wanted: float | None = None


@dataclass(frozen=True, kw_only=True)
class Model:
    """The shapes of a model that its layers' kernels see."""

    hidden: int
    width: int
    experts: int
    top_k: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


QWEN3_30B = Model(
    hidden=2048, width=768, experts=128, top_k=8, heads=32, kv_heads=4, head_dim=128, vocabulary=151936
)  # fmt: skip
QWEN3_235B = Model(
    hidden=4096, width=1536, experts=128, top_k=8, heads=64, kv_heads=4, head_dim=128, vocabulary=151936
)  # fmt: skip


@dataclass(frozen=True)
class GpuSource:
    """Random weights made and packed on the device: normal values of standard deviation 0.1."""

    generator: torch.Generator

    def normal(self, *shape: int) -> Tensor:
        """Standard normal float32 values."""
        return torch.randn(*shape, generator=self.generator, device=self.generator.device)

    def matrix(self, format: Format, rows: int, cols: int) -> Matrix:
        return Matrix(format, rows, cols, reference.quantize(self.normal(rows, cols) * 0.1, format))

    def bank(self, layout: ExpertLayout, experts: int) -> ExpertBank:
        data = torch.zeros(experts, layout.bytes, dtype=torch.uint8, device=self.generator.device)
        bank = ExpertBank(layout, data)
        for expert in range(experts):
            for part in ("gate", "up", "down"):
                into = bank.matrix(expert, part)
                into.data.copy_(self.matrix(into.format, into.rows, into.cols).data)
        return bank

    def routing(self, tokens: int, model: Model) -> tuple[Tensor, Tensor]:
        """Every expert equally probable: ids int32 and weights float32 [tokens, top k]."""
        weights, ids = torch.rand(
            tokens, model.experts, generator=self.generator, device=self.generator.device
        ).topk(model.top_k)  # fmt: skip
        return ids.to(torch.int32).contiguous(), weights.softmax(-1).contiguous()


@dataclass(frozen=True)
class Group:
    """Rows that share weights; each of their names begins with the first words of `name`."""

    name: str
    rows: Callable[[], Iterator[Row]]

    def may_have(self, part: str) -> bool:
        """Whether a row whose name contains `part` could be here: one that begins as those of another kind cannot."""
        asked, mine = part.split(), self.name.split()
        return not asked or asked[0] not in KINDS or all(a == b for a, b in zip(asked, mine, strict=False))


def expert_rows(ops: Ops, source: GpuSource, model: Model, format: Format, counts: list[int]) -> Iterator[Row]:
    """One layer of experts, for each of `counts` tokens. One bank serves all; few tokens read a part of it."""
    layout = ExpertLayout(format=format, hidden=model.hidden, width=model.width)
    bank = source.bank(layout, model.experts)
    for tokens in counts:
        few = tokens <= 16
        inputs = [
            (source.normal(tokens, model.hidden), *source.routing(tokens, model)) for _ in range(16 if few else 2)
        ]
        if tokens == 1:  # in turn through all experts, so that none is read twice in a round
            for number, (_, ids, _) in enumerate(inputs):
                ids.copy_((torch.arange(model.top_k) + number * model.top_k) % model.experts)
        distinct = [int(ids.unique().numel()) for _, ids, _ in inputs]
        yield Row(
            name=f"experts {format.name} {model.experts}x{model.hidden}x{model.width}, {tokens} tokens",
            calls=[partial(ops.experts, x, ids, weights, bank) for x, ids, weights in inputs],
            bytes=layout.bytes * sum(distinct) / len(distinct),
            flops=6.0 * tokens * model.top_k * model.hidden * model.width,
            bound="bytes" if few else "flops",
            wanted={1: 0.60 if model.width < 1536 else 0.75, 4096: 0.50}.get(tokens),
        )


def linear_rows(ops: Ops, source: GpuSource, model: Model, format: Format) -> Iterator[Row]:
    """The projection of queries, keys and values, and the head; of one token, and of a prompt."""
    rows, copies = (model.heads + 2 * model.kv_heads) * model.head_dim, 16
    qkv = source.matrix(format, rows * copies, model.hidden)
    head = source.matrix(format, model.vocabulary, model.hidden)
    parts = [qkv.slice_rows(n * rows, (n + 1) * rows) for n in range(copies)]
    for tokens, matrices in ((1, parts), (1, [head]), (16, parts), (4096, parts[:2])):
        x, first = source.normal(tokens, model.hidden), matrices[0]
        yield Row(
            name=f"linear {format.name} {first.rows}x{first.cols}, {tokens} tokens",
            calls=[partial(ops.linear, x, w) for w in matrices],
            bytes=first.nbytes,
            flops=2.0 * tokens * first.rows * first.cols,
            bound="bytes" if tokens <= 16 else "flops",
        )


def attention_rows(
    ops: Ops, source: GpuSource, model: Model, contexts: list[int], prompt: int, cold: float = 2e8
) -> Iterator[Row]:
    """Decode of one sequence at several lengths, and a prompt; the cache is bfloat16, of layers of `cold` bytes."""
    G, N, d, device = model.kv_heads, model.heads, model.head_dim, source.generator.device
    for context, new in [(c, 1) for c in contexts] + [(prompt, prompt)]:
        pages = -(-context // PAGE)
        table = torch.randperm(pages, device=device).to(torch.int32).unsqueeze(0)
        starts = torch.tensor([0, new], dtype=torch.int32, device=device)
        length = torch.tensor([context], dtype=torch.int32, device=device)
        read = 2 * context * G * d * 2
        q, layers = source.normal(new, N, d), 2 if new > 1 else max(4, math.ceil(cold / read))
        cache = [[source.normal(pages, G, PAGE, d).bfloat16() for _ in range(2)] for _ in range(layers)]
        yield Row(
            name=f"attention {N}/{G} heads of {d}, {new} new of {context}",
            calls=[partial(ops.attention, q, k, v, table, starts, length, d**-0.5) for k, v in cache],
            bytes=read,
            flops=4.0 * (new * context - new * (new - 1) // 2) * N * d,
            bound="bytes" if new == 1 else "flops",
            wanted=0.75 if (context, new) == (32768, 1) else None,
        )


def small_rows(ops: Ops, source: GpuSource, model: Model) -> Iterator[Row]:
    """What a decode step does between matrices: their bytes are few, only their time counts."""
    D, N, G, d, device = model.hidden, model.heads, model.kv_heads, model.head_dim, source.generator.device
    x, y, w, logits = source.normal(1, D), source.normal(1, D), source.normal(D), source.normal(1, model.vocabulary)
    heads, norm, angles = source.normal(1, (N + 2 * G) * d), source.normal(d), source.normal(4096, d // 2)
    cos, sin = angles.cos(), angles.sin()
    cache = [source.normal(64, G, PAGE, d).bfloat16() for _ in range(2)]
    at, slot = torch.tensor([7], dtype=torch.int32, device=device), torch.tensor([39], device=device)
    matrix = source.matrix(FORMATS["f32"], model.experts, D)
    router = Router(matrix=matrix, top_k=model.top_k, scoring="softmax", renormalise=True)
    calls: dict[str, Call] = {
        "add_rmsnorm_": lambda: ops.add_rmsnorm_(x, y, w, 1e-6),
        "place_qkv_": lambda: ops.place_qkv_(heads, *cache, slot, cos, sin, at, norm, norm, 1e-6, None),
        "route": lambda: ops.route(x, router),
        "argmax": lambda: ops.argmax(logits),
    }
    for name, call in calls.items():
        yield Row(name=f"{name}, 1 token", calls=[call] * 16)


def groups(ops: Ops, source: GpuSource, model: Model = QWEN3_30B, wide: Model | None = QWEN3_235B) -> Iterator[Group]:
    """The whole table: the weights of one group are gone before those of the next are made. What a decode step in
    q4_0 takes comes first."""
    for name in ("q4_0", "bf16", "q8_0"):
        form = FORMATS[name]
        yield Group(f"experts {name}", partial(expert_rows, ops, source, model, form, [1, 4, 16, 512, 4096]))
        if wide is not None:
            yield Group(f"experts {name}", partial(expert_rows, ops, source, wide, form, [1]))
        yield Group(f"linear {name}", partial(linear_rows, ops, source, model, form))
        if name == "q4_0":
            yield Group("attention", partial(attention_rows, ops, source, model, [4096, 32768, 131072], 4096))
            yield Group("small", partial(small_rows, ops, source, model))
