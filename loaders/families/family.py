"""What one family of checkpoints is, as data: its config keys, its router recipe, its tensor names.

A family is a literal of `Family` in a file of its own, listed in `__init__.py`. `read_spec` turns a config.json into a
`ModelSpec` with it. Adding a grouped-query family means adding a literal; the decoder does not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ...errors import ConfigError
from ..spec import AttentionSpec, ModelSpec, MoeSpec, QkNorm
from . import quantisation, said_twice, window
from .config_reader import ConfigReader
from .rope import read_rope

# Far above any model: a config that asks for more is damaged, and listing its tensors alone would fill the memory.
MAX_LAYERS = 1000
MAX_EXPERTS = 10000


@dataclass(frozen=True)
class Key:
    """A value that stands in config.json under `name`, or is `default` where released configs leave it out."""

    name: str
    default: Any = None


@dataclass(frozen=True, kw_only=True)
class TensorNames:
    """Checkpoint names by role. Layer names follow `layer`; `{e}` is the expert. None: the family has no such
    tensor."""

    embed: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    head: str = "lm_head.weight"
    layer: str = "model.layers.{layer}."
    attn_norm: str = "input_layernorm.weight"
    mlp_norm: str = "post_attention_layernorm.weight"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    q_norm: str = "self_attn.q_norm.weight"
    k_norm: str = "self_attn.k_norm.weight"
    router: str = "mlp.gate.weight"
    expert_gate: str | None = "mlp.experts.{e}.gate_proj.weight"
    expert_up: str | None = "mlp.experts.{e}.up_proj.weight"
    expert_down: str = "mlp.experts.{e}.down_proj.weight"
    fused_gate_up: str | None = None  # gate rows first, then up
    experts_turned: bool = False  # [experts, in, out] instead of [experts, out, in]
    mlp_gate: str = "mlp.gate_proj.weight"
    mlp_up: str = "mlp.up_proj.weight"
    mlp_down: str = "mlp.down_proj.weight"
    shared_gate: str = "mlp.shared_expert.gate_proj.weight"
    shared_up: str = "mlp.shared_expert.up_proj.weight"
    shared_down: str = "mlp.shared_expert.down_proj.weight"
    shared_expert_gate: str = "mlp.shared_expert_gate.weight"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family. A `Key` is looked up in config.json; a plain value is part of the architecture."""

    model_type: str
    architecture: str
    experts: tuple[str, ...]
    expert_width: str
    scoring: Literal["softmax", "softmax_topk"]
    renormalise: bool | Key
    dense_width: str | None = None
    shared_width: str | None = None
    shared_gate: bool = False
    qkv_bias: bool | Key = False
    output_bias: bool | Key = False
    qk_norm: QkNorm = "none"
    clip: Key | None = None
    attention_scale: Key | None = None
    embedding_scale: Key | None = None
    residual_scale: Key | None = None
    logits_divisor: Key | None = None
    tied_head: bool | Key = Key("tie_word_embeddings", False)
    window_needs_switch: bool = False  # `sliding_window` counts only where `use_sliding_window` is true
    tensors: TensorNames = TensorNames()


def read_spec(family: Family, config: ConfigReader) -> ModelSpec:
    """The spec of a checkpoint of `family`; raises ConfigError for a missing, unknown or unsupported value."""
    quantisation.read(config)
    config.only("hidden_act", ("silu", "swish"))
    window.check_layer_types(config)
    attention = _read_attention(family, config)
    rope = read_rope(config, attention.head_dim)
    context = max(config.integer("max_position_embeddings"), rope.extended_context)
    spec = ModelSpec(
        family=family.model_type,
        vocab=config.integer("vocab_size"),
        hidden=config.integer("hidden_size"),
        context=window.context_within_window(config, context, family.window_needs_switch),
        norm_eps=config.number("rms_norm_eps"),
        attention=attention,
        rope=rope,
        moe=_read_moe(family, config),
        is_moe=_read_layers(family, config),
        dense_width=config.integer(family.dense_width) if family.dense_width else 0,
        tied_head=_flag(config, family.tied_head),
        embedding_scale=_scale(config, family.embedding_scale),
        residual_scale=_scale(config, family.residual_scale),
        logits_divisor=_scale(config, family.logits_divisor),
        eos_ids=_read_eos(config),
    )
    said_twice.check(config, spec)
    said_twice.read_over_contexts(config)
    config.finish()
    return spec


def read_eos(value: Any) -> tuple[int, ...]:
    """End tokens of a config: null, one id, or a list; raises ValueError for anything else."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ValueError(f"eos_token_id is {value!r}, supported is null, a token id or a list of them")
    return tuple(ids)


def _read_eos(config: ConfigReader) -> tuple[int, ...]:
    try:
        return read_eos(config.get("eos_token_id"))
    except ValueError as error:
        raise ConfigError(f"{config.source}: {error}") from error


def _read_attention(family: Family, config: ConfigReader) -> AttentionSpec:
    heads, hidden = config.integer("num_attention_heads"), config.integer("hidden_size")
    kv_heads = config.get("num_key_value_heads")
    kv_heads = heads if kv_heads is None else config.integer("num_key_value_heads")
    if heads % kv_heads:
        raise config.bad("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads = {heads}")
    if config.get("head_dim") is None and hidden % heads:
        raise config.bad("num_attention_heads", heads, f"a divisor of hidden_size = {hidden}, or a head_dim")
    head_dim = hidden // heads if config.get("head_dim") is None else config.integer("head_dim")
    clip = config.get(family.clip.name) if family.clip else None
    return AttentionSpec(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        scale=config.number(family.attention_scale.name) if family.attention_scale else head_dim**-0.5,
        qkv_bias=_flag(config, family.qkv_bias),
        output_bias=_flag(config, family.output_bias),
        qk_norm=family.qk_norm,
        clip=None if clip is None or family.clip is None else config.positive(family.clip.name, clip),
    )


def _read_moe(family: Family, config: ConfigReader) -> MoeSpec:
    moe = MoeSpec(
        experts=config.integer(*family.experts, maximum=MAX_EXPERTS),
        top_k=config.integer("num_experts_per_tok"),
        width=config.integer(family.expert_width),
        scoring=family.scoring,
        renormalise=_flag(config, family.renormalise),
        shared_width=config.integer(family.shared_width) if family.shared_width else 0,
        shared_gate=family.shared_gate,
    )
    if moe.top_k > moe.experts:
        raise config.bad("num_experts_per_tok", moe.top_k, f"at most the {moe.experts} experts there are")
    return moe


def _read_layers(family: Family, config: ConfigReader) -> tuple[bool, ...]:
    """Which layers have experts: every `decoder_sparse_step`-th, but for `mlp_only_layers`."""
    layers = config.integer("num_hidden_layers", maximum=MAX_LAYERS)
    if family.dense_width is None:
        return (True,) * layers
    step, dense = config.integer("decoder_sparse_step"), config.get("mlp_only_layers")
    dense = [] if dense is None else dense
    if not isinstance(dense, list) or not all(isinstance(i, int) for i in dense):
        raise config.bad("mlp_only_layers", dense, "a list of layer numbers")
    return tuple((i + 1) % step == 0 and i not in dense for i in range(layers))


def _flag(config: ConfigReader, value: bool | Key) -> bool:
    if isinstance(value, bool):
        return value
    if value.default is not None and config.get(value.name) is None:
        return bool(value.default)
    return config.flag(value.name)


def _scale(config: ConfigReader, key: Key | None) -> float:
    return 1.0 if key is None else config.number(key.name)
