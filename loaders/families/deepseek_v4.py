"""DeepSeek-V4: attention over a window and compressed entries, several residual streams, first layers whose experts a
table of tokens chooses. Under the names of its release."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..choosers import EntryIndexerSpec
from ..compressed import CompressedSpec
from ..turns import RopeSpec
from .by_kind import without
from .config_reader import ConfigReader
from .family import CompressedNames, Family, Key, TensorNames
from .rope import read_rope

SLIDING, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
RATES = {SPARSE: 4, HEAVY: 128}
KINDS = {0: SLIDING, 4: SPARSE, 128: HEAVY}
BY_TOKEN, BY_SCORE = "hash_moe", "moe"
MAIN, COMPRESS = "main", "compress"  # ropes: of layers over a window alone, and of others
PAGE = 32  # tokens of a page of the cache
RELEASED = (
    "compress_ratios", "compress_rate_csa", "compress_rate_hca", "num_hash_layers", "rope_theta", "rope_scaling",
    "compress_rope_theta", "partial_rotary_factor", "qk_rope_head_dim",
)  # fmt: skip


def todays(config: ConfigReader) -> dict[str, Any]:
    """The release's keys as transformers writes them."""
    values = without(config.values, RELEASED)
    rates = dict(values.get("compress_rates") or RATES)
    for kind, name in ((SPARSE, "compress_rate_csa"), (HEAVY, "compress_rate_hca")):
        rates[kind] = config.values.get(name) or rates.get(kind)
    found: dict[str, Any] = {"compress_rates": rates, "rope_parameters": _ropes(config)}
    ratios, hashed = config.values.get("compress_ratios"), config.values.get("num_hash_layers")
    if values.get("layer_types") is None and isinstance(ratios, list):
        found["layer_types"] = [_kind(config, ratio) for ratio in ratios]
    if values.get("mlp_layer_types") is None and isinstance(hashed, int):
        count = config.integer("num_hidden_layers")
        found["mlp_layer_types"] = [BY_TOKEN if i < hashed else BY_SCORE for i in range(count)]
    return {**values, **found}


def _kind(config: ConfigReader, ratio: Any) -> str:
    if not isinstance(ratio, int) or ratio not in KINDS:
        raise config.bad("compress_ratios", ratio, "a list of 0, 4 and 128")
    return KINDS[ratio]


def _ropes(config: ConfigReader) -> dict[str, Any]:
    """Settings of both ropes. Yarn stretches that of compressed layers alone, and multiplies no cos and sin there."""
    given = config.values.get("rope_parameters") or config.values.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise config.bad("rope_parameters", given, "an object or null")
    share = _share(config)
    if isinstance(given.get(MAIN), dict) and isinstance(given.get(COMPRESS), dict):
        return {name: {**share, **given[name]} for name in (MAIN, COMPRESS)}
    plain = {key: value for key, value in given.items() if not isinstance(value, dict)}
    theta = plain.pop("rope_theta", None) or config.values.get("rope_theta")
    yarn = "yarn" in (plain.get("rope_type"), plain.get("type"))
    stretched = {**({"attention_factor": 1.0} if yarn else {}), **plain}
    return {
        MAIN: {"rope_type": "default", "rope_theta": theta, **share},
        COMPRESS: {**stretched, "rope_theta": config.values.get("compress_rope_theta"), **share},
    }


def _share(config: ConfigReader) -> dict[str, float]:
    """The part of a head that is turned, where the config says it."""
    turned, size = config.values.get("qk_rope_head_dim"), config.values.get("head_dim")
    if isinstance(turned, int) and isinstance(size, int) and size > 0:
        return {"partial_rotary_factor": turned / size}
    share = config.values.get("partial_rotary_factor")
    return {} if share is None else {"partial_rotary_factor": config.positive("partial_rotary_factor", share)}


def rates_of(config: ConfigReader, count: int) -> list[tuple[int, bool]]:
    """Of each layer how many tokens an entry stands for, 0: there are none; and whether an indexer chooses some."""
    kinds, rates = config.require("layer_types"), config.require("compress_rates")
    if not isinstance(kinds, list) or len(kinds) < count or set(kinds[:count]) - {SLIDING, *RATES}:
        raise config.bad("layer_types", kinds, f"a list of {count} times {SLIDING}, {SPARSE} or {HEAVY}")
    for kind, rate in rates.items():
        if kind not in RATES or not isinstance(rate, int) or isinstance(rate, bool) or rate < 1:
            raise config.bad("compress_rates", rates, f"whole numbers above 0, of {SPARSE} and {HEAVY}")
    return [(rates.get(kind, 0), kind == SPARSE) for kind in kinds[:count]]


