"""What the readers of `architectures/` share: from the keys of a config to feed-forward parts and a whole decoder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ..families.config_reader import ConfigReader
from ..families.keys import MAX_EXPERTS, MAX_LAYERS
from .architecture import Architecture, Experts, Layer, Mixer, Part, matrix, mlp, router, vector

CONTEXT = (
    "max_position_embeddings",
    "model_max_length",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "n_positions",
)
NO_LIMIT = 2**48
Read = Callable[[ConfigReader], Architecture]


@dataclass(frozen=True, kw_only=True)
class Feed:
    """The feed-forward part of a layer: tensors that every token reads, and routed experts if it has any."""

    parts: tuple[Part, ...]
    experts: Experts | None = None


def layer_count(c: ConfigReader) -> int:
    return c.integer("num_hidden_layers", maximum=MAX_LAYERS)


def whole(c: ConfigReader, name: str, default: int) -> int:
    """A whole number >= 0 that released configs may leave out."""
    value = c.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**48:
        raise c.bad(name, value, "a whole number >= 0")
    return value


def listed(c: ConfigReader, name: str, count: int, kinds: Collection[str] = ()) -> list[Any] | None:
    """A list with an entry for each layer (of these kinds), or None where the config has none."""
    values = c.get(name)
    if values is None:
        return None
    if not isinstance(values, list) or len(values) < count:
        raise c.bad(name, values, f"a list of {count} entries, one a layer")
    if unknown := sorted({str(v) for v in values[:count]} - set(kinds)) if kinds else []:
        raise c.bad(name, unknown[0], " or ".join(kinds))
    return values[:count]


def dense_layers(c: ConfigReader, *, default: int | None = None) -> set[int]:
    """Layers without routed experts: by `mlp_layer_types`, or the first ones."""
    count = layer_count(c)
    c.get("first_k_dense_replace")
    kinds = listed(c, "mlp_layer_types", count, ("dense", "sparse"))
    if kinds is not None:
        return {i for i, kind in enumerate(kinds) if kind == "dense"}
    first = whole(c, "first_k_dense_replace", default) if default is not None else c.get("first_k_dense_replace")
    if first is None:
        raise c.bad("first_k_dense_replace", None, "the number of dense layers, or mlp_layer_types", "add it")
    return set(range(whole(c, "first_k_dense_replace", int(first))))


def dense_by_step(c: ConfigReader) -> set[int]:
    """Layers without routed experts: all but every `decoder_sparse_step`-th, and those of `mlp_only_layers`."""
    count, step, only = layer_count(c), whole(c, "decoder_sparse_step", 1), c.get("mlp_only_layers") or []
    if not isinstance(only, list) or not all(isinstance(i, int) for i in only):
        raise c.bad("mlp_only_layers", only, "a list of layer numbers")
    return {i for i in range(count) if (step and (i + 1) % step) or i in only}


def linear_layers(c: ConfigReader, names: Collection[str], others: Collection[str], interval: str | None) -> list[bool]:
    """Which layers are recurrent: by `layer_types`, else all but every `interval`-th."""
    count = layer_count(c)
    c.get(*((interval,) if interval else ()))
    kinds = listed(c, "layer_types", count, (*names, *others))
    if kinds is not None:
        return [kind in names for kind in kinds]
    step = c.integer(interval) if interval else c.require("layer_types")
    return [(i + 1) % step != 0 for i in range(count)]


def head_dim(c: ConfigReader) -> int:
    """`head_dim`, or the hidden size divided among the heads."""
    if c.get("head_dim") is not None:
        return c.integer("head_dim")
    hidden, heads = c.integer("hidden_size"), c.integer("num_attention_heads")
    if hidden % heads:
        raise c.bad("num_attention_heads", heads, f"a divisor of hidden_size = {hidden}, or a head_dim")
    return hidden // heads


def kv_heads(c: ConfigReader) -> int:
    heads = c.integer("num_attention_heads")
    count = heads if c.get("num_key_value_heads") is None else c.integer("num_key_value_heads")
    if heads % count:
        raise c.bad("num_key_value_heads", count, f"a divisor of num_attention_heads = {heads}")
    return count


def flag(c: ConfigReader, name: str, default: bool = False) -> bool:
    return default if c.get(name) is None else c.flag(name)


def routed(
    c: ConfigReader,
    *,
    count: tuple[str, ...] = ("n_routed_experts", "num_experts", "num_local_experts"),
    top_k: tuple[str, ...] = ("num_experts_per_tok", "num_experts_per_token"),
    width: str = "moe_intermediate_size",
    matrices: int = 3,
    hidden: int | None = None,
) -> Experts:
    """The routed experts of a layer."""
    experts = Experts(
        count=c.integer(*count, maximum=MAX_EXPERTS),
        top_k=c.integer(*top_k),
        hidden=hidden or c.integer("hidden_size"),
        width=c.integer(width),
        matrices=matrices,
    )
    if experts.top_k > experts.count:
        raise c.bad(top_k[0], experts.top_k, f"at most the {experts.count} experts there are")
    return experts


def sparse(
    c: ConfigReader,
    experts: Experts,
    *,
    shared: int = 0,
    shared_gate: bool = False,
    bias: bool = False,
    shared_matrices: int = 3,
) -> Feed:
    """Router, routed experts and a shared expert `shared` wide."""
    hidden = c.integer("hidden_size")
    parts = router(hidden, experts.count, bias)
    parts += mlp("shared", hidden, shared, shared_matrices) if shared else ()
    parts += (Part("router", 1, hidden, plain=True),) if shared_gate else ()
    return Feed(parts=parts, experts=experts)


def dense(c: ConfigReader, width: str = "intermediate_size", matrices: int = 3) -> Feed:
    """A feed-forward part without experts."""
    return Feed(parts=mlp("dense", c.integer("hidden_size"), c.integer(width), matrices))


def decoder(
    c: ConfigReader,
    mixers: Sequence[Mixer],
    feeds: Sequence[Feed],
    *,
    layer_extra: tuple[Part, ...] | None = None,
    extra: tuple[Part, ...] = (),
    lookup: tuple[Part, ...] = (),
    tied: bool = False,
) -> Architecture:
    """A decoder of layers that each have a mixer and a feed-forward part, with two norms each unless `layer_extra`
    says otherwise; `tied`: what an absent `tie_word_embeddings` means."""
    hidden = c.integer("hidden_size")
    norms = (vector(hidden), vector(hidden)) if layer_extra is None else layer_extra
    layers = tuple(
        Layer(mixer=mixer, parts=(*mixer.parts, *feed.parts, *norms), experts=feed.experts)
        for mixer, feed in zip(mixers, feeds, strict=True)
    )
    return Architecture(
        family=str(c.get("model_type")),
        vocab=c.integer("vocab_size"),
        hidden=hidden,
        context=context_length(c),
        layers=layers,
        tied_head=flag(c, "tie_word_embeddings", tied),
        extra=extra,
        lookup=lookup,
    )


def context_length(c: ConfigReader) -> int:
    """Tokens that the positions reach to, with what yarn adds; without limit where no number says one, since it changes
    no size."""
    longest = c.get(*CONTEXT)
    longest = NO_LIMIT if not isinstance(longest, int) or longest < 1 else longest
    for name in ("rope_scaling", "rope_parameters"):
        rope = c.get(name)
        for kind in ("full_attention", "compress"):
            if isinstance(rope, dict) and isinstance(of_kind := rope.get(kind), dict):
                rope = of_kind
        if isinstance(rope, dict) and "yarn" in (rope.get("rope_type"), rope.get("type")):
            original, factor = rope.get("original_max_position_embeddings") or longest, rope.get("factor")
            if isinstance(original, int) and isinstance(factor, (int, float)) and 0 < factor < NO_LIMIT:
                longest = max(longest, int(original * factor))
    return longest


def alternate(count: int, dense_at: Collection[int], at_dense: Feed, elsewhere: Feed) -> list[Feed]:
    return [at_dense if i in dense_at else elsewhere for i in range(count)]


def hyper_connections(hidden: int, streams: int) -> tuple[Part, ...]:
    """mHC: the mixing of `streams` residual streams before and after one part of a layer."""
    rows = (2 + streams) * streams
    return (Part("norms", rows, streams * hidden, plain=True), vector(rows + 3))


def weighted_end(hidden: int, streams: int) -> tuple[Part, ...]:
    """What weighs streams behind the last layer."""
    return (Part("norms", streams, streams * hidden, plain=True), vector(streams + 1))


def tables_of_experts(layers: int, vocab: int, top_k: int) -> tuple[Part, ...]:
    """Of so many layers what says which experts a token has."""
    return (Part("tables", layers * vocab, top_k, plain=True),) if layers else ()


def gated_connection(hidden: int, streams: int, rank: int) -> tuple[Part, ...]:
    """Gated streams before one part of a layer, their norm with them."""
    wide = streams * hidden
    low = Part("norms", rank, wide, plain=True), Part("norms", wide, rank, plain=True)
    return (vector(wide), *low, Part("norms", streams, wide, plain=True))


def last_connection(hidden: int, streams: int, rank: int) -> tuple[Part, ...]:
    """Behind the last layer, less the norm that every model has there."""
    return (vector((streams - 1) * hidden), *gated_connection(hidden, streams, rank)[1:3])


def fitting(hidden: int, joined: bool = False) -> tuple[Part, ...]:
    """What states of a residual stream that is kept fit to; joined: its norm is in it."""
    return (vector(hidden if joined else 2 * hidden),)


def latent_projections(hidden: int, latent: int, norm: bool = False) -> tuple[Part, ...]:
    """Around routed experts that work on a narrower latent."""
    return (Part("shared", latent, hidden), Part("shared", hidden, latent)) + ((vector(latent),) if norm else ())


def grams_parts(hidden: int, streams: int, width: int, taps: int) -> tuple[Part, ...]:
    """What is made of a table's rows for runs of tokens."""
    wide = streams * hidden
    return (matrix(wide, width), matrix(hidden, width), vector(wide * (3 + taps)))
