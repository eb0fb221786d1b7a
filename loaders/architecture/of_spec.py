"""The architecture, for sizes and FLOPs, of a model that the engine runs."""

from __future__ import annotations

from ..spec import ModelSpec
from .architecture import Architecture, Experts, Layer, Part, mlp, router, vector


def of_spec(spec: ModelSpec) -> Architecture:
    """The architecture of a model that the engine runs."""
    from .mixers import gqa

    att, moe, hidden = spec.attention, spec.moe, spec.hidden
    mixer = gqa(
        hidden, att.heads, att.kv_heads, att.head_dim,
        qkv_bias=att.qkv_bias, output_bias=att.output_bias, qk_norm=att.qk_norm,
    )  # fmt: skip
    base = (*mixer.parts, vector(hidden), vector(hidden))
    shared = mlp("shared", hidden, moe.shared_width) if moe.shared_width else ()
    gate = (Part("router", 1, hidden, plain=True),) if moe.shared_gate else ()
    experts = Experts(count=moe.experts, top_k=moe.top_k, hidden=hidden, width=moe.width)
    sparse = Layer(mixer=mixer, parts=(*base, *router(hidden, moe.experts), *shared, *gate), experts=experts)
    dense = Layer(mixer=mixer, parts=(*base, *mlp("dense", hidden, spec.dense_width)), experts=None)
    return Architecture(
        family=spec.family,
        vocab=spec.vocab,
        hidden=hidden,
        context=spec.context,
        layers=tuple(sparse if is_moe else dense for is_moe in spec.is_moe),
        tied_head=spec.tied_head,
    )
