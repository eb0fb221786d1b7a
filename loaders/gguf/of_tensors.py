"""The architecture of a GGUF model: tensors as they stand in the file, caches by the metadata.

Nothing goes by the name of the arch: a header has the shape of every tensor, and `{arch}.attention.*` and
`{arch}.ssm.*` mean the same for all of them. So a model of an arch that nobody knows is counted to the weight.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import CheckpointError
from ..architecture.architecture import Architecture, Cache, Experts, Layer, Mixer, Part
from ..architecture.context import NO_LIMIT
from ..architecture.tensor_names import GROUP_OF, LEFT_OUT, place
from ..files.headers import Stored

# Every how many layers one attends to everything, where converters leave that to the arch.
PATTERNS = {"gpt-oss": 2, "cohere2moe": 4, "exaone-moe": 4, "llama4": 4, "smallthinker": 4, "afmoe": 4, "laguna": 4}
FIRST_SEES_ALL = ("laguna",)  # others: the last of so many layers
CHUNKS = {"llama4": 8192}
STREAMS_NORM = "output_hc_norm.weight"  # of several residual streams, in place of the final norm
NARROW = 32  # matrices of fewer columns (convolutions) are never quantised


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The metadata of one arch, by the name behind its prefix."""

    values: Mapping[str, Any]
    arch: str

    def get(self, name: str) -> Any:
        return self.values.get(f"{self.arch}.{name}")

    def number(self, name: str, layer: int | None = None, default: int = 0) -> int:
        """A whole number; of one a layer that of `layer`, or the largest."""
        value = self.get(name)
        if isinstance(value, list):
            value = max(value, default=0) if layer is None else value[layer] if layer < len(value) else 0
        if value is None:
            return default
        if not isinstance(value, (int, float)) or not 0 <= value < 2**48:
            raise CheckpointError(f"{self.arch}.{name} is {value!r}, a number from 0 is needed")
        return int(value)


def layers_of(meta: Metadata) -> int:
    """Layers of the decoder; those for multi-token prediction are counted in the file."""
    return meta.number("block_count") - meta.number("nextn_predict_layers")


def read(metadata: Mapping[str, Any], tensors: Sequence[Stored], family: str) -> Architecture:
    """The architecture; raises CheckpointError where metadata and tensors make none."""
    meta = Metadata(values=metadata, arch=str(metadata.get("general.architecture")))
    count, hidden = layers_of(meta), meta.number("embedding_length")
    if not 1 <= count <= 1000 or hidden < 1:
        raise CheckpointError(f"it has {count} layers with a hidden size of {hidden}")
    stored: dict[int, list[tuple[str, Stored]]] = defaultdict(list)
    outside: list[tuple[str, Stored]] = []
    for tensor in tensors:
        layer, group = place(tensor.name, count)
        if group not in LEFT_OUT:
            (outside if layer is None or group == "tables" else stored[layer]).append((group, tensor))
    embedding = next((t for group, t in outside if group == "embedding" and len(t.shape) == 2), None)
    vocab = embedding.shape[0] if embedding else meta.number("vocab_size", default=1)
    if vocab < 1:
        raise CheckpointError(f"its vocabulary has {vocab} tokens")
    return Architecture(
        family=family,
        vocab=vocab,
        hidden=hidden,
        context=meta.number("context_length") or NO_LIMIT,
        layers=tuple(_layer(meta, i, hidden, stored[i]) for i in range(count)),
        tied_head=not any(group == "head" for group, _ in outside),
        extra=tuple(_part(group, t, hidden) for group, t in outside if _is_extra(group, t)),
        lookup=tuple(_part(group, t, hidden) for group, t in outside if group == "tables"),
    )


def _is_extra(group: str, tensor: Stored) -> bool:
    """Whether a tensor outside of layers is none of those that every decoder has."""
    is_one = group in ("embedding", "head") and len(tensor.shape) == 2
    return not is_one and group != "tables" and tensor.name not in ("output_norm.weight", "token_embd_norm.weight")


def _part(group: str, tensor: Stored, hidden: int) -> Part:
    """A tensor as a matrix; vectors, routers and convolutions stay as they are in every format."""
    *rows, cols = tensor.shape or (1,)
    name = tensor.name.removesuffix(".weight").split(".")[-1]
    plain = not rows or group in ("router", "norms") or cols < NARROW
    if tensor.name == STREAMS_NORM:  # less the norm that every decoder has
        cols -= hidden
    return Part(GROUP_OF[group], math.prod(rows), cols, plain=plain, name=name)


