"""Keys that say again what a family or other keys say already: other libraries and tools that merge models write them.

Where they agree they are read over; where they do not, one of them is wrong, and no guess is made.
"""

from __future__ import annotations

from typing import Any

from ..spec import AttentionSpec, ModelSpec, MoeSpec, Recurrent
from .config_reader import ConfigReader, says_nothing

ROTARY, RMS, SILU = ("rope", "rotary"), ("rmsnorm", "rms_norm", "rms"), ("silu", "swish", "swiglu")


def facts(spec: ModelSpec) -> dict[str, tuple[Any, ...]]:
    """By key the values that agree with a spec."""
    mixer, moe = spec.mixers[-1], spec.moe
    rope = None if isinstance(mixer, Recurrent) else mixer.rope
    layers, experts, scoring = (len(spec.layers),), (moe.experts,), (moe.scoring.removesuffix("_topk"),)
    return {
        **(_of_attention(mixer) if isinstance(mixer, AttentionSpec) else {}),
        **({"initial_context_length": (rope.original_context,)} if rope and rope.original_context else {}),
        "norm_topk_prob": (moe.renormalise or moe.scoring == "softmax_topk",), "moe_renormalize": (moe.renormalise,),
        "scoring_func": scoring, "router_score_function": scoring, "moe_router_activation_func": scoring,
        "topk_method": _methods(moe), "position_embedding_type": ROTARY, "pos_emb_type": ROTARY,
        "norm_type": RMS, "normalization_type": RMS, "normalization": RMS, "hidden_activation": SILU,
        "activation_function": SILU, "mlp_hidden_act": SILU, "num_layers": layers, "n_layer": layers,
        "n_layers": layers,
        "n_embd": (spec.hidden,), "d_model": (spec.hidden,),
        "num_experts": experts, "num_local_experts": experts, "n_routed_experts": experts, "moe_num_experts": experts,
        "moe_topk": (moe.top_k,), "moe_k": (moe.top_k,), "num_experts_per_token": (moe.top_k,),
        "experts_per_token": (moe.top_k,), "moe_top_k": (moe.top_k,), "num_selected_experts": (moe.top_k,),
        "intermediate_size": (spec.dense_width, moe.width), "moe_intermediate_size": (moe.width,),
        "expert_intermediate_size": (moe.width,), "norm_eps": (spec.norm_eps,), "layer_norm_eps": (spec.norm_eps,),
        "layer_norm_epsilon": (spec.norm_eps,), "mlp_layer_types": (["sparse" if m else "dense" for m in spec.is_moe],),
        "is_causal": (True,), "use_rmsnorm": (True,), "use_rope": (True,),
    }  # fmt: skip


def _of_attention(it: AttentionSpec) -> dict[str, tuple[Any, ...]]:
    bias, size, norm = (it.qkv_bias,), (it.head_dim,), (it.qk_norm != "none",)
    return {
        "attention_bias": bias, "qkv_bias": bias, "use_qkv_bias": bias, "attn_bias": bias, "use_qk_norm": norm,
        "qk_norm": norm, "n_head": (it.heads,), "num_heads": (it.heads,), "kv_channels": size,
        "attention_head_dim": size, "qk_head_dim": size, "v_head_dim": size,
    }  # fmt: skip


def _methods(moe: MoeSpec) -> tuple[str, ...]:
    """What DeepSeek's configs call a router's way to choose."""
    if moe.choice_bias:
        return ("noaux_tc",)
    return ("greedy", "group_limited_greedy") if moe.groups == 1 else ("group_limited_greedy",)


def check(config: ConfigReader, spec: ModelSpec) -> None:
    """Reads the keys that nobody has read; refuses one that says something else than the spec."""
    for name, agreeing in facts(spec).items() if any(spec.is_moe) else ():
        if name in config.seen or name not in config.values:
            continue
        value = config.get(name)
        if value in agreeing or (says_nothing(value) and not isinstance(value, bool)):
            continue
        wanted = " or ".join(map(repr, agreeing))
        config.refuse(config.bad(name, value, f"{wanted}, as the rest says", config.way_round([name])))


CONTEXTS = ("max_seq_len", "max_sequence_length", "model_max_length", "n_positions", "n_ctx", "seq_length", "seq_len")


def read_over_contexts(config: ConfigReader) -> None:
    """Other names of the context, which is `max_position_embeddings`: libraries write theirs beside it."""
    config.seen.update(CONTEXTS)
