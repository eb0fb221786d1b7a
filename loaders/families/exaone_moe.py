"""K-EXAONE: layers over a window rotate queries and keys, those that see everything do not."""

from dataclasses import replace

from .deepseek import SHARED
from .family import Family, Key

EXAONE_MOE = Family(
    model_type="exaone_moe",
    architecture="ExaoneMoeForCausalLM",
    experts=("num_experts", "num_local_experts"),
    expert_width="moe_intermediate_size",
    dense_width="intermediate_size",
    leading_dense=True,
    shared_experts="num_shared_experts",
    scoring="sigmoid",
    choice_bias=True,
    grouped_choice=True,
    renormalise=Key("norm_topk_prob"),
    weight_scale=Key("routed_scaling_factor"),
    qk_norm="head",
    windowed=True,
    full_without_rope=True,
    unused=("sliding_window_pattern",),  # what layer_types lists
    tensors=replace(SHARED, choice_bias="mlp.e_score_correction_bias"),
)
