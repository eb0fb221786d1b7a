"""GLM-5.3-Flash, the text model: delta rules with decays by key, latent attention without positions among them, whose
indexer chooses runs of keys, and several residual streams."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..spec import DeltaSpec, IndexerSpec, LatentSpec, MixerSpec
from .config_reader import ConfigReader
from .deepseek import BIASED_CHOICE, SHARED
from .family import Key
from .indexers import INDEXED, kinds_of
from .kimi_linear import KEY_DELTA
from .window import FULL

LINEAR = "linear_attention"
SIZES = {
    "linear_head_dim": "head_dim", "linear_num_heads": "num_heads", "linear_conv_kernel_dim": "short_conv_kernel_size",
    "linear_lower_bound": "gate_lower_bound",
}  # fmt: skip
INNER = "linear_attn_config"


def todays(config: ConfigReader) -> dict[str, Any]:
    """Sizes of delta rules as transformers writes them, where a config has them in an object of their own."""
    inner = config.get(INNER) or {}
    if not isinstance(inner, dict) or set(inner) - {*SIZES.values(), "safe_gate"}:
        raise config.bad(INNER, inner, "an object with " + ", ".join((*SIZES.values(), "safe_gate")))
    values = {name: value for name, value in config.values.items() if name != INNER}
    values |= {name: inner[old] for name, old in SIZES.items() if old in inner}
    if inner and inner.get("safe_gate", True) and values.get("linear_lower_bound") is None:
        values["linear_lower_bound"] = -5.0
    return values


def with_runs(config: ConfigReader, latent: LatentSpec, count: int) -> list[MixerSpec]:
    """The mixers of so many layers."""
    kinds, delta = config.require("layer_types"), _read_delta(config)
    if not isinstance(kinds, list) or len(kinds) != count or set(kinds) - {LINEAR, INDEXED, FULL}:
        raise config.bad("layer_types", kinds, f"a list of {count} times {LINEAR} or {INDEXED}")
    for kind, indexer in zip(kinds, kinds_of(config, count), strict=True):
        if kind != LINEAR and indexer != "full":
            raise config.bad("indexer_types", indexer, "full in every layer of attention")
    chooses = replace(latent, indexer=_read_indexer(config))
    return [delta if kind == LINEAR else chooses for kind in kinds]


def _read_delta(config: ConfigReader) -> DeltaSpec:
    heads, dim = config.integer("linear_num_heads"), config.integer("linear_head_dim")
    least = config.get("linear_lower_bound")
    if least is not None and (not isinstance(least, int | float) or isinstance(least, bool) or not -1e4 < least < 0):
        raise config.bad("linear_lower_bound", least, "a number below 0, or null")
    return DeltaSpec(
        k_heads=heads, v_heads=heads, k_dim=dim, v_dim=dim, taps=config.integer("linear_conv_kernel_dim"),
        by_key=True, decay_rank=dim, gate_rank=dim, least=None if least is None else float(least),
    )  # fmt: skip


def _read_indexer(config: ConfigReader) -> IndexerSpec:
    config.only("index_kpool_always_select_tail", (True, None))
    top, pool = config.integer("index_topk"), config.integer("index_kpool")
    if top % pool or pool < 2:
        raise config.bad("index_kpool", pool, f"a divisor of index_topk = {top} above 1")
    heads, dim = config.integer("index_n_heads"), config.integer("index_head_dim")
    return IndexerSpec(heads=heads, dim=dim, top=top + pool - 1, pool=pool)


GLM5_NEXT = BIASED_CHOICE(
    model_type="glm5_next",
    architecture="Glm5NextForConditionalGeneration",
    mixer="latent and delta",
    runs=True,
    experts=("n_routed_experts", "num_local_experts"),
    shared_experts="n_shared_experts",
    activation_limit=Key("swiglu_limit", 10.0),
    streams=(Key("hc_mult", 4), Key("hc_sinkhorn_iters", 20), Key("hc_eps", 1e-6)),
    spelling=todays,
    tensors=replace(
        SHARED,
        delta=KEY_DELTA,
    ),
)
