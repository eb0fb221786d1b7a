"""The kinds of attention and of what takes its place, as counts: tensors, cache, FLOPs. One function a kind.

Tensor shapes are those of the checkpoints. A pair is one query and one cached entry: scores and weighted sum, two
FLOPs a multiply-add. This file knows no family and reads no config.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..spec import QkNorm
from .architecture import Cache, Mixer, Part, matrix, vector


def gqa(
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    v_dim: int | None = None,
    qkv_bias: bool = False,
    output_bias: bool = False,
    qk_norm: QkNorm = "none",
    window: int | None = None,
    in_chunks: bool = False,
    output_gate: bool = False,
    head_gate: bool = False,
    sinks: bool = False,
    own_values: bool = True,
) -> Mixer:
    """Grouped-query attention. `output_gate`: q has as many rows again; `head_gate`: one gate a head; `own_values`
    False: keys serve as values (they are normalised differently, so both are cached). in_chunks: `window` is that of a
    chunk."""
    v = v_dim or head_dim
    q_rows, k_rows, v_rows = heads * head_dim, kv_heads * head_dim, kv_heads * v
    parts = [matrix(q_rows * (2 if output_gate else 1), hidden, name="attn_q"), matrix(k_rows, hidden, name="attn_k")]
    parts += [matrix(v_rows, hidden, name="attn_v")] if own_values else []
    parts += [matrix(hidden, heads * v, name="attn_output")]
    parts += [vector(q_rows + k_rows + v_rows, "attention")] if qkv_bias else []
    parts += [vector(hidden, "attention")] if output_bias else []
    parts += {"none": [], "head": [vector(2 * head_dim)], "full": [vector(q_rows + k_rows)]}[qk_norm]
    parts += [matrix(heads, hidden)] if head_gate else []
    parts += [vector(heads, "attention")] if sinks else []
    return Mixer(
        kind="in chunks" if window and in_chunks else "sliding window" if window else "grouped-query",
        parts=tuple(parts),
        caches=(
            Cache(
                width=k_rows + v_rows,
                window=window,
                in_chunks=bool(window and in_chunks),
                rows=(head_dim, v),
            ),
        ),
        pair_flops=2 * heads * (head_dim + v),
    )


@dataclass(frozen=True, kw_only=True)
class Indexer:
    """What chooses the entries that sparse attention reads: `heads` queries of `dim`, one key of `dim` an entry."""

    heads: int
    dim: int
    top: int
    from_hidden: bool = False  # then the hidden state has a LayerNorm, and each head a weight and a bias
    pool: int = 1  # keys are chosen in runs of so many; a token then has what its key is weighted by besides

    def parts(self, hidden: int, query: int) -> tuple[Part, ...]:
        """Query (from the low-rank query or the hidden state), key, its LayerNorm, weights of the heads."""
        weights = Part("attention", self.heads, hidden, plain=True)
        more = [matrix(self.dim, hidden), vector(self.pool * self.dim)] if self.pool > 1 else []
        more += [vector(2 * hidden), vector(2 * self.heads)] if self.from_hidden else []
        return (matrix(self.heads * self.dim, query), matrix(self.dim, hidden), vector(2 * self.dim), weights, *more)

    @property
    def pair_flops(self) -> int:
        return 2 * self.heads * self.dim


def mla(
    hidden: int,
    heads: int,
    q_lora: int | None,
    kv_lora: int,
    nope: int,
    rope: int,
    v: int,
    *,
    bias: bool = False,
    indexer: Indexer | None = None,
    own_indexer: bool = True,
    gate_rows: int = 0,
    by_logs: bool = False,
) -> Mixer:
    """Latent attention: one latent of `kv_lora` and one rotary key of `rope` a token, shared by all heads. Checkpoints
    have both up-projections in one tensor; here that of keys is as it is used, [heads x latent, nope]. In decode the
    latent is attended directly (the up-projections move to query and output), in a prompt keys and values are made.
    `own_indexer` False: the choice of an earlier layer serves; `by_logs`: a head has a weight and a bias."""
    q_rows = heads * (nope + rope)
    low = [matrix(q_lora, hidden, name="attn_q_a"), vector(q_lora)] if q_lora else []
    parts = [*low, matrix(q_rows, q_lora or hidden, name="attn_q_b" if q_lora else "attn_q")]
    parts += [matrix(kv_lora + rope, hidden, name="attn_kv_a_mqa"), vector(kv_lora)]
    up = matrix(heads * kv_lora, nope, name="attn_k_b"), matrix(heads * v, kv_lora, name="attn_v_b")
    parts += [*up, matrix(hidden, heads * v, name="attn_output")]
    parts += [vector((q_lora or 0) + kv_lora + rope + hidden)] if bias else []  # queries of a rank alone have one
    parts += [matrix(gate_rows, hidden)] if gate_rows else []
    parts += [vector(2 * heads)] if by_logs else []
    caches = [Cache(width=kv_lora + rope, chosen=indexer.top if indexer else None)]
    if indexer and own_indexer:
        parts += indexer.parts(hidden, q_lora or hidden)
        caches.append(Cache(width=indexer.dim * (1 if indexer.pool == 1 else 2), beyond=indexer.top))
    return Mixer(
        kind="latent, sparse" if indexer else "latent",
        parts=tuple(parts),
        caches=tuple(caches),
        pair_flops=2 * heads * (nope + rope + v),
        decode_pair_flops=2 * heads * (2 * kv_lora + rope),
        made_flops=2 * heads * kv_lora * (nope + v),
    )


def with_blocks(full: Mixer, hidden: int, indexer: Indexer) -> Mixer:
    """Grouped-query attention that an indexer of its own narrows to blocks of keys."""
    parts = (matrix(indexer.heads * indexer.dim, hidden), matrix(indexer.dim, hidden), vector(2 * indexer.dim))
    caches = (replace(full.caches[0], chosen=indexer.top), Cache(width=indexer.dim, beyond=indexer.top))
    return replace(full, kind="grouped-query, sparse", parts=full.parts + parts, caches=caches)


def gated_deltanet(hidden: int, k_heads: int, v_heads: int, k_dim: int, v_dim: int, conv: int) -> Mixer:
    """Gated delta rule: a state [k_dim, v_dim] a value head, and a short convolution over q, k and v. What decides on a
    change and its decay stays float32."""
    keys, values = k_heads * k_dim, v_heads * v_dim
    channels = 2 * keys + values
    parts = (
        matrix(channels, hidden, name="attn_qkv"),
        matrix(values, hidden, name="attn_gate"),
        Part("attention", 2 * v_heads, hidden, plain=True, name="ssm_ba"),
        vector(channels * conv),
        vector(2 * v_heads + v_dim),
        matrix(hidden, values, name="ssm_out"),
    )
    state = v_heads * k_dim * v_dim
    return Mixer(
        kind="gated delta rule",
        parts=parts,
        state=state + channels * (conv - 1),
        state_flops=7 * state + 2 * channels * conv,
    )


def kimi_delta(
    hidden: int, heads: int, dim: int, conv: int, *, low_rank: bool = True, full_gate: bool = False
) -> Mixer:
    """Kimi's delta attention: a decay for every key dimension. `low_rank`: the decay comes through `dim` dimensions;
    `full_gate`: the output gate does not. What decides on a change stays float32."""
    rows = heads * dim
    parts = [matrix(rows, hidden, name=f"attn_{one}") for one in "qkv"]
    parts += [vector(3 * rows * conv), vector(rows + heads)]
    parts += [Part("attention", heads, hidden, plain=True, name="ssm_beta")]
    for name, is_narrow in (("f", low_rank), ("g", not full_gate)):
        low = [matrix(dim, hidden, name=f"ssm_{name}_a")] if is_narrow else []
        parts += [*low, matrix(rows, dim if is_narrow else hidden, name=f"ssm_{name}_b")]
    parts += [vector(dim), matrix(hidden, rows, name="attn_output")]
    state = heads * dim * dim
    return Mixer(
        kind="Kimi delta",
        parts=tuple(parts),
        state=state + 3 * rows * (conv - 1),
        state_flops=7 * state + 6 * rows * conv,
    )


def mamba2(
    hidden: int, heads: int, head_dim: int, groups: int, state: int, conv: int, conv_bias: bool, bias: bool = False
) -> Mixer:
    """Mamba 2: a state [head_dim, state] a head, one convolution over x, B and C."""
    inner = heads * head_dim
    channels = inner + 2 * groups * state
    in_rows = inner + channels + heads
    parts = [
        matrix(in_rows, hidden, name="ssm_in"),
        vector(channels * (conv + (1 if conv_bias else 0))),
        vector(3 * heads + inner),
        matrix(hidden, inner, name="ssm_out"),
    ]
    parts += [vector(in_rows + hidden)] if bias else []
    return Mixer(
        kind="Mamba 2",
        parts=tuple(parts),
        state=inner * state + channels * (conv - 1),
        state_flops=5 * inner * state + 2 * channels * conv,
    )


def short_conv(hidden: int, taps: int, bias: bool) -> Mixer:
    """LFM2's gated short convolution."""
    parts = [matrix(3 * hidden, hidden, name="in_proj"), vector(hidden * taps), matrix(hidden, hidden, name="out_proj")]
    parts += [vector(5 * hidden)] if bias else []
    return Mixer(kind="short convolution", parts=tuple(parts), state=hidden * (taps - 1), state_flops=2 * hidden * taps)


