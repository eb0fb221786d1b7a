"""A reader for mixture-of-experts families that nobody wrote one for: sizes by the names that they usually have.

Attention is grouped-query, or latent where there is a `kv_lora_rank`; layers are dense or sparse by any of the usual
keys. What cannot be told by names (recurrent layers) is refused. Biases and norms that no key tells of are left out:
they are less than a thousandth, and where headers are read the totals prove the rest.
"""

from __future__ import annotations

from typing import Any

from ....errors import ConfigError
from ...families.config_reader import ConfigReader
from ..architecture import Architecture, Mixer
from ..mixers import Indexer, gqa, mla
from .sizes import (
    Feed,
    alternate,
    decoder,
    dense,
    dense_by_step,
    flag,
    head_dim,
    kv_heads,
    layer_count,
    routed,
    sparse,
    whole,
)

# The name that the readers use, and others for the same size.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "d_model", "model_dim", "hidden_dim", "embed_dim", "dim"),
    "num_hidden_layers": ("n_layers", "n_layer", "num_layers"),
    "num_attention_heads": ("n_heads", "n_head", "num_heads"),
    "num_key_value_heads": (
        "n_kv_heads", "kv_n_heads", "num_kv_heads", "num_query_groups", "num_attention_groups", "multi_query_group_num",
        "n_head_kv", "num_attn_kv_heads",
    ),
    "head_dim": ("attention_head_dim", "attention_head_size", "head_size", "kv_channels"),
    "intermediate_size": ("ffn_hidden_size", "n_inner", "ffn_dim", "d_ff", "mlp_hidden_size"),
    "num_experts": (
        "num_local_experts", "n_routed_experts", "num_routed_experts", "moe_num_experts", "n_experts", "expert_num",
        "num_moe_experts", "moe_num_primary_experts", "num_experts_per_layer",
    ),
    "num_experts_per_tok": (
        "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k", "top_k_experts", "num_selected_experts",
        "experts_per_token", "n_activated_experts", "num_activated_experts", "num_active_experts", "moe_router_topk",
        "moe_num_active_primary_experts", "expert_top_k", "top_k",
    ),
    "moe_intermediate_size": (
        "expert_intermediate_size", "moe_ffn_hidden_size", "expert_ffn_hidden_size", "expert_dim", "expert_hidden_size",
        "moe_inter_dim", "intermediate_size_expert", "moe_hidden_size",
    ),
    "n_shared_experts": ("num_shared_experts", "moe_num_shared_experts", "num_shared_expert"),
    "shared_expert_intermediate_size": (
        "shared_experts_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size",
        "share_expert_dim", "shared_expert_dim",
    ),
    "first_k_dense_replace": ("num_dense_layers", "n_dense_layers", "moe_layer_start_index", "num_dense_ffn_layers"),
    "decoder_sparse_step": (
        "interleave_moe_layer_step", "moe_every_n_layers", "moe_layer_interval", "moe_layer_frequency",
    ),
    "use_qk_norm": ("qk_norm", "use_qk_layernorm"),
    "attention_bias": ("qkv_bias", "use_qkv_bias", "add_qkv_bias", "use_bias", "add_bias_linear"),
    "max_position_embeddings": ("model_max_length", "max_seq_len", "max_sequence_length", "seq_length", "n_positions"),
}  # fmt: skip
ATTENDING = ("full", "sliding", "chunked", "global", "local", "attention")
RECURRENT = (
    "mamba_d_state",
    "ssm_state_size",
    "linear_num_value_heads",
    "linear_attn_config",
    "conv_L_cache",
    "ssm_cfg",
)
OF_EXPERTS = ("num_experts", "num_experts_per_tok")
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def read(c: ConfigReader, nearest: str, without_experts: bool = False) -> Architecture:
    """The architecture by the usual names; raises ConfigError, which names what is missing and the nearest families.
    without_experts: a dense model will do."""
    name = c.get("model_type")
    c.values = _spelled(c)
    is_dense = without_experts and all(c.get(key) is None for key in (*OF_EXPERTS, "moe_intermediate_size"))
    if missing := [key for key in (() if is_dense else OF_EXPERTS) + NEEDED if c.get(key) is None]:
        what = "has no experts" if missing[0] == "num_experts" else f"has no '{missing[0]}'"
        raise ConfigError(f"{c.source}: model_type '{name}' is not known{nearest}, and the config {what} to plan by")
    kinds = {str(kind) for kind in c.get("layer_types") or ()}
    odd = [kind for kind in sorted(kinds) if not any(word in kind and "linear" not in kind for word in ATTENDING)]
    if odd := odd or [key for key in RECURRENT if c.get(key) is not None]:
        raise ConfigError(
            f"{c.source}: model_type '{name}' is not known{nearest}, and the sizes of its layers of kind '{odd[0]}' "
            "cannot be told by names"
        )
    return decoder(c, _mixers(c), [dense(c)] * layer_count(c) if is_dense else _feeds(c))


