"""ERNIE-4.5: 21B-A3B, 300B-A47B. The rope turns neighbours; the router's choice is biased, its scores sum to one."""

from dataclasses import replace

from .deepseek import SHARED
from .family import Family, Key

ERNIE4_5_MOE = Family(
    model_type="ernie4_5_moe",
    architecture="Ernie4_5_MoeForCausalLM",
    mtp_dense=True,
    experts=("moe_num_experts",),
    top_k="moe_k",
    expert_width="moe_intermediate_size",
    dense_width="intermediate_size",
    range_of_experts=True,
    shared_experts="moe_num_shared_experts",
    scoring="softmax",
    choice_bias=True,
    renormalise=True,
    planned={"moe_layer_start_index": 0, "moe_layer_interval": 1},
    qkv_bias=Key("use_bias", False),
    output_bias=Key("use_bias", False),
    neighbours=True,
    tied_head=Key("tie_word_embeddings", True),
    implied={"use_bias": (False, None), "moe_norm_min": (1e-12, None)},
    tensors=replace(SHARED, choice_bias="mlp.moe_statics.e_score_correction_bias", choice_bias_is_row=True),
)