def by_token(config: ConfigReader, count: int) -> list[bool]:
    """Of each layer whether a table of tokens chooses its experts."""
    kinds = config.require("mlp_layer_types")
    if not isinstance(kinds, list) or len(kinds) < count or set(kinds[:count]) - {BY_TOKEN, BY_SCORE}:
        raise config.bad("mlp_layer_types", kinds, f"a list of {count} times {BY_TOKEN} or {BY_SCORE}")
    return [kind == BY_TOKEN for kind in kinds[:count]]


def mixers(config: ConfigReader, count: int) -> list[CompressedSpec]:
    """The attention of so many layers."""
    config.only("num_key_value_heads", (1, None))
    heads, size, groups = (config.integer(one) for one in ("num_attention_heads", "head_dim", "o_groups"))
    if heads % groups:
        raise config.bad("o_groups", groups, f"a divisor of num_attention_heads = {heads}")
    main, other = (read_rope(config, size, partial=True, kind=kind) for kind in (MAIN, COMPRESS))
    turned = other.rotary_dim
    dim = config.integer("index_head_dim")
    if dim < turned:
        config.refuse(config.bad("index_head_dim", dim, f"at least the {turned} dims that are turned"))
    indexer = EntryIndexerSpec(heads=config.integer("index_n_heads"), dim=dim, top=config.integer("index_topk"))
    plain = CompressedSpec(
        heads=heads, head_dim=size, q_rank=config.integer("q_lora_rank"), groups=groups,
        o_rank=config.integer("o_lora_rank"), window=config.integer("sliding_window"), scale=size**-0.5,
        rope=main,
    )  # fmt: skip
    return [
        _layer(config, plain, other if rate else main, rate, indexer if some else None)
        for rate, some in rates_of(config, count)
    ]


def _layer(
    config: ConfigReader, plain: CompressedSpec, rope: RopeSpec, rate: int, indexer: EntryIndexerSpec | None
) -> CompressedSpec:
    if rate and PAGE % rate and rate % PAGE:
        raise config.bad("compress_rates", rate, f"divisors and multiples of {PAGE}, the tokens of a page of the cache")
    return replace(plain, rope=rope, rate=rate, indexer=indexer)


DEEPSEEK_V4 = Family(
    model_type="deepseek_v4",
    architecture="DeepseekV4ForCausalLM",
    mixer="compressed",
    mtp_gap="they have several residual streams",
    windowed=True,
    experts=("n_routed_experts", "num_local_experts"),
    expert_width="moe_intermediate_size",
    shared_experts="n_shared_experts",
    scoring="sqrt_softplus",
    choice_bias=True,
    tables_of_experts=True,
    renormalise=True,
    weight_scale=Key("routed_scaling_factor"),
    activation_limit=Key("swiglu_limit", 10.0),
    streams=(Key("hc_mult", 4), Key("hc_sinkhorn_iters", 20), Key("hc_eps", 1e-6)),
    weighted_end=True,
    spelling=todays,
    unused=("expert_dtype",),
    implied={
        "scoring_func": ("sqrtsoftplus", None), "topk_method": ("noaux_tc", None), "attention_bias": (False, None),
        "mlp_bias": (False, None), "norm_topk_prob": (True, None),
    },
    tensors=TensorNames(
        embed="embed.weight",
        final_norm="norm.weight",
        head="head.weight",
        layer="layers.{layer}.",
        attn_norm="attn_norm.weight",
        mlp_norm="ffn_norm.weight",
        last_mixing="hc_head_{}",
        router="ffn.gate.weight",
        choice_bias="ffn.gate.bias",
        expert_table="ffn.gate.tid2eid",
        expert_gate="ffn.experts.{e}.w1.weight",
        expert_up="ffn.experts.{e}.w3.weight",
        expert_down="ffn.experts.{e}.w2.weight",
        shared_gate="ffn.shared_experts.w1.weight",
        shared_up="ffn.shared_experts.w3.weight",
        shared_down="ffn.shared_experts.w2.weight",
        compressed=CompressedNames(),
    ),
)  # fmt: skip