def compressed(
    hidden: int,
    heads: int,
    head_dim: int,
    q_lora: int,
    o_groups: int,
    o_lora: int,
    *,
    rate: int,
    window: int,
    indexer: Indexer | None,
) -> Mixer:
    """DeepSeek-V4: one key-value head, the last `window` tokens as they are, older ones `rate` to an entry (0: not at
    all); with an indexer two overlapping streams are compressed, and it chooses among the entries. Of an entry that is
    not whole three numbers for each of its own are kept, in every stream."""
    parts = [
        matrix(q_lora, hidden), vector(q_lora), matrix(heads * head_dim, q_lora),
        matrix(head_dim, hidden), vector(head_dim + heads),
        matrix(o_groups * o_lora, heads * head_dim // o_groups), matrix(hidden, o_groups * o_lora),
    ]  # fmt: skip
    caches = [Cache(width=head_dim, window=window)]
    if rate:
        rows = head_dim * (2 if indexer else 1)
        parts += [matrix(rows, hidden), matrix(rows, hidden), vector(rate * rows + head_dim)]
        caches.append(Cache(width=head_dim, every=rate, chosen=indexer.top if indexer else None))
    if indexer:
        two = 2 * indexer.dim
        parts += [matrix(two, hidden), matrix(two, hidden), vector(rate * two + indexer.dim)]
        parts += [matrix(indexer.heads * indexer.dim, q_lora)]
        parts += [Part("attention", indexer.heads, hidden, plain=True)]
        caches.append(Cache(width=indexer.dim, every=rate, beyond=(indexer.top + 1) * rate - 1))
    return Mixer(
        kind="compressed, sparse" if indexer else "compressed" if rate else "sliding window",
        parts=tuple(parts),
        caches=tuple(caches),
        state=3 * ((2 if indexer else 1) * head_dim + 2 * (indexer.dim if indexer else 0)) if rate else 0,
        pair_flops=4 * heads * head_dim,
    )
