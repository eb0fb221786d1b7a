"""Which keys of a config may change sizes, by their names: of those that no reader asked for, a plan names no others.

A key's words say what it is about. A number behind "heads" or "dim" may be a tensor's size; behind "rope", "loss" or
"token_id" it is not, whatever else the name says.
"""

from __future__ import annotations

from typing import Any

SIZES = frozenset(
    (
        "blocks", "channels", "conv", "count", "dim", "dims", "expand", "expert", "experts", "heads", "hidden",
        "kernel", "latent", "layer", "layers", "lora", "n", "ngram", "num", "rank", "shared", "size", "state",
        "table", "width", "window",
    )
)  # fmt: skip
# Positions, scores, training, generation, other inputs, how devices share the work.
OTHER = frozenset(
    (
        "act", "audio", "aux", "beam", "beams", "cache", "chunk", "coef", "coeff", "divisible", "dropout", "dtype",
        "ep", "every", "epsilon", "eps", "factor", "gradient", "group", "id", "ids", "image", "implementation", "init",
        "initializer", "interval", "iters", "jitter", "labels", "length", "limit", "limits", "logits", "loss", "mm",
        "modules", "mrope", "mtp", "multiplier", "name", "nextn", "norm", "normalize", "parallel", "position",
        "positions", "predict", "projector", "range", "rate", "ratio", "return", "rope", "rotary", "router", "scale",
        "scaling", "scoring", "sequences", "sink", "sinkhorn", "softcap", "softcapping", "speech", "spatial", "split",
        "temperature", "theta", "token", "tokens", "topk", "tp", "train", "training", "video", "vision", "visual",
    )
)  # fmt: skip
# Whole names: sizes that some families have, and that stand in the configs of others without meaning.
WITHOUT_MEANING = frozenset(
    (
        "add_swa_attention_sink_bias", "attn_type_list", "expand", "experts_per_token", "first_k_dense_replace",
        "head_dim", "index_local_blocks", "intermediate_size", "mamba_expand", "max_window_layers", "mlp_only_layers",
        "moe_layer_freq", "moe_layer_num_skipped", "moe_layers", "n_group", "num_expert_group", "num_key_value_heads",
        "q_lora_rank", "qk_head_dim", "qk_rope_head_dim", "sliding_window", "use_sliding_window", "v_head_dim",
        "vocab_size",
    )
)  # fmt: skip


def may_change_sizes(key: str, value: Any) -> bool:
    """Whether a key that was not read may change a size: by its name, where it has a value that could."""
    if not value or isinstance(value, bool) or key in WITHOUT_MEANING:
        return False
    words = set(key.lower().split("_"))
    return bool(words & SIZES) and not words & OTHER and _holds_a_number(value)


def _holds_a_number(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_holds_a_number, value))
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