def _spelled(c: ConfigReader) -> dict[str, Any]:
    """The values under the readers' names, those of nested objects (attn_config, ffn_config) included."""
    nested = {
        key: value
        for name, part in c.values.items()
        if isinstance(part, dict) and name.endswith("_config") and "quant" not in name
        for key, value in part.items()
    }
    reader = type(c)({**nested, **c.values}, c.source)
    found = {name: value for name, others in SPELLINGS.items() if (value := reader.get(name, *others)) is not None}
    c.seen |= reader.seen
    return {**reader.values, **found}


def _mixers(c: ConfigReader) -> list[Mixer]:
    count = layer_count(c)
    if c.get("kv_lora_rank") is not None:
        return [_latent(c)] * count
    kinds, window = c.get("layer_types"), c.get("sliding_window")
    bias, qk_norm = flag(c, "attention_bias"), "head" if c.get("use_qk_norm") else "none"
    full, windowed = (
        gqa(
            c.integer("hidden_size"), c.integer("num_attention_heads"), kv_heads(c), head_dim(c),
            qkv_bias=bias, qk_norm=qk_norm, window=size,  # type: ignore[arg-type]
        )
        for size in (None, window)
    )  # fmt: skip
    if not isinstance(kinds, list) or len(kinds) < count or not isinstance(window, int):
        return [full] * count
    return [windowed if "sliding" in str(kind) or "local" in str(kind) else full for kind in kinds[:count]]


def _latent(c: ConfigReader) -> Mixer:
    indexer = None
    if c.get("index_topk") is not None:
        indexer = Indexer(
            heads=c.integer("index_n_heads"), dim=c.integer("index_head_dim"), top=c.integer("index_topk")
        )
    return mla(
        c.integer("hidden_size"), c.integer("num_attention_heads"), whole(c, "q_lora_rank", 0) or None,
        c.integer("kv_lora_rank"), c.integer("qk_nope_head_dim"), whole(c, "qk_rope_head_dim", 0),
        c.integer("v_head_dim"), bias=flag(c, "attention_bias"), indexer=indexer,
    )  # fmt: skip


def _feeds(c: ConfigReader) -> list[Feed]:
    own = "moe_intermediate_size" if c.get("moe_intermediate_size") is not None else "intermediate_size"
    experts = routed(c, own)
    shared = whole(c, "shared_expert_intermediate_size", 0)
    number = whole(c, "n_shared_experts", 0)
    width = number * experts.width if number and shared in (0, experts.width) else shared
    feed = sparse(c, experts, width)
    at = _dense_at(c)
    return alternate(layer_count(c), at, dense(c) if at else feed, feed)


def _dense_at(c: ConfigReader) -> set[int]:
    """Layers without experts, by whichever of the usual keys is there."""
    count, each = layer_count(c), c.get("moe_layer_freq")
    if isinstance(kinds := c.get("mlp_layer_types"), list):
        return {i for i, kind in enumerate(kinds[:count]) if kind == "dense"}
    if isinstance(each, list):  # one flag a layer
        return {i for i, has in enumerate(each[:count]) if not has}
    if isinstance(layers := c.get("moe_layers"), list):
        return set(range(count)) - {int(i) for i in layers}
    first = set(range(min(count, whole(c, "first_k_dense_replace", 0))))
    return first | dense_by_step(c)
