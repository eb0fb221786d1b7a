"""MiniMax-M3, the text model: an indexer chooses blocks of keys; norms count from 1, gates are clamped as gpt-oss's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...kernels.recipes import Activation
from ..spec import AttentionSpec, BlockIndexerSpec, MixerSpec
from .by_kind import without
from .config_reader import ConfigReader
from .family import Family, Key
from .mixtral import BLOCK_SPARSE
from .window import FULL

SPARSE = "minimax_m3_sparse"
INDEXER = {
    "sparse_num_index_heads": "index_n_heads", "sparse_index_dim": "index_head_dim",
    "sparse_block_size": "index_block_size", "sparse_topk_blocks": "index_topk_blocks",
    "sparse_local_block": "index_local_blocks",
}  # fmt: skip
PAGES = 32
GROUP, FREQUENCY = "sparse_attention_config", "sparse_attention_freq"


def todays(config: ConfigReader) -> dict[str, Any]:
    """The release's keys as transformers writes them."""
    found = config.get(GROUP) or {}
    values = without(config.values, (GROUP,))
    if not isinstance(found, dict) or set(found) - {*INDEXER, FREQUENCY}:
        raise config.bad(GROUP, found, "an object with " + ", ".join((*INDEXER, FREQUENCY)))
    values |= {INDEXER[name]: value for name, value in found.items() if name in INDEXER}
    for pattern, to, (no, yes) in (
        (found.get(FREQUENCY), "layer_types", (FULL, SPARSE)),
        (config.values.get("moe_layer_freq"), "mlp_layer_types", ("dense", "sparse")),
    ):
        if isinstance(pattern, list) and values.get(to) is None:
            values[to] = [yes if one else no for one in pattern]
            values.pop("moe_layer_freq" if to == "mlp_layer_types" else GROUP, None)
    return values


def with_blocks(family: Family, config: ConfigReader, attention: AttentionSpec, count: int) -> list[MixerSpec]:
    """The attention of so many layers, with an indexer where `layer_types` says so."""
    kinds, names = config.require("layer_types"), {FULL, family.block_layers}
    if not isinstance(kinds, list) or len(kinds) != count or set(kinds) - names:
        raise config.bad("layer_types", kinds, f"a list of {count} times {FULL} or {family.block_layers}")
    chooses = replace(attention, blocks=_read(config, attention))
    return [chooses if kind == family.block_layers else attention for kind in kinds]


def _read(config: ConfigReader, attention: AttentionSpec) -> BlockIndexerSpec:
    heads, dim = config.integer("index_n_heads"), config.integer("index_head_dim")
    if heads != attention.kv_heads:
        raise config.bad("index_n_heads", heads, f"the {attention.kv_heads} heads of keys")
    if dim < attention.rope.rotary_dim:
        config.refuse(
            config.bad("index_head_dim", dim, f"at least the {attention.rope.rotary_dim} dims that are rotated")
        )
    top, local = config.integer("index_topk_blocks"), config.integer("index_local_blocks")
    if local > top:
        raise config.bad("index_local_blocks", local, f"at most index_topk_blocks = {top}")
    size = config.integer("index_block_size")
    if size % PAGES:
        raise config.bad("index_block_size", size, f"a multiple of {PAGES}, the tokens of a page of the cache")
    return BlockIndexerSpec(heads=heads, dim=dim, size=size, top=top, local=local)


MINIMAX_M3 = Family(
    model_type="minimax_m3_vl",
    architecture="MiniMaxM3SparseForConditionalGeneration",
    planned={"first_k_dense_replace": 3},
    mtp_gap="how they are stored and computed is not known",
    experts=("num_local_experts", "num_experts"),
    expert_width="intermediate_size",
    dense_width="dense_intermediate_size",
    leading_dense=True,
    shared_width="shared_intermediate_size",
    scoring="sigmoid",
    choice_bias=True,
    renormalise=True,
    weight_scale=Key("routed_scaling_factor"),
    activation=Activation(alpha=1.702, offset=1.0),
    activation_limit=Key("swiglu_limit", 7.0),
    activation_names=("hidden_act", ("silu", "swigluoai", None)),
    qk_norm="head",
    partial_rope=True,
    rotary_dim="rotary_dim",
    block_layers=SPARSE,
    spelling=todays,
    implied={"swiglu_alpha": (1.702, None)},
    tensors=replace(
        BLOCK_SPARSE,
        norms_from_one=True,
        choice_bias="block_sparse_moe.e_score_correction_bias",
        shared_gate="block_sparse_moe.shared_experts.gate_proj.weight",
        shared_up="block_sparse_moe.shared_experts.up_proj.weight",
        shared_down="block_sparse_moe.shared_experts.down_proj.weight",
    ),
)
