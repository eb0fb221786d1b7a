"""K-EXAONE: layers over a window rotate queries and keys, those that see everything do not."""

from dataclasses import replace

from .deepseek import BIASED_CHOICE, SHARED

EXAONE_MOE = BIASED_CHOICE(
    model_type="exaone_moe",
    architecture="ExaoneMoeForCausalLM",
    experts=("num_experts", "num_local_experts"),
    shared_experts="num_shared_experts",
    qk_norm="head",
    windowed=True,
    full_without_rope=True,
    mtp_dense=True,  # as the first layer
    mtp_windowed=True,
    unused=("sliding_window_pattern",),  # what layer_types lists
    tensors=replace(SHARED, choice_bias="mlp.e_score_correction_bias"),
)