def _layer(meta: Metadata, index: int, hidden: int, stored: list[tuple[str, Stored]]) -> Layer:
    parts = tuple(_part(group, tensor, hidden) for group, tensor in stored if group != "experts")
    names = {tensor.name.split(".", 2)[-1] for _, tensor in stored}
    return Layer(
        mixer=_mixer(meta, index, hidden, names, parts),
        parts=parts,
        experts=_experts(meta, hidden, [tensor for group, tensor in stored if group == "experts"]),
    )


def _experts(meta: Metadata, hidden: int, tensors: list[Stored]) -> Experts | None:
    """The routed experts of a layer: matrices [experts, rows, columns], or one tensor an expert as older files have."""
    if not tensors:
        return None
    stacked = [t for t in tensors if len(t.shape) == 3]
    single = [t for t in tensors if len(t.shape) == 2 and not t.name.endswith((".bias", ".scale"))]
    matrices = stacked or single
    count = stacked[0].shape[0] if stacked else meta.number("expert_count", default=1)
    down = next((t for t in matrices if "ffn_down" in t.name), None)
    if down is None:
        raise CheckpointError(f"its layer with '{tensors[0].name}' has no ffn_down of experts")
    inner, width = down.shape[-2], down.shape[-1]
    every = sum(math.prod(t.shape) for t in tensors)
    of_matrices = sum(math.prod(t.shape) for t in matrices)
    return Experts(
        count=count,
        top_k=min(meta.number("expert_used_count", default=1), count),
        hidden=inner,
        width=width,
        matrices=round(of_matrices / (count * inner * width)),
        bias=(every - of_matrices) // count,
    )


def _mixer(meta: Metadata, index: int, hidden: int, names: set[str], parts: tuple[Part, ...]) -> Mixer | None:
    """What looks at other tokens: attention over a cache, a recurrent state, or both."""
    attends = any(n.startswith(("attn_q.", "attn_k.", "attn_kv", "attn_q_a.", "attn_k_b.")) for n in names)
    recurrent = any(n.startswith(("ssm_", "shortconv.")) for n in names)
    attends = attends and "ssm_f_b.weight" not in names  # whose queries and keys are of a delta rule
    attends = attends or (not recurrent and "attn_qkv.weight" in names)
    if not attends and not recurrent:
        return None
    state, state_flops = _state(meta, hidden, names, parts) if recurrent else (_of_entries(meta, index, names), 0)
    if "ple_conv1d.weight" in names:  # the last inputs of its convolution, and the last tokens
        size, wide = meta.number("ple.ngram_size"), hidden * meta.number("hyper_connection.count")
        state += wide * (meta.number("ple.conv_kernel") - 1) * size + size - 1
    kind, caches, pair, decode_pair, made = (
        _attention(meta, index, parts, names) if attends else ("recurrent", (), 0, None, 0)
    )
    # The parts of the layer are with the layer: a mixer's own are asked for nowhere else.
    return Mixer(
        kind=kind, parts=(), caches=caches, state=state, pair_flops=pair, decode_pair_flops=decode_pair,
        state_flops=state_flops, made_flops=made,
    )  # fmt: skip


