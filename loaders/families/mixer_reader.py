"""What looks at other tokens in each layer, from a config: attention in full or over a window, latent attention, or a
recurrence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..spec import NO_ROPE, AttentionSpec, DeltaSpec, LatentSpec, MixerSpec, RopeSpec, Temperature
from . import by_kind, chunks, deepseek_v4, glm5_next, layer_kinds, minimax_m3, one_part, qwen4_exp, recurrent, window
from .config_reader import ConfigReader
from .family import Family, Key
from .indexers import with_indexers
from .keys import read_flag
from .latent_and_delta import with_deltas
from .rope import WARMTH, read_rope

LINEAR = "linear_attention"


def read_mixers(family: Family, config: ConfigReader, count: int) -> Sequence[MixerSpec | None]:
    """The mixers of so many layers; None where a layer has none."""
    if family.mixer.startswith("latent"):
        latent = _read_latent(family, config)
        if family.runs:
            return glm5_next.with_runs(config, latent, count)
        if family.mixer == "latent and delta":
            return with_deltas(family, config, latent, count)
        return with_indexers(family, config, latent, count) if family.indexer else [latent] * count
    if family.mixer == "compressed":
        return deepseek_v4.mixers(config, count)
    attention = _read_attention(family, config)
    if family.by_kind:
        return by_kind.layers(family, config, attention, count)
    if family.block_layers:
        return minimax_m3.with_blocks(family, config, attention, count)
    if family.one_part:
        return one_part.mixers(config, recurrent.read_space(config), attention)
    if family.mixer in recurrent.READERS:
        return recurrent.with_attention(family, config, attention, count)
    if family.full_attention:
        return layer_kinds.by_kind(config, attention, count)
    if family.mixer == "delta":
        found = [_read_delta(config) if linear else attention for linear in _linear_layers(config, count)]
        return qwen4_exp.with_runs(config, found) if family.has_grams else found
    if family.chunked:
        return chunks.in_chunks(config, attention, count)
    if family.windowed:
        return window.with_windows(config, attention, count, family.full_without_rope)
    window.check_layer_types(config)
    return [attention] * count


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
    has_norm = family.qk_norm_if is None or read_flag(config, family.qk_norm_if)
    return AttentionSpec(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        scale=_scale(family, config, head_dim),
        rope=_rope(family, config, head_dim),
        qkv_bias=read_flag(config, family.qkv_bias),
        output_bias=read_flag(config, family.output_bias),
        qk_norm=family.qk_norm if has_norm else "none",
        clip=None if clip is None or family.clip is None else config.positive(family.clip.name, clip),
        sinks=family.sinks and not family.by_kind,
        gate="of values" if family.output_gate else by_kind.gate(family, config),
        soft_gate=family.head_gate == "softplus",
        narrow=None if family.v_dim is None else config.integer(family.v_dim),
        v_scale=1.0 if family.v_scale is None else by_kind.scale_of_values(config, family.v_scale),
        norms_last=family.norms_last,
        v_norm=family.full_attention,
    )


def _rope(family: Family, config: ConfigReader, head_dim: int) -> RopeSpec:
    """The turn of queries and keys; of families that turn nothing, or whose config says so, none."""
    says = config.get(family.rotates) if isinstance(family.rotates, str) else None
    if family.rotates is not True and says != "rope":
        config.get("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")
        return NO_ROPE
    is_partial = family.partial_rope or family.mixer == "delta"
    return read_rope(config, head_dim, is_partial, family.rotary_dim, kind=_kind(family))


def _kind(family: Family) -> str:
    """The layers that `_read_attention` is of, where there are two kinds."""
    return window.SLIDING if family.full_attention else window.FULL


def _scale(family: Family, config: ConfigReader, head_dim: int) -> float:
    """What scores are multiplied by."""
    if isinstance(family.attention_scale, Key):
        return config.number(family.attention_scale.name)
    return head_dim**-0.5 if family.attention_scale is None else family.attention_scale


def _read_latent(family: Family, config: ConfigReader) -> LatentSpec:
    """Keys of grouped-query attention that such configs have besides are read over: one latent serves all heads."""
    config.get("num_key_value_heads", "head_dim", "qk_head_dim", "attention_bias")
    nope = config.integer("qk_nope_head_dim")
    rope_dim = 0 if config.get("qk_rope_head_dim") == 0 and family.runs else config.integer("qk_rope_head_dim")
    config.only("rope_interleave", (True, None))
    has_rope = family.mixer == "latent" or family.bounded_decay
    rope = read_rope(config, rope_dim, whole=nope + rope_dim) if has_rope else replace(NO_ROPE, rotary_dim=rope_dim)
    return LatentSpec(
        heads=config.integer("num_attention_heads"),
        q_rank=0 if config.get("q_lora_rank") is None else config.integer("q_lora_rank"),
        kv_rank=config.integer("kv_lora_rank"),
        nope=nope,
        v_dim=config.integer("v_head_dim"),
        scale=(nope + rope_dim) ** -0.5 * _temperature(config, rope),
        rope=rope,
        norm_eps=family.latent_norm_eps or config.number("rms_norm_eps"),
        bias=config.get("attention_bias") is True,
        temperature=_warmth(config, rope),
        gate=family.bounded_decay,
    )


def _temperature(config: ConfigReader, rope: RopeSpec) -> float:
    """What yarn's stretching of a context multiplies scores by: (0.1 m ln(factor) + 1)^2, m being mscale_all_dim.
    Source: DeepSeek-V2's published model."""
    settings = config.get("rope_scaling", "rope_parameters")
    m = settings.get("mscale_all_dim") if isinstance(settings, dict) else None
    if rope.kind != "yarn" or not m or rope.factor <= 1:
        return 1.0
    return (0.1 * config.positive("mscale_all_dim", m) * math.log(rope.factor) + 1.0) ** 2


def _warmth(config: ConfigReader, rope: RopeSpec) -> Temperature | None:
    """What queries beyond the trained context are multiplied by."""
    settings = config.get("rope_parameters", "rope_scaling")
    scale = settings.get(WARMTH) if isinstance(settings, dict) else None
    if not scale or rope.kind != "yarn":
        return None
    return Temperature(scale=config.positive(WARMTH, scale), length=rope.original_context)


def _read_delta(config: ConfigReader) -> DeltaSpec:
    k_heads, v_heads = config.integer("linear_num_key_heads"), config.integer("linear_num_value_heads")
    if v_heads % k_heads:
        raise config.bad("linear_num_value_heads", v_heads, f"a multiple of linear_num_key_heads = {k_heads}")
    return DeltaSpec(
        k_heads=k_heads,
        v_heads=v_heads,
        k_dim=config.integer("linear_key_head_dim"),
        v_dim=config.integer("linear_value_head_dim"),
        taps=config.integer("linear_conv_kernel_dim"),
        in_turns=config.get("value_heads_in_turns") is True,
    )


def _linear_layers(config: ConfigReader, count: int) -> list[bool]:
    """Which layers have a delta rule: by `layer_types`, else all but every `full_attention_interval`-th."""
    kinds, interval = config.get("layer_types"), config.get("full_attention_interval")
    if kinds is None:
        step = config.integer("full_attention_interval")
        return [(i + 1) % step != 0 for i in range(count)]
    if not isinstance(kinds, list) or len(kinds) < count or set(kinds[:count]) - {LINEAR, window.FULL}:
        raise config.bad("layer_types", kinds, f"a list of {count} times {LINEAR} or {window.FULL}")
    config.seen.update(() if interval is None else ("full_attention_interval",))
    return [kind == LINEAR for kind in kinds[:count]]
