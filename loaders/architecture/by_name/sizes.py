"""From the keys of a config, by the names that they usually have, to feed-forward parts and a whole decoder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ...families.config_reader import ConfigReader
from ...families.keys import MAX_EXPERTS, MAX_LAYERS
from ..architecture import Architecture, Experts, Layer, Mixer, Part, mlp, router, vector
from ..context import context_length


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


def dense_by_step(c: ConfigReader) -> set[int]:
    """Layers without routed experts: all but every `decoder_sparse_step`-th, and those of `mlp_only_layers`."""
    count, step, only = layer_count(c), whole(c, "decoder_sparse_step", 1), c.get("mlp_only_layers") or []
    if not isinstance(only, list) or not all(isinstance(i, int) for i in only):
        raise c.bad("mlp_only_layers", only, "a list of layer numbers")
    return {i for i in range(count) if (step and (i + 1) % step) or i in only}


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


def routed(c: ConfigReader, width: str) -> Experts:
    """The routed experts of a layer."""
    experts = Experts(
        count=c.integer("num_experts", maximum=MAX_EXPERTS),
        top_k=c.integer("num_experts_per_tok"),
        hidden=c.integer("hidden_size"),
        width=c.integer(width),
    )
    if experts.top_k > experts.count:
        raise c.bad("num_experts_per_tok", experts.top_k, f"at most the {experts.count} experts there are")
    return experts


def sparse(c: ConfigReader, experts: Experts, shared: int) -> Feed:
    """Router, routed experts and a shared expert `shared` wide."""
    hidden = c.integer("hidden_size")
    beside = mlp("shared", hidden, shared) if shared else ()
    return Feed(parts=router(hidden, experts.count) + beside, experts=experts)


def dense(c: ConfigReader) -> Feed:
    """A feed-forward part without experts."""
    return Feed(parts=mlp("dense", c.integer("hidden_size"), c.integer("intermediate_size")))


def decoder(c: ConfigReader, mixers: Sequence[Mixer], feeds: Sequence[Feed]) -> Architecture:
    """A decoder of layers that each have a mixer and a feed-forward part, with two norms each."""
    hidden = c.integer("hidden_size")
    norms = (vector(hidden), vector(hidden))
    layers = tuple(
        Layer(mixer=mixer, parts=(*mixer.parts, *feed.parts, *norms), experts=feed.experts)
        for mixer, feed in zip(mixers, feeds, strict=True)
    )
    return Architecture(
        family=str(c.get("model_type")), vocab=c.integer("vocab_size"), hidden=hidden, context=context_length(c),
        layers=layers, tied_head=flag(c, "tie_word_embeddings"),
    )  # fmt: skip


def alternate(count: int, dense_at: Collection[int], at_dense: Feed, elsewhere: Feed) -> list[Feed]:
    return [at_dense if i in dense_at else elsewhere for i in range(count)]