def _attention(
    meta: Metadata, index: int, parts: tuple[Part, ...], names: set[str]
) -> tuple[str, tuple[Cache, ...], int, int | None, int]:
    """Kind, caches, FLOPs of a pair in a prompt and in decode, and of keys and values that are made of an entry."""
    heads = meta.number("attention.head_count", index)
    if heads < 1:
        raise CheckpointError(f"layer {index} attends, and {meta.arch}.attention.head_count says no heads")
    size = meta.number("attention.key_length", default=meta.number("embedding_length") // max(heads, 1))
    v = meta.number("attention.value_length", default=size)
    top = _chosen(meta, names)
    keys: tuple[Cache, ...] = (Cache(width=meta.number("attention.indexer.key_length")),) if top else ()
    if "indexer_compressor_gate.weight" in names and meta.get("attention.indexer.kpool"):
        keys = tuple(replace(one, width=2 * one.width) for one in keys)  # what keys are weighted by besides
    if latent := meta.number("attention.kv_lora_rank"):
        keys = tuple(replace(one, beyond=top or 0) for one in keys if "indexer.attn_k.weight" in names)
        rope = meta.number("rope.dimension_count")
        full = meta.number("attention.key_length_mla", default=size)
        out = meta.number("attention.value_length_mla", default=v)
        caches = (Cache(width=latent + rope, chosen=top), *keys)
        kind = "latent, sparse" if top else "latent"
        made = 2 * heads * latent * (full - rope + out)
        return kind, caches, 2 * heads * (full + out), 2 * heads * (2 * latent + rope), made
    kv = meta.number("attention.head_count_kv", index, default=heads)
    window = window_of(meta, index)
    if window:
        size = meta.number("attention.key_length_swa", default=size)
        v = meta.number("attention.value_length_swa", default=v)
    rates, in_blocks = meta.get("attention.compress_ratios"), "indexer.q_proj.weight" in names
    if isinstance(rates, list) and not in_blocks:  # keys serve as values; older ones are kept so many to an entry
        every = rates[index] if index < len(rates) else 0
        recent = Cache(width=size, window=meta.number("attention.sliding_window") or None)
        some = top if _is_chosen(every) else None
        older: tuple[Cache, ...] = (Cache(width=size, every=every, chosen=some),) if every else ()
        if some:
            beyond = (some + 1) * every - 1
            older += tuple(replace(one, every=every, beyond=beyond) for one in keys)
        return "compressed", (recent, *older), 4 * heads * size, None, 0
    rows = {part.name: part.rows for part in parts if not part.plain}
    width = rows["attn_k"] + rows.get("attn_v", rows["attn_k"]) if "attn_k" in rows else kv * (size + v)
    in_chunks = bool(window) and meta.arch in CHUNKS
    keys = tuple(replace(one, beyond=top or 0) for one in keys) if in_blocks else keys
    cache = Cache(width=width, window=window, chosen=None if window else top, in_chunks=in_chunks)
    kind = "in chunks" if in_chunks else "sliding window" if window else "grouped-query"
    kind += ", sparse" if in_blocks else ""
    return kind, (cache, *keys), 2 * heads * (size + v), None, 0


def _chosen(meta: Metadata, names: set[str]) -> int | None:
    """Keys of a layer that a query sees, where an indexer chooses them; those behind the last whole run with them."""
    top = meta.number("attention.indexer.top_k")
    if size := meta.number("attention.indexer.block_size"):
        return size * top if top and "indexer.k_proj.weight" in names else None
    rates = meta.get("attention.compress_ratios")
    run = max(rates, default=0) if isinstance(rates, list) and "indexer.k_proj.weight" in names else 0
    return top + max(run, meta.number("attention.indexer.kpool"), 1) - 1 if top else None


def _is_chosen(every: int) -> bool:
    """Whether an indexer chooses among entries that stand for so many tokens."""
    return 0 < every < 128


def _of_entries(meta: Metadata, index: int, names: set[str]) -> int:
    """Elements that are kept of compressed entries that are not whole: three for each of theirs, in two series where an
    indexer chooses among them. Where runs of keys are chosen there are none."""
    rates = None if "indexer.q_proj.weight" in names else meta.get("attention.compress_ratios")
    every = rates[index] if isinstance(rates, list) and index < len(rates) else 0
    size = meta.number("attention.key_length")
    if _is_chosen(every):
        return 6 * (size + meta.number("attention.indexer.key_length"))
    return 3 * size if every else 0


def window_of(meta: Metadata, index: int) -> int | None:
    """Tokens that a layer looks back; None: all, also where nothing says which layers do not."""
    window = meta.number("attention.sliding_window") or CHUNKS.get(meta.arch, 0)
    pattern = meta.get("attention.sliding_window_pattern") or PATTERNS.get(meta.arch)
    if not window or not pattern:
        return None
    if isinstance(pattern, list):
        return window if index < len(pattern) and pattern[index] else None
    return window if (index + (meta.arch not in FIRST_SEES_ALL)) % int(pattern) else None


def _state(meta: Metadata, hidden: int, names: set[str], parts: tuple[Part, ...]) -> tuple[int, int]:
    """Elements of recurrent and convolution state, and FLOPs of a token on them."""
    taps = max(meta.number("ssm.conv_kernel"), meta.number("shortconv.l_cache"), 1)
    if any(n.startswith("shortconv.") for n in names):
        return hidden * (taps - 1), 2 * hidden * taps
    inner, size = meta.number("ssm.inner_size"), meta.number("ssm.state_size")
    channels = inner + 2 * meta.number("ssm.group_count", default=1) * size
    if dim := meta.number("kda.head_dim"):
        heads = next((part.rows for part in parts if part.name == "ssm_beta"), meta.number("attention.head_count"))
        inner, size = heads * dim, dim
        channels = 3 * inner
    is_delta = any(n.startswith(("ssm_beta", "ssm_ba", "ssm_alpha")) for n in names)
    state = inner * size
    return state + channels * (taps - 1), (7 if is_delta else 5) * state + 2 * channels * taps
