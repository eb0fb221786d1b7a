"""The architecture, for sizes and FLOPs, of a model that the engine runs: of its spec, or of the sizes in its config.

A spec has everything that a run computes with; a plan needs the sizes alone, and a config whose other settings nobody
can run has these too. That both say the same is held by a test.
"""

from __future__ import annotations

from ..families.config_reader import ConfigReader
from ..families.family import Family, Key
from ..spec import ModelSpec
from .architecture import Architecture, Experts, Layer, Part, mlp, router, vector
from .common import alternate, decoder, dense, dense_by_step, flag, head_dim, kv_heads, layer_count, routed
from .common import sparse as sparse_feed
from .mixers import gqa


def of_spec(spec: ModelSpec) -> Architecture:
    """The architecture of a model that the engine runs."""
    att, moe, hidden = spec.attention, spec.moe, spec.hidden
    mixer = gqa(
        hidden, att.heads, att.kv_heads, att.head_dim,
        qkv_bias=att.qkv_bias, output_bias=att.output_bias, qk_norm=att.qk_norm,
    )  # fmt: skip
    norms = (vector(hidden), vector(hidden))
    shared = mlp("shared", hidden, moe.shared_width) if moe.shared_width else ()
    gate = (Part("router", 1, hidden, plain=True),) if moe.shared_gate else ()
    experts = Experts(count=moe.experts, top_k=moe.top_k, hidden=hidden, width=moe.width)
    sparse = Layer(
        mixer=mixer, parts=(*mixer.parts, *router(hidden, moe.experts), *shared, *gate, *norms), experts=experts
    )
    dense = Layer(mixer=mixer, parts=(*mixer.parts, *mlp("dense", hidden, spec.dense_width), *norms), experts=None)
    return Architecture(
        family=spec.family,
        vocab=spec.vocab,
        hidden=hidden,
        context=spec.context,
        layers=tuple(sparse if is_moe else dense for is_moe in spec.is_moe),
        tied_head=spec.tied_head,
    )


def of_family(family: Family, c: ConfigReader) -> Architecture:
    """The architecture that a config of `family` says; reads sizes, and the flags that decide which tensors there are.
    Raises ConfigError for sizes that are missing or impossible."""

    def has(value: bool | Key) -> bool:
        return flag(c, value.name, bool(value.default)) if isinstance(value, Key) else value

    count = layer_count(c)
    mixer = gqa(
        c.integer("hidden_size"), c.integer("num_attention_heads"), kv_heads(c), head_dim(c),
        qkv_bias=has(family.qkv_bias), output_bias=has(family.output_bias), qk_norm=family.qk_norm,
    )  # fmt: skip
    feed = sparse_feed(
        c,
        routed(c, count=family.experts, width=family.expert_width),
        shared=c.integer(family.shared_width) if family.shared_width else 0,
        shared_gate=family.shared_gate,
    )
    dense_at = dense_by_step(c) if family.dense_width else set()
    between = dense(c, family.dense_width) if family.dense_width and dense_at else feed
    c.seen.update(filter(None, (family.dense_width,)))
    return decoder(c, [mixer] * count, alternate(count, dense_at, between, feed), tied=has(family.tied_head))
